//! Killed at any moment: the pod stays captured, and the next run, whatever it is for, finishes.

use anyhow::Result;
use millrace_tests::capture::Variant::{Legacy, Nft};
use millrace_tests::transition::Way::{Netlink, Programs};
use millrace_tests::transition::{Goal, NOTHING, Transition, Way};

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

/// Another mesh: what Linkerd's proxy-init does, by programs of iptables-legacy unless told otherwise.
const LINKERD: Goal = Goal(&["linkerd", "-p", "15006", "-o", "15001", "-u", "1337"]);

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

/// The same in Millrace's own table, with policy routing.
const OWN: Goal = Goal(&["apply", "--backend", "nftables", "--mode", "tproxy", "--dns", "all"]);

/// Verify that the pod is captured, by the one or the other, all the way from one mesh to another.
#[test]
fn one_mesh_to_another_netlink() -> Result<()> {
    from(ISTIO, LINKERD, TPROXY)(Netlink).killed_between_messages()?;
    from(LINKERD, ISTIO, REDIRECT)(Netlink).killed_between_messages()?;
    from(LINKERD, NOTHING, ISTIO)(Netlink).killed_between_messages()
}

#[test]
fn one_mesh_to_another_legacy() -> Result<()> {
    from(ISTIO, LINKERD, TPROXY)(Programs(Legacy)).killed_between_tables()?;
    from(LINKERD, ISTIO, REDIRECT)(Programs(Legacy)).killed_between_tables()
}

const fn from(old: Goal, new: Goal, third: Goal) -> impl Fn(Way) -> Transition {
    move |way| Transition { old, new, third, from: way, way }
}

/// From one way to write iptables' rules to another.
fn other_way(from: Way, way: Way) -> Transition {
    Transition { old: ISTIO, new: TPROXY, third: THIRD, from, way }
}

/// Verify the same on the way from iptables to native nftables and back: no program is run on the
/// way there but to take away what was.
fn to_native_and_back(way: Way) -> Result<()> {
    let to = Transition { old: ISTIO, new: NATIVE, third: TPROXY, from: way, way };
    to.killed_between_messages()?;
    let back = Transition { old: NATIVE, new: TPROXY, third: NATIVE, from: way, way };
    back.killed_between_messages()?;
    if way != Netlink {
        back.killed_between_tables()?;
    }
    Ok(())
}

#[test]
fn nft_to_native() -> Result<()> {
    to_native_and_back(Programs(Nft))
}

#[test]
fn legacy_to_native() -> Result<()> {
    to_native_and_back(Programs(Legacy))
}

#[test]
fn netlink_to_native() -> Result<()> {
    to_native_and_back(Netlink)
}

/// Verify the same where nothing but native nftables is there at any time.
#[test]
fn native_alone() -> Result<()> {
    for (old, new) in [(NOTHING, NATIVE), (NATIVE, OWN), (OWN, NATIVE), (OWN, NOTHING)] {
        from(old, new, OWN)(Netlink).killed_between_messages()?;
    }
    Ok(())
}

#[test]
fn nft_to_legacy() -> Result<()> {
    other_way(Programs(Nft), Programs(Legacy)).killed_between_tables()
}

#[test]
fn legacy_to_nft() -> Result<()> {
    other_way(Programs(Legacy), Programs(Nft)).killed_between_tables()
}

#[test]
fn nft_to_netlink() -> Result<()> {
    other_way(Programs(Nft), Netlink).killed_between_messages()
}

#[test]
fn netlink_to_nft() -> Result<()> {
    other_way(Netlink, Programs(Nft)).killed_between_tables()
}

macro_rules! transitions {
    ($($name:ident: $old:expr => $new:expr, $third:expr;)*) => {
        $(mod $name {
            use super::*;

            #[test]
            fn between_tables_legacy() -> Result<()> {
                from($old, $new, $third)(Programs(Legacy)).killed_between_tables()
            }

            #[test]
            fn between_messages_nft() -> Result<()> {
                from($old, $new, $third)(Programs(Nft)).killed_between_messages()
            }

            #[test]
            fn between_messages_netlink() -> Result<()> {
                from($old, $new, $third)(Netlink).killed_between_messages()
            }

            #[test]
            fn between_messages_legacy() -> Result<()> {
                from($old, $new, $third)(Programs(Legacy)).killed_between_messages()
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

/// Programs of iptables-nft write what is wanted, and netlink takes away what is not.
macro_rules! by_programs {
    ($($name:ident: $old:expr => $new:expr, $third:expr;)*) => {
        $(#[test]
        fn $name() -> Result<()> {
            from($old, $new, $third)(Programs(Nft)).killed_between_tables()
        })*
    };
}

by_programs! {
    nothing_to_tproxy_between_tables_nft: NOTHING => TPROXY, ISTIO;
    nothing_to_redirect_between_tables_nft: NOTHING => ISTIO, TPROXY;
    istio_to_tproxy_between_tables_nft: ISTIO => TPROXY, THIRD;
    tproxy_to_other_tproxy_between_tables_nft: TPROXY => THIRD, REDIRECT;
    tproxy_to_redirect_between_tables_nft: TPROXY => ISTIO, REDIRECT;
}
