//! Whether a namespace has what a backend needs, judged from facts alone.

use serde::Serialize;

/// What carries rules out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// iptables on top of nftables.
    IptablesNft,
    /// iptables with its own kernel interface.
    IptablesLegacy,
    /// nftables, by netlink.
    Nftables,
    /// Programs of the node, which decide when a connection begins.
    Ebpf,
}

impl Backend {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::IptablesNft, Self::IptablesLegacy, Self::Nftables, Self::Ebpf];

    /// Those that carry rules out.
    pub const OF_RULES: [Self; 3] = [Self::IptablesNft, Self::IptablesLegacy, Self::Nftables];

    /// The name.
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
    /// What.
    pub what: String,
    /// Whether it is there.
    pub there: bool,
    /// What to do where it is not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remedy: String,
    /// The backends that can't do without it.
    pub needed_by: Vec<Backend>,
}

/// Whether a backend can work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The backend.
    pub backend: Backend,
    /// Whether it can.
    pub works: bool,
    /// What is missing.
    pub missing: Vec<String>,
}

/// What the findings mean for each backend.
pub fn verdicts(findings: &[Finding]) -> Vec<Verdict> {
    let verdict = |backend: Backend| {
        let lacks = findings.iter().filter(|f| !f.there && f.needed_by.contains(&backend));
        let missing: Vec<String> = lacks.map(|f| format!("{}: {}", f.what, f.remedy)).collect();
        Verdict { backend, works: missing.is_empty(), missing }
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
        };
        let found = verdicts(&[
            finding("a", true, &Backend::ALL),
            finding("b", false, &[Backend::IptablesNft]),
            finding("c", false, &[]),
        ]);
        let works: Vec<bool> = found.iter().map(|v| v.works).collect();
        assert_eq!(works, [false, true, true, true]);
        assert_eq!(found[0].missing, ["b: get it"]);
    }
}
