//! One look at the folder of CNI configurations.

use std::collections::BTreeMap;
use std::fs::File;
use std::time::{Duration, Instant};

use crate::folder::{self, Folder, FolderError, MOST, Seen as SeenFile};
use crate::kept::Kept;
use crate::list::{BadList, Entry, List, is_file_name};
use crate::plan::{BadConf, Candidate, DropIn, Seen, is_list, is_read, is_single};

/// How long somebody who had a list open when it was replaced may still write to the old one.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was seen, and the files themselves.
#[derive(Debug)]
pub struct Snapshot {
    /// What the files say, which is what plans are made from.
    pub seen: Seen,
    /// Those that could be read, by their names in the folder.
    pub files: BTreeMap<String, SeenFile>,
}

/// A list that was replaced, and to which somebody may still write who opened it before.
#[derive(Debug)]
pub struct Late {
    /// Name of the list's file, which the new one has as well.
    pub name: String,
    /// The file that was replaced, still open.
    pub file: File,
    /// Its content when it was replaced.
    pub old: Vec<u8>,
    /// What was put in its place.
    pub new: Vec<u8>,
    /// When it is forgotten: `PATIENCE` after it was replaced.
    pub until: Instant,
}

impl Late {
    /// Somebody may still write to this file.
    pub fn new(name: &str, file: File, old: &[u8], new: &[u8]) -> Self {
        let until = Instant::now() + PATIENCE;
        Self { name: name.to_owned(), file, old: old.to_owned(), new: new.to_owned(), until }
    }

    /// What somebody wrote to it, if it is a configuration: nothing while it is being written.
    fn written(&self) -> Option<String> {
        let now = folder::content(&self.file, MOST).ok().filter(|now| *now != self.old)?;
        let text = String::from_utf8(now).ok()?;
        parse(&self.name, &text).is_ok().then_some(text)
    }
}

/// Look. `drop_in` is the name of the agent's file in drop-in directories, and `kind` the plugin's type.
///
/// # Errors
/// When the folder can't be read.
pub fn look(
    folder: &Folder,
    kept: &Kept,
    drop_in: &str,
    kind: &str,
    late: &[Late],
) -> Result<Snapshot, FolderError> {
    let (mut files, mut candidates) = (BTreeMap::new(), Vec::new());
    for name in folder.names()?.into_iter().filter(|name| is_read(name)) {
        let bad = |why: String| (String::new(), Err(BadConf::File(why)));
        let (text, list) = match folder.read(&name) {
            Ok(None) => continue,
            Err(error) => bad(error.to_string()),
            Ok(Some(seen)) => {
                let written =
                    late.iter().filter(|late| late.name == name && late.new == seen.bytes);
                let written = written.filter_map(Late::written).next_back();
                let text = written.or_else(|| seen.text().map(str::to_owned));
                let read = text.map(|text| {
                    let list = parse(&name, &text).map_err(BadConf::from);
                    (text, list)
                });
                files.insert(name.clone(), seen);
                read.unwrap_or_else(|| bad("it is no text in UTF-8".to_owned()))
            }
        };
        candidates.push(Candidate { name, text, list });
    }
    let lists = candidates.iter().filter_map(|file| file.list.as_ref().ok());
    let mut networks: Vec<String> = lists.map(|list| list.name.clone()).collect();
    networks.extend(kept.drop_ins.iter().cloned());
    networks.sort_unstable();
    networks.dedup();
    let mut drop_ins = Vec::new();
    for network in networks.into_iter().filter(|name| is_file_name(name)) {
        let Some(inner) = folder.inner_if_there(&network)? else { continue };
        // Under the name that the agent's has now, and those that it had before.
        for file in inner.names()?.into_iter().filter(|name| is_single(name)) {
            let seen = match inner.read(&file) {
                Ok(None) => continue,
                read => read.ok().flatten(),
            };
            let entry = seen.and_then(|seen| Entry::parse(seen.text()?).ok());
            let is_named = file == drop_in;
            let is_own =
                is_own_drop_in(entry.as_ref(), kind, is_named && kept.has_drop_in(&network));
            if is_own || is_named {
                drop_ins.push(DropIn { network: network.clone(), file, entry, is_own });
            }
        }
    }
    Ok(Snapshot { seen: Seen { files: candidates, drop_ins }, files })
}

/// Whether a file in a drop-in directory is the agent's: it has the plugin, or it is none's any more and
/// the agent `wrote` one of its name.
pub fn is_own_drop_in(entry: Option<&Entry>, kind: &str, wrote: bool) -> bool {
    entry.map_or(wrote, |entry| entry.kind() == kind)
}

/// What a text says under this name.
///
/// # Errors
/// When runtimes can't use it.
pub fn parse(name: &str, text: &str) -> Result<List, BadList> {
    if is_list(name) { List::parse(text) } else { List::of_single(text) }
}
