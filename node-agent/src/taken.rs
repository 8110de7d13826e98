//! Plugins that were taken over: the names of their binaries, and what stands there.

use crate::folder::Folder;
use crate::foreign::Mesh;
use crate::kept::{Kept, KeptFile};
use crate::list::{Entry, is_file_name};
use crate::observe::parse;
use crate::own_folder::special;
use crate::plan::Seen;

/// Say where a list calls the plugin by a name that it had before: two entries would be one too many.
///
/// # Errors
/// The first such file, with the name that it calls the plugin by.
pub(crate) fn earlier_name(seen: &Seen, kept: &Kept, kind: &str) -> Result<(), EarlierName> {
    let is_earlier = |name: &str| name != kind && kept.plugins.iter().any(|own| own == name);
    let named = seen.files.iter().find_map(|file| {
        let plugins = &file.list.as_ref().ok()?.plugins;
        let entry = plugins.iter().find(|entry| is_earlier(entry.kind()))?;
        Some(EarlierName { file: file.name.clone(), name: entry.kind().to_owned() })
    });
    named.map_or(Ok(()), Err)
}

/// A list calls the plugin by a name that it had before.
#[derive(Debug, thiserror::Error)]
#[error(
    "{file} calls the plugin by its earlier name {name:?} (--plugin-name), and goes on so: uninstall it \
     first (`millrace-node uninstall`)"
)]
pub struct EarlierName {
    file: String,
    name: String,
}

/// What the user should know of binaries of plugins that were taken over and can't be kept: a runtime
/// that still has such an entry for a pod calls that.
pub(crate) fn not_replaced(kept: &Kept, bin: &Folder) -> Vec<String> {
    let word = |kind: String| {
        let what = special(bin, &kind)?;
        let path = bin.path().join(&kind);
        Some(format!(
            "{} is {what}, and is left as it is: remove it if no runtime needs it any more",
            path.display()
        ))
    };
    taken_kinds(kept).into_iter().filter_map(word).collect()
}

/// The types of entries that were taken over, as names of files.
pub(crate) fn taken_kinds(kept: &Kept) -> Vec<String> {
    let entries = kept.entries.iter().map(|own| own.kind.clone());
    let of_file = |file: &KeptFile| {
        let list = parse(&file.name, &file.text).ok()?;
        let mut kinds = list.plugins.iter().map(Entry::kind);
        kinds.rfind(|kind| Mesh::of(kind).is_some()).map(str::to_owned)
    };
    let mut kinds: Vec<String> = entries.chain(kept.files.iter().filter_map(of_file)).collect();
    kinds.retain(|kind| is_file_name(kind));
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}
