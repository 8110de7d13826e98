//! Which backend is used, and how its rules are written.

use std::fmt;

use serde::Serialize;

use super::target::FamilyState;
use crate::observed::{Observed, Variant};
use crate::ownership::Footprint;
use crate::preflight::Backend;
use crate::value::{Family, Groups};

/// A backend, and whether its rules are written by programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Method {
    /// What holds the rules: never eBPF, which has none.
    pub backend: Backend,
    /// Whether rules are written by the programs of iptables; else they are by netlink.
    pub programs: bool,
}

impl Method {
    /// Native nftables, written by netlink: no binaries are called.
    pub const NFTABLES: Self = Self { backend: Backend::Nftables, programs: false };
    /// iptables-nft, whose tables are written by netlink.
    pub const IPTABLES_NFT: Self = Self { backend: Backend::IptablesNft, programs: false };
    /// iptables-nft, whose tables its binaries write.
    pub const NFT_PROGRAMS: Self = Self { backend: Backend::IptablesNft, programs: true };
    /// iptables-legacy, which only its programs can write.
    pub const LEGACY_PROGRAMS: Self = Self { backend: Backend::IptablesLegacy, programs: true };
}

/// Which backend was asked for, and whether binaries are to write its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preference {
    /// Whatever fits, native nftables before iptables.
    Auto,
    /// iptables-nft or iptables-legacy: the one that holds rules, else the one that works.
    Iptables,
    /// The programs of this iptables.
    Binaries(Variant),
    /// This backend, by whatever means.
    Backend(Backend),
}

/// What is used, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The backend, and whether binaries write its rules.
    pub method: Method,
    /// Why it was chosen, as it is printed behind the name: "asked for".
    pub why: &'static str,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.method.backend.as_str())?;
        if self.method == Method::NFT_PROGRAMS {
            f.write_str(" by its programs")?;
        }
        write!(f, ": {}", self.why)
    }
}

/// No backend can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoBackend {
    /// The programs that were asked for are not there.
    #[error(
        "{0} was asked for, but its programs ({0}-save, {0}-restore) are not installed: install \
         the package iptables, or ask for the other one"
    )]
    Forced(Variant),
    /// The kernel lacks what was asked for.
    #[error(
        "{} was asked for, but the kernel has no nf_tables: load the module nf_tables \
         (CONFIG_NF_TABLES), or use iptables-legacy", .0.as_str()
    )]
    NoNfTables(Backend),
    /// The kernel can't, and no program is there.
    #[error(
        "the kernel has no nf_tables, and no iptables is installed: load the module nf_tables \
         (CONFIG_NF_TABLES), or install the package iptables for iptables-legacy"
    )]
    Nothing,
}

