//! Whether a namespace has what a backend needs for a configuration, judged from facts alone.

use std::collections::BTreeSet;

use serde::Serialize;

/// What captures: iptables-nft, iptables-legacy, nftables or eBPF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// iptables on top of nftables.
    IptablesNft,
    /// iptables with its own kernel interface.
    IptablesLegacy,
    /// Native nftables, written in one transaction by netlink.
    Nftables,
    /// Programs of the node, which decide when a connection begins.
    Ebpf,
}

impl Backend {
    /// Every backend, in the order in which verdicts about them are given.
    pub const ALL: [Self; 4] =
        [Self::IptablesNft, Self::IptablesLegacy, Self::Nftables, Self::Ebpf];

    /// Those that carry rules out.
    pub const OF_RULES: [Self; 3] = [Self::IptablesNft, Self::IptablesLegacy, Self::Nftables];

    /// As `--backend` and JSON have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
            Self::Nftables => "nftables",
            Self::Ebpf => "ebpf",
        }
    }
}

/// Something that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked for, as it is printed: `capability NET_ADMIN`.
    pub what: String,
    /// Whether it was found; if not, `needed_by` and `made_of` say what can't work.
    pub there: bool,
    /// What to do where it is not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remedy: String,
    /// The backends that can't do without it.
    pub needed_by: Vec<Backend>,
    /// The backends that take it, too, but for which it can be had here: what to do says how.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub to_do_for: Vec<Backend>,
    /// What only some rules are made of, by the kernel's names; all of it is in rules that need this.
    /// Nothing where whatever is captured needs it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub made_of: Vec<String>,
}

/// What a configuration needs of each backend, to be compared with the findings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Use {
    /// The setting that it differs by from the one that is asked about; empty for that itself.
    pub setting: &'static str,
    /// What its rules are made of, for each backend that has rules.
    pub made_of: Vec<(Backend, BTreeSet<String>)>,
    /// Backends that can't carry it out anywhere, and why.
    pub refused: Vec<(Backend, String)>,
}

impl Use {
    /// What is missing for it.
    fn lacks(&self, findings: &[Finding], backend: Backend) -> Vec<String> {
        let made_of = self.made_of.iter().find(|(of, _)| *of == backend).map(|(_, all)| all);
        let takes = |finding: &&Finding| {
            let known = made_of.is_none_or(|all| finding.made_of.iter().all(|n| all.contains(n)));
            !finding.there && finding.needed_by.contains(&backend) && known
        };
        let lacks = findings.iter().filter(takes);
        let lacks = lacks.map(|f| format!("{}: {}", f.what, f.remedy));
        let refused = self.refused.iter().filter(|(of, _)| *of == backend);
        lacks.chain(refused.map(|(_, why)| why.clone())).collect()
    }
}

/// A setting that a backend can't carry out here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Without {
    /// As it is said on the command line: `--mode tproxy`.
    pub setting: &'static str,
    /// What is missing for it.
    pub missing: Vec<String>,
}

/// Whether a backend can work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Support {
    /// In JSON as [`Backend::as_str`] has it.
    pub backend: Backend,
    /// Whether nothing is missing that the configuration takes.
    pub works: bool,
    /// A line for each thing that is missing, with its remedy; empty where it works.
    pub missing: Vec<String>,
    /// What has to be done first, though nothing that it takes is missing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub first: Vec<String>,
    /// Settings that it can't carry out, though it can the rest.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<Without>,
}

/// What the findings mean for each backend: whether it can carry out what is asked about, and which of
/// other settings not.
pub fn verdicts(findings: &[Finding], asked: &Use, others: &[Use]) -> Vec<Support> {
    let verdict = |backend: Backend| {
        let missing = asked.lacks(findings, backend);
        let works = missing.is_empty();
        let without = |other: &Use| {
            let missing = other.lacks(findings, backend);
            (!missing.is_empty()).then_some(Without { setting: other.setting, missing })
        };
        let without = others.iter().filter(|_| works).filter_map(without).collect();
        let first = findings.iter().filter(|f| works && !f.there && f.to_do_for.contains(&backend));
        let first = first.map(|f| format!("{}: {}", f.what, f.remedy)).collect();
        Support { backend, works, missing, first, without }
    };
    Backend::ALL.into_iter().map(verdict).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_works_when_nothing_that_it_needs_is_missing() {
        let finding = |what: &str, there, needed_by: &[Backend]| Finding {
            what: what.to_owned(),
            there,
            remedy: "get it".to_owned(),
            needed_by: needed_by.to_vec(),
            to_do_for: Vec::new(),
            made_of: Vec::new(),
        };
        let findings = [
            finding("a", true, &Backend::ALL),
            finding("b", false, &[Backend::IptablesNft]),
            finding("c", false, &[]),
            Finding { to_do_for: vec![Backend::Ebpf], ..finding("d", false, &[]) },
            Finding { to_do_for: vec![Backend::Ebpf], ..finding("e", true, &[]) },
        ];
        let found = verdicts(&findings, &Use::default(), &[]);
        let works: Vec<bool> = found.iter().map(|v| v.works).collect();
        assert_eq!(works, [false, true, true, true]);
        assert_eq!(found[0].missing, ["b: get it"]);
        let first: Vec<_> = found.iter().flat_map(|v| &v.first).collect();
        assert_eq!(first, ["d: get it"]);
        assert_eq!(found[3].first.len(), 1);
    }

    #[test]
    fn what_only_some_settings_take_is_no_obstacle_for_the_others() {
        let lacks = |made_of: &str, backend| Finding {
            what: made_of.to_owned(),
            there: false,
            remedy: "load it".to_owned(),
            needed_by: vec![backend],
            to_do_for: Vec::new(),
            made_of: vec!["common".to_owned(), made_of.to_owned()],
        };
        let made_of = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect();
        let takes = |setting, parts: &[&str]| Use {
            setting,
            made_of: vec![(Backend::Nftables, made_of(parts))],
            refused: vec![],
        };
        let findings = [lacks("tproxy", Backend::Nftables)];
        let plain = takes("", &["common", "redir"]);
        let tproxy = takes("mode tproxy", &["common", "tproxy"]);
        let found = |asked: &Use, others: &[Use]| {
            verdicts(&findings, asked, others)
                .into_iter()
                .find(|v| v.backend == Backend::Nftables)
                .unwrap()
        };
        let verdict = found(&plain, std::slice::from_ref(&tproxy));
        assert!(verdict.works && verdict.missing.is_empty());
        let missing = vec!["tproxy: load it".to_owned()];
        assert_eq!(verdict.without, [Without { setting: "mode tproxy", missing: missing.clone() }]);
        let verdict = found(&tproxy, &[]);
        assert_eq!((verdict.works, verdict.missing), (false, missing));
        let refused = Use { refused: vec![(Backend::Ebpf, "no".to_owned())], ..plain };
        let found = verdicts(&[], &refused, &[]);
        assert!(found.iter().all(|v| v.works == (v.backend != Backend::Ebpf)));
    }
}
