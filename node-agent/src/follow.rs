//! Following what the Kubernetes API has of a kind: a list, then a watch, for ever. Whatever goes wrong, it is begun
//! anew.

use std::fmt::Debug;
use std::time::Duration;

use futures_util::StreamExt as _;
use kube::Resource;
use kube::api::Api;
use kube_runtime::utils::Backoff as _;
use kube_runtime::watcher::{self, Config, DefaultBackoff, Event, watcher};
use serde::de::DeserializeOwned;
use tokio::time::{sleep, timeout};

use crate::api::{error_body, story};

/// How long each page of a list may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who keeps what the API has of a kind.
pub(crate) trait Keeper {
    /// An object as the API has it.
    type Record: Resource + Clone + Debug + DeserializeOwned + Send + 'static;
    /// What is kept of one.
    type Kept;

    /// What is kept of an object; none where it lacks what each of its kind has.
    fn read(record: Self::Record) -> Option<Self::Kept>;
    /// These are all.
    fn replace(&self, all: Vec<Self::Kept>);
    /// There is this one, new or changed.
    fn put(&self, one: Self::Kept);
    /// This one is gone.
    fn remove(&self, one: Self::Kept);
    /// They can't be followed, and that is tried again.
    fn failed(&self, why: &str);
}

/// Follow them for ever.
pub(crate) async fn follow<K: Keeper>(keeper: &K, api: Api<K::Record>, config: Config) {
    let mut pauses = DefaultBackoff::default();
    loop {
        let mut events = watcher(api.clone(), config.clone()).boxed();
        // What is listed counts when all of it is there.
        let (mut listed, mut is_watching) = (Vec::new(), false);
        loop {
            let event = if is_watching {
                events.next().await
            } else if let Ok(event) = timeout(PATIENCE, events.next()).await {
                event
            } else {
                let why = format!("the Kubernetes API did not list them within {PATIENCE:?}");
                keeper.failed(&why);
                break;
            };
            match event {
                None => break,
                Some(Ok(Event::Init)) => (listed, is_watching) = (Vec::new(), false),
                Some(Ok(Event::InitApply(record))) => listed.extend(K::read(record)),
                Some(Ok(Event::InitDone)) => {
                    is_watching = true;
                    pauses.reset();
                    keeper.replace(std::mem::take(&mut listed));
                }
                Some(Ok(Event::Apply(record))) => {
                    if let Some(one) = K::read(record) {
                        keeper.put(one);
                    }
                }
                Some(Ok(Event::Delete(record))) => {
                    if let Some(one) = K::read(record) {
                        keeper.remove(one);
                    }
                }
                Some(Err(error)) => {
                    keeper.failed(&why(&error));
                    // The watcher would begin the same watch again.
                    if is_gone(&error) {
                        break;
                    }
                    sleep(pauses.next().unwrap_or(PATIENCE)).await;
                }
            }
        }
        sleep(pauses.next().unwrap_or(PATIENCE)).await;
    }
}

/// Whether a watch is from too long ago and can't be begun again.
fn is_gone(error: &watcher::Error) -> bool {
    let watcher::Error::WatchStartFailed(kube::Error::Api(status)) = error else { return false };
    status.code == 410
}

fn why(error: &watcher::Error) -> String {
    use watcher::Error::{
        InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed,
    };
    match error {
        InitialListFailed(error) => format!("they can't be listed: {}", story(error)),
        WatchStartFailed(error) | WatchFailed(error) => {
            format!("they can't be watched: {}", story(error))
        }
        WatchError(status) => {
            format!("they can't be watched: {}", error_body(status.code, &status.message))
        }
        NoResourceVersion => error.to_string(),
    }
}
