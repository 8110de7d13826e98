//! Which module may use which: the map that ARCHITECTURE.md draws.

use std::collections::BTreeSet;

use super::text;
use super::{SourceFile, Violation};

/// The modules of a crate, from the lowest layer up. A module may use those of lower layers only,
/// so there is no circle.
type Layers = (&'static str, &'static [&'static [&'static str]]);

const LAYERS: [Layers; 5] = [
    (
        "core/src/",
        &[
            // How JSON of others is read.
            &["object"],
            // Values, and what is said of a host or an object.
            &["value", "source", "finding", "pod", "preflight", "visible"],
            &["facts", "manifest", "ruleset"],
            // What is to be captured, and the languages of rules.
            &["policy", "iptables"],
            &["nft", "ownership"],
            &["capture", "observed"],
            // Front ends, and what is made of the program: changes and answers.
            &["dialect", "neighbours", "plan", "sim"],
            &["desired", "infer", "report", "trace", "verify"],
            &["ebpf", "status"],
            &["ids"],
        ],
    ),
    (
        "host/src/",
        &[
            // One kind of system call or message each.
            &["conntrack", "file", "netlink", "privilege", "probe", "progress", "stop", "sysctl"],
            &["sys_netns", "sys_sandbox", "sys_xtables"],
            &["cri", "link", "netns", "nft", "sandbox", "xtables"],
            &["exec", "facts", "nflog", "surroundings"],
            &["lock", "tools", "trace"],
            // One look, and what a host can do; one effect, whose failure that explains.
            &["observe", "preflight"],
            &["effect"],
            // A whole run.
            &["ebpf", "engine"],
            &["tracked", "verify"],
            // What every front end does with a namespace.
            &["capture"],
        ],
    ),
    (
        "cni-plugin/src/",
        &[
            &["causes", "file", "level", "mesh", "own_file", "protocol"],
            &["config", "note", "outcome", "target"],
            &["capture", "decide", "log", "sys_alarm"],
            &["lookup"],
            &["verb"],
            &["running"],
        ],
    ),
    (
        "node-agent/src/",
        &[
            // Pure: what a configuration says, and what is to become of it.
            &["list"],
            &["settings"],
            &["foreign"],
            &["plan", "rivalry"],
            // One kind of file each.
            &["folder", "watch"],
            &["kubeconfig", "own_folder"],
            &["binary"],
            &["kept"],
            &["observe"],
            &["taken"],
            // One pass, and the way back.
            &["install"],
            &["binaries", "steps"],
            &["uninstall"],
            // The agent that runs.
            &["api", "processes", "ztunnel"],
            &["follow"],
            &["namespaces", "pods"],
            &["audit", "events"],
            &["metrics"],
            &["ambient"],
            &["state"],
            &["server"],
            &["health", "nri", "repair", "taint"],
            &["flags", "run"],
            &["status"],
            &["cli"],
        ],
    ),
    ("init/src/", &[&["exit", "log", "paint"], &["cli"], &["complain"], &["cmd"]]),
];

/// A module uses only modules of lower layers of its crate.
pub fn layers(file: &SourceFile) -> Option<Violation> {
    let (inside, layers) =
        LAYERS.iter().find_map(|(root, layers)| Some((file.path.strip_prefix(root)?, layers)))?;
    let own = inside.split(['/', '.']).next().unwrap_or_default();
    // The crate's root declares everything, and what runs it stands above everything.
    if !file.is_rust() || ["lib", "main"].contains(&own) {
        return None;
    }
    let layer = |module: &str| layers.iter().position(|layer| layer.contains(&module));
    let Some(at) = layer(own) else {
        return Some(file.violation(0, format!("name module {own} in xtask/src/policy/layers.rs")));
    };
    let code = text::code_only(&text::without_tests(&file.text));
    for (number, line) in (1..).zip(code.lines()) {
        for used in used(line) {
            let allowed = used == own || layer(used).is_none_or(|below| below < at);
            if !allowed {
                let what = format!("{own} can't use {used}: it is of the same or a higher layer");
                return Some(file.violation(number, what));
            }
        }
    }
    None
}

/// The modules of its own crate that a line names.
fn used(line: &str) -> BTreeSet<&str> {
    let of_crate = line.split("crate::").skip(1);
    let name = |rest: &str| rest.find(|c: char| !c.is_ascii_lowercase() && c != '_');
    of_crate.map(|rest| rest.get(..name(rest).unwrap_or(rest.len())).unwrap_or_default()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(path: &str, text: &str) -> Option<usize> {
        let file = SourceFile { path: path.to_owned(), text: text.to_owned() };
        layers(&file).map(|violation| violation.line)
    }

    #[test]
    fn a_module_that_uses_a_higher_one_is_found() {
        let text = "//! Head.\nuse crate::plan::Groups;\n";
        assert_eq!(broken("core/src/nft/expr.rs", text), Some(2));
        assert_eq!(broken("core/src/status.rs", text), None);
        let text = "//! Head.\nfn f() -> crate::infer::Found {}\n";
        assert_eq!(broken("core/src/dialect/istio/mod.rs", text), Some(2));
        assert_eq!(broken("core/src/infer/mod.rs", text), None);
    }

    #[test]
    fn modules_of_one_layer_do_not_use_each_other() {
        let text = "//! Head.\nuse crate::sim::Program;\n";
        assert_eq!(broken("core/src/plan/mod.rs", text), Some(2));
    }

    #[test]
    fn a_module_that_the_table_does_not_have_is_found() {
        assert_eq!(broken("core/src/new_thing.rs", "//! Head.\n"), Some(0));
        assert_eq!(broken("core/src/lib.rs", "pub mod new_thing;\n"), None);
        assert_eq!(broken("tests/src/new_thing.rs", "//! Head.\n"), None);
    }

    #[test]
    fn tests_and_words_may_name_any_module() {
        let text = "//! As `crate::plan` does.\n#[cfg(test)]\nmod tests {\n    use crate::plan::Plan;\n}\n";
        assert_eq!(broken("core/src/value/mod.rs", text), None);
    }
}
