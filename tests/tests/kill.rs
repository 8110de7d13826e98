//! Killed at any moment: the pod stays captured, and the next run, whatever it is for, finishes.

use anyhow::Result;
use millrace_tests::capture::Variant::{self, Legacy, Nft};
use millrace_tests::transition::{Goal, NOTHING, Transition};

/// What istio-iptables does for a sidecar.
const ISTIO: Goal = Goal(&[
    "istio-iptables",
    "-p",
    "15001",
    "-z",
    "15006",
    "-u",
    "1337",
    "-m",
    "REDIRECT",
    "-i",
    "*",
    "-b",
    "*",
    "-d",
    "15090,15021,15020",
    "--redirect-dns",
    "--dual-stack",
]);

/// TPROXY, every DNS query, and other ports: rules in three tables and policy routing.
const TPROXY: Goal = Goal(&[
    "apply",
    "--mode",
    "tproxy",
    "--dns",
    "all",
    "--outbound-port",
    "15101",
    "--inbound-port",
    "15106",
]);

/// A third one: names as the first, routing as the second, with another mark and table.
const THIRD: Goal = Goal(&[
    "istio-iptables",
    "-p",
    "15101",
    "-z",
    "15106",
    "-u",
    "1338",
    "-m",
    "TPROXY",
    "-i",
    "*",
    "-b",
    "80,8080",
    "-t",
    "4242",
    "-r",
    "200",
    "--dual-stack",
]);

/// Millrace's own rules, without anything that the others have beside.
const REDIRECT: Goal = Goal(&["apply", "--exclude-inbound-ports", "22"]);

/// Native nftables: one transaction instead of the tables of iptables.
const NATIVE: Goal = Goal(&[
    "istio-iptables",
    "-p",
    "15001",
    "-z",
    "15006",
    "-u",
    "1337",
    "-i",
    "*",
    "-b",
    "*",
    "--redirect-dns",
    "--capture-all-dns",
    "--native-nftables",
    "--dual-stack",
]);

const fn from(old: Goal, new: Goal, third: Goal) -> impl Fn(Variant) -> Transition {
    move |variant| Transition { old, new, third, from: variant, variant }
}

/// Verify the same where the rules go from one iptables to the other on the way.
fn other_iptables(from: Variant, variant: Variant) -> Transition {
    Transition { old: ISTIO, new: TPROXY, third: THIRD, from, variant }
}

/// Verify the same on the way from iptables to native nftables and back: no program is run on the
/// way there but to take away what was.
#[test]
fn iptables_to_native() -> Result<()> {
    for variant in Variant::ALL {
        let to = Transition { old: ISTIO, new: NATIVE, third: TPROXY, from: variant, variant };
        to.killed_between_messages()?;
        let back = Transition { old: NATIVE, new: TPROXY, third: NATIVE, from: variant, variant };
        back.killed_between_messages()?;
        back.killed_between_tables()?;
    }
    Ok(())
}

#[test]
fn nft_to_legacy() -> Result<()> {
    other_iptables(Nft, Legacy).killed_between_tables()
}

#[test]
fn legacy_to_nft() -> Result<()> {
    other_iptables(Legacy, Nft).killed_between_tables()
}

macro_rules! transitions {
    ($($name:ident: $old:expr => $new:expr, $third:expr;)*) => {
        $(mod $name {
            use super::*;

            #[test]
            fn between_tables_nft() -> Result<()> {
                from($old, $new, $third)(Nft).killed_between_tables()
            }

            #[test]
            fn between_tables_legacy() -> Result<()> {
                from($old, $new, $third)(Legacy).killed_between_tables()
            }

            #[test]
            fn between_messages_nft() -> Result<()> {
                from($old, $new, $third)(Nft).killed_between_messages()
            }

            #[test]
            fn between_messages_legacy() -> Result<()> {
                from($old, $new, $third)(Legacy).killed_between_messages()
            }
        })*
    };
}

transitions! {
    nothing_to_tproxy: NOTHING => TPROXY, ISTIO;
    nothing_to_redirect: NOTHING => ISTIO, TPROXY;
    istio_to_tproxy: ISTIO => TPROXY, THIRD;
    tproxy_to_other_tproxy: TPROXY => THIRD, REDIRECT;
    tproxy_to_redirect: TPROXY => ISTIO, REDIRECT;
    istio_to_nothing: ISTIO => NOTHING, TPROXY;
    tproxy_to_nothing: TPROXY => NOTHING, ISTIO;
}
