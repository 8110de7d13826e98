//! The programs of iptables: which are there, and of which variant they are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use millrace_core::observed::Variant;
use millrace_core::value::Family;

use crate::exec::{self, Options};

/// What a program of iptables does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// `iptables-save` or `ip6tables-save`, which print rules.
    Save,
    /// `iptables-restore` or `ip6tables-restore`, which commit table by table.
    Restore,
}

impl Role {
    const fn suffix(self) -> &'static str {
        match self {
            Self::Save => "save",
            Self::Restore => "restore",
        }
    }
}

/// A program is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} is not installed: install the package iptables{}",
    name(*.0, *.1, *.2),
    if *.1 == Family::V6 { " with its IPv6 half" } else { "" }
)]
pub struct Missing(pub Variant, pub Family, pub Role);

/// The binary with the variant in its name, such as `ip6tables-nft-save`.
fn name(variant: Variant, family: Family, role: Role) -> String {
    format!("{}-{}-{}", plain(family), variant.as_str(), role.suffix())
}

const fn plain(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

/// Where the programs are. Found out when first asked, and without running any of them unless
/// nothing else tells the variant.
#[derive(Clone, Debug, Default)]
pub struct Tools {
    found: BTreeMap<(Variant, Family, Role), Option<PathBuf>>,
    unnamed: BTreeMap<PathBuf, Option<Variant>>,
}

impl Tools {
    /// The path of a program.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn path(
        &mut self,
        variant: Variant,
        family: Family,
        role: Role,
    ) -> Result<PathBuf, Missing> {
        let key = (variant, family, role);
        if !self.found.contains_key(&key) {
            let path = self.search(variant, family, role);
            self.found.insert(key, path);
        }
        self.found[&key].clone().ok_or(Missing(variant, family, role))
    }

    /// Whether the programs of a variant are there.
    pub fn has(&mut self, variant: Variant) -> bool {
        self.path(variant, Family::V4, Role::Restore).is_ok()
    }

    /// The program under the variant's own name; else the one without, if it is of the variant.
    fn search(&mut self, variant: Variant, family: Family, role: Role) -> Option<PathBuf> {
        if let Some(path) = exec::find(&name(variant, family, role)) {
            return Some(path);
        }
        let path = exec::find(&format!("{}-{}", plain(family), role.suffix()))?;
        if !self.unnamed.contains_key(&path) {
            let variant = variant_of(&path);
            self.unnamed.insert(path.clone(), variant);
        }
        (self.unnamed[&path] == Some(variant)).then_some(path)
    }
}

/// The variant of a program without one in its name: by what its links lead to, else by what it
/// says of itself.
fn variant_of(path: &Path) -> Option<Variant> {
    let real = path.canonicalize().ok()?;
    let file = real.file_name()?.to_string_lossy().into_owned();
    if file.contains("nft") {
        return Some(Variant::Nft);
    }
    if file.contains("legacy") {
        return Some(Variant::Legacy);
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    let version = exec::run(path, &["--version"], None, deadline, &Options::default()).ok()?;
    // Before 1.8.0 there was only one, and it did not say so (iptables(8), --version).
    Some(if version.contains("nf_tables") { Variant::Nft } else { Variant::Legacy })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_what_to_install() {
        let text = Missing(Variant::Legacy, Family::V6, Role::Restore).to_string();
        assert!(text.starts_with("ip6tables-legacy-restore is not installed: install the package"));
    }

    #[test]
    fn the_variant_is_told_by_links_and_else_by_the_version() {
        let folder = std::env::temp_dir().join(format!("millrace-tools-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let script = |name: &str, says: &str| {
            use std::os::unix::fs::PermissionsExt as _;
            let path = folder.join(name);
            std::fs::write(&path, format!("#!/bin/sh\necho '{says}'\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let multi = script("xtables-legacy-multi", "not asked");
        let link = folder.join("iptables-save");
        std::os::unix::fs::symlink(&multi, &link).unwrap();
        assert_eq!(variant_of(&link), Some(Variant::Legacy));
        let nft = script("one", "iptables-save v1.8.9 (nf_tables)");
        assert_eq!(variant_of(&nft), Some(Variant::Nft));
        let old = script("two", "iptables-save v1.6.1");
        assert_eq!(variant_of(&old), Some(Variant::Legacy));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
