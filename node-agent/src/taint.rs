//! The taint that keeps pods off a node until the plugin is there: whoever registers the node sets it, and
//! the agent takes it away.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use kube::api::{Api, ApiResource, GroupVersionKind, Patch, PatchParams};
use kube::core::Object;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::api::within;
use crate::state::Shared;

/// How soon it is looked again whether the agent is ready.
const SOON: Duration = Duration::from_millis(200);
/// How soon it is tried again where the API does not do it.
const AGAIN: Duration = Duration::from_secs(5);

/// A node as the API has it.
type Node = Object<Value, Value>;

/// Take the taints with this key off a node once the agent is ready. That is done once: what is put
/// there later is for somebody else's reason.
pub async fn remove(client: Client, node: &str, key: &str, shared: &Arc<Shared>) {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Node"));
    let api: Api<Node> = Api::all_with(client, &resource);
    loop {
        while !shared.not_ready().is_empty() {
            sleep(SOON).await;
        }
        match untaint(&api, node, key).await {
            Ok(true) => tracing::info!("removed the taint {key} from the node: the agent is ready"),
            Ok(false) => tracing::debug!("the node has no taint {key} to remove"),
            Err(why) => {
                tracing::warn!(
                    "the taint {key} can't be removed from the node, which is tried again in {AGAIN:?}: \
                     {why}"
                );
                sleep(AGAIN).await;
                continue;
            }
        }
        return;
    }
}

async fn untaint(api: &Api<Node>, name: &str, key: &str) -> Result<bool, String> {
    let node = within(api.get(name)).await?;
    let Some(left) = without(&node.spec["taints"], key) else { return Ok(false) };
    // Who else changed the node meanwhile is not undone.
    let patch = json!({
        "metadata": { "resourceVersion": node.metadata.resource_version },
        "spec": { "taints": left },
    });
    within(api.patch(name, &PatchParams::default(), &Patch::Merge(&patch))).await.map(|_| true)
}

/// The taints without those of a key; none where there are none of it.
fn without(taints: &Value, key: &str) -> Option<Vec<Value>> {
    let taints = taints.as_array()?;
    let left: Vec<Value> = taints.iter().filter(|taint| taint["key"] != key).cloned().collect();
    (left.len() < taints.len()).then_some(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_taints_stay() {
        let taints =
            json!([{ "key": "a" }, { "key": "b", "effect": "NoSchedule" }, { "key": "b" }]);
        assert_eq!(without(&taints, "b"), Some(vec![json!({ "key": "a" })]));
        assert_eq!(without(&taints, "c"), None);
        assert_eq!(without(&Value::Null, "a"), None);
    }
}