/// Choose: what is asked for; else what holds rules of ours already, so that a second run never
/// changes sides; else legacy if it holds rules of anybody and iptables is asked for; else
/// `nf_tables` if the kernel has it; else legacy. Looking has no effect: nothing is written to find
/// out. `has` says whether the host can work with some means, and is asked only as far as needed; what
/// was tried in vain is in `avoid`.
///
/// # Errors
/// When none can be used, what to install or load.
pub fn choose(
    observed: &Observed,
    preference: Preference,
    has: &mut dyn FnMut(Method) -> bool,
    footprints: &[Footprint],
    avoid: &[Method],
) -> Result<Choice, NoBackend> {
    let groups = Groups::new();
    let holds = |variant| {
        Family::ALL.iter().any(|family| {
            observed
                .holding(variant, *family)
                .is_some_and(|d| !FamilyState::observed(d, footprints, &groups).is_empty())
        })
    };
    let has_rules = |variant| {
        observed
            .holdings
            .iter()
            .filter(|h| h.variant == variant)
            .any(|h| h.dump.tables.iter().flat_map(|t| &t.chains).any(|c| !c.rules.is_empty()))
    };
    let native = observed.captures_natively();
    let (auto, iptables) = (
        preference == Preference::Auto,
        matches!(preference, Preference::Auto | Preference::Iptables),
    );
    let only = |backend| preference == Preference::Backend(backend);
    let (nft, legacy) = (only(Backend::IptablesNft), only(Backend::IptablesLegacy));
    let programs = |variant| preference == Preference::Binaries(variant);
    let asked = "asked for";
    let ours = "it holds rules of an earlier run";
    let kernel = "the kernel has nf_tables";
    let order: [(Method, bool, &'static str); 13] = [
        (Method::NFTABLES, only(Backend::Nftables), asked),
        (Method::NFT_PROGRAMS, programs(Variant::Nft), asked),
        (Method::LEGACY_PROGRAMS, legacy || programs(Variant::Legacy), asked),
        (Method::IPTABLES_NFT, nft, asked),
        (Method::NFT_PROGRAMS, nft, "asked for, and the kernel lacks what netlink needs"),
        (Method::NFTABLES, auto && native, ours),
        (Method::IPTABLES_NFT, iptables && holds(Variant::Nft), ours),
        (Method::NFT_PROGRAMS, iptables && holds(Variant::Nft), ours),
        (Method::LEGACY_PROGRAMS, iptables && holds(Variant::Legacy), ours),
        (
            Method::LEGACY_PROGRAMS,
            preference == Preference::Iptables && has_rules(Variant::Legacy),
            "it holds rules of others",
        ),
        (if auto { Method::NFTABLES } else { Method::IPTABLES_NFT }, iptables, kernel),
        (Method::IPTABLES_NFT, auto, "the kernel lacks what native nftables needs"),
        (Method::NFT_PROGRAMS, iptables, "the kernel lacks what netlink needs"),
    ];
    let last = (Method::LEGACY_PROGRAMS, iptables, "nf_tables can't be used here");
    order
        .into_iter()
        .chain([last])
        .find(|(method, applies, _)| *applies && !avoid.contains(method) && has(*method))
        .map(|(method, _, why)| Choice { method, why })
        .ok_or(match preference {
            Preference::Backend(backend @ (Backend::Nftables | Backend::IptablesNft)) => {
                NoBackend::NoNfTables(backend)
            }
            Preference::Binaries(Variant::Nft) if !has(Method::IPTABLES_NFT) => {
                NoBackend::NoNfTables(Backend::IptablesNft)
            }
            Preference::Binaries(variant) => NoBackend::Forced(variant),
            Preference::Backend(Backend::IptablesLegacy) => NoBackend::Forced(Variant::Legacy),
            // eBPF carries no rules out; who asks for it does not come here.
            Preference::Auto | Preference::Iptables | Preference::Backend(Backend::Ebpf) => {
                NoBackend::Nothing
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::FOOTPRINTS;
    use crate::iptables::Dump;
    use crate::observed::Holding;

    const OURS: &str = "*nat\n:ISTIO_OUTPUT - [0:0]\n-A OUTPUT -j ISTIO_OUTPUT\nCOMMIT\n";
    const OTHERS: &str = "*nat\n-A OUTPUT -d 10.9.9.9/32 -j ACCEPT\nCOMMIT\n";
    const EVERYTHING: [Method; 4] =
        [Method::NFTABLES, Method::IPTABLES_NFT, Method::NFT_PROGRAMS, Method::LEGACY_PROGRAMS];

    fn holding(variant: Variant, text: &str) -> Observed {
        let dump = Dump::parse(text).unwrap();
        let holdings = vec![Holding { variant, family: Family::V4, dump }];
        Observed { holdings, ..Observed::default() }
    }

    fn native() -> Observed {
        let native = vec![("millrace".to_owned(), Vec::new())];
        Observed { native, ..Observed::default() }
    }

    fn chosen(
        observed: &Observed,
        preference: Preference,
        has: &[Method],
    ) -> Result<Method, NoBackend> {
        let choice =
            choose(observed, preference, &mut |method| has.contains(&method), FOOTPRINTS, &[]);
        choice.map(|choice| choice.method)
    }

    #[test]
    fn an_empty_namespace_gets_nf_tables_if_the_kernel_has_it() {
        let empty = Observed::default();
        assert_eq!(chosen(&empty, Preference::Auto, &EVERYTHING), Ok(Method::NFTABLES));
        assert_eq!(chosen(&empty, Preference::Iptables, &EVERYTHING), Ok(Method::IPTABLES_NFT));
        let legacy = [Method::LEGACY_PROGRAMS];
        assert_eq!(chosen(&empty, Preference::Auto, &legacy), Ok(Method::LEGACY_PROGRAMS));
        assert_eq!(chosen(&empty, Preference::Iptables, &legacy), Ok(Method::LEGACY_PROGRAMS));
        assert_eq!(chosen(&empty, Preference::Auto, &[]), Err(NoBackend::Nothing));
    }

    #[test]
    fn a_later_run_never_changes_sides() {
        for preference in [Preference::Auto, Preference::Iptables] {
            let nft = chosen(&holding(Variant::Nft, OURS), preference, &EVERYTHING);
            assert_eq!(nft, Ok(Method::IPTABLES_NFT));
            let legacy = chosen(&holding(Variant::Legacy, OURS), preference, &EVERYTHING);
            assert_eq!(legacy, Ok(Method::LEGACY_PROGRAMS));
        }
        assert_eq!(chosen(&native(), Preference::Auto, &EVERYTHING), Ok(Method::NFTABLES));
        assert_eq!(chosen(&native(), Preference::Iptables, &EVERYTHING), Ok(Method::IPTABLES_NFT));
    }

    #[test]
    fn legacy_rules_of_others_keep_iptables_there_but_not_native_rules() {
        let others = holding(Variant::Legacy, OTHERS);
        assert_eq!(chosen(&others, Preference::Iptables, &EVERYTHING), Ok(Method::LEGACY_PROGRAMS));
        assert_eq!(chosen(&others, Preference::Auto, &EVERYTHING), Ok(Method::NFTABLES));
    }

    #[test]
    fn what_is_asked_for_is_used_or_refused() {
        let there = holding(Variant::Legacy, OURS);
        for (preference, method) in [
            (Preference::Backend(Backend::Nftables), Method::NFTABLES),
            (Preference::Backend(Backend::IptablesNft), Method::IPTABLES_NFT),
            (Preference::Backend(Backend::IptablesLegacy), Method::LEGACY_PROGRAMS),
            (Preference::Binaries(Variant::Nft), Method::NFT_PROGRAMS),
            (Preference::Binaries(Variant::Legacy), Method::LEGACY_PROGRAMS),
        ] {
            assert_eq!(chosen(&there, preference, &EVERYTHING), Ok(method));
            assert!(chosen(&there, preference, &[]).is_err());
        }
        let no_programs = [Method::NFTABLES, Method::IPTABLES_NFT];
        let forced = chosen(&there, Preference::Binaries(Variant::Nft), &no_programs);
        assert_eq!(forced, Err(NoBackend::Forced(Variant::Nft)));
        let absent = chosen(&there, Preference::Binaries(Variant::Nft), &[]);
        assert_eq!(absent, Err(NoBackend::NoNfTables(Backend::IptablesNft)));
    }

    #[test]
    fn what_was_tried_in_vain_is_not_tried_again() {
        let empty = Observed::default();
        let next = |preference, avoid: &[Method]| {
            choose(&empty, preference, &mut |_| true, FOOTPRINTS, avoid).unwrap().method
        };
        assert_eq!(next(Preference::Auto, &[Method::NFTABLES]), Method::IPTABLES_NFT);
        assert_eq!(next(Preference::Iptables, &[Method::IPTABLES_NFT]), Method::NFT_PROGRAMS);
        let of_nft = [Method::NFTABLES, Method::IPTABLES_NFT, Method::NFT_PROGRAMS];
        assert_eq!(next(Preference::Auto, &of_nft), Method::LEGACY_PROGRAMS);
        let error = choose(
            &empty,
            Preference::Backend(Backend::Nftables),
            &mut |_| true,
            FOOTPRINTS,
            &[Method::NFTABLES],
        );
        assert!(error.is_err());
    }
}
