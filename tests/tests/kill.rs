//! Killed between any two effects: each table is the old one or the new one, connections are
//! captured all the time, and the next run puts everything right.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use millrace_tests::capture::{Variant, millrace};
use millrace_tests::cases::{Attempt, Kind, app, outside};
use millrace_tests::killing::{Ended, Killer, Moment};
use millrace_tests::process::dial;
use millrace_tests::snapshot::{Snapshot, rules_text};
use millrace_tests::topology::{Layout, Spot, Stack, Topology};
use millrace_tests::wire::{Dial, Outcome, Proto};

/// A command line; none for a namespace that nobody has touched.
type Flags = &'static [&'static str];

const NOTHING: Flags = &["cleanup"];
const REDIRECT: Flags =
    &["istio-iptables", "-u", "1337", "-i", "*", "-b", "*", "-d", "15090", "--reconcile"];
const TPROXY_DNS: Flags = &[
    "istio-iptables",
    "-u",
    "1337",
    "-i",
    "*",
    "-b",
    "*",
    "-m",
    "TPROXY",
    "--redirect-dns",
    "--capture-all-dns",
    "--drop-invalid",
    "--reconcile",
];
const OTHER_MARK: Flags = &[
    "istio-iptables",
    "-u",
    "1337",
    "-i",
    "*",
    "-b",
    "*",
    "-m",
    "TPROXY",
    "-t",
    "77",
    "-r",
    "99",
    "-o",
    "5000",
    "--reconcile",
];
const OWN: Flags = &["apply", "--dns", "all", "--exclude-outbound-ports", "5000"];

/// The command line with a variant, if it writes anything.
fn args(flags: Flags, variant: Variant) -> Vec<&'static str> {
    let which = match flags.first() {
        Some(&"istio-iptables") => "--force-iptables-binary",
        Some(&"apply") => "--iptables",
        _ => return flags.to_vec(),
    };
    [flags, &[which, variant.as_str()]].concat()
}

struct Stage {
    topology: Topology,
    killer: Killer,
}

impl Stage {
    fn new() -> Result<Self> {
        let layout = Layout { transparent: true, ..Layout::default() };
        Ok(Self { topology: Topology::new(Stack::Dual, layout)?, killer: Killer::new()? })
    }

    /// Run to the end, and see what is there then.
    fn settle(&self, args: &[&str]) -> Result<Snapshot> {
        let output = self.topology.pod.output(&mut millrace(args)?)?;
        ensure!(output.status.success(), "{args:?}: {output:?}");
        self.look()
    }

    fn look(&self) -> Result<Snapshot> {
        Ok(Snapshot::take(&self.topology.pod)?.without_counters())
    }

    /// Whether a new connection is answered by the proxy.
    fn is_captured(&self, attempt: &Attempt) -> Result<bool> {
        for family in self.topology.stack.families() {
            let Some(to) = attempt.to.ip(*family) else { continue };
            let request = Dial {
                identity: attempt.client.identity,
                proto: if attempt.kind == Kind::Tcp { Proto::Tcp } else { Proto::Udp },
                from: None,
                from_port: None,
                transparent_mark: None,
                to: (to, attempt.port).into(),
                timeout_ms: 3000,
            };
            let from = match attempt.client.place {
                millrace_tests::cases::Place::Pod => &self.topology.pod,
                _ => &self.topology.outside,
            };
            match dial(from, &request)? {
                Outcome::Answered { answer, .. } if answer.name == "proxy" => {}
                _ => return Ok(false),
            }
        }
        Ok(true)
    }
}

/// The rules of each table of each family and variant.
fn tables(snapshot: &Snapshot) -> BTreeMap<String, BTreeMap<&str, &Vec<String>>> {
    let mut tables: BTreeMap<String, BTreeMap<&str, &Vec<String>>> = BTreeMap::new();
    for (name, rules) in &snapshot.chains {
        if let Some((table, chain)) = name.rsplit_once(' ') {
            tables.entry(table.to_owned()).or_default().insert(chain, rules);
        }
    }
    tables
}

/// Each table is the old one or the new one, and so is each line of routing and addresses.
fn old_or_new(now: &Snapshot, old: &Snapshot, new: &Snapshot) -> Result<()> {
    let (now_tables, old_tables, new_tables) = (tables(now), tables(old), tables(new));
    let names: BTreeSet<&String> =
        now_tables.keys().chain(old_tables.keys()).chain(new_tables.keys()).collect();
    for name in names {
        let table = now_tables.get(name);
        let good = table == old_tables.get(name) || table == new_tables.get(name);
        ensure!(good, "{name} is neither the old nor the new table: {table:?}");
    }
    for (now, old, new) in [
        (&now.rules, &old.rules, &new.rules),
        (&now.routes, &old.routes, &new.routes),
        (&now.addresses, &old.addresses, &new.addresses),
    ] {
        for line in now {
            ensure!(old.contains(line) || new.contains(line), "{line:?} is new and old to nobody");
        }
        for line in old.iter().filter(|line| new.contains(line)) {
            ensure!(now.contains(line), "{line:?} was to stay");
        }
    }
    Ok(())
}

/// Kill the way from one configuration to the other at every moment there is.
fn kill_everywhere(old: (Flags, Variant), new: (Flags, Variant)) -> Result<()> {
    let stage = Stage::new()?;
    let third = args(&["apply", "--inbound-port", "15106", "--outbound-port", "15101"], old.1);
    let (old, new) = (args(old.0, old.1), args(new.0, new.1));
    let after_third = stage.settle(&third)?;
    let after_nothing = stage.settle(NOTHING)?;
    let after_new = stage.settle(&new)?;
    let after_old = stage.settle(&old)?;
    let connections = [app().tcp(Spot::Service, 80), outside().tcp(Spot::Pod, 8080)];
    let both = old[0] != "cleanup" && new[0] != "cleanup";
    let mut killed = 0;
    for kind in [Moment::Message, Moment::Commit] {
        for n in 1.. {
            let moment = kind(n);
            let what = || format!("{old:?} to {new:?}, killed at {moment:?}");
            stage.settle(&old)?;
            match stage.killer.run(&stage.topology.pod, &new, moment)? {
                Ended::Killed => killed += 1,
                Ended::Itself(code, said) => {
                    ensure!(code == 0, "{}: {code}: {said}", what());
                    break;
                }
            }
            let now = stage.look()?;
            if let Err(error) = old_or_new(&now, &after_old, &after_new) {
                panic!("{}: {error}\n{}", what(), rules_text(&stage.topology.pod)?);
            }
            for connection in connections.iter().filter(|_| both) {
                let captured = stage.is_captured(connection)?;
                assert!(
                    captured,
                    "{}: {connection:?}\n{}",
                    what(),
                    rules_text(&stage.topology.pod)?
                );
            }
            // Each of these is the next run after some of the moments.
            let nothing = NOTHING.to_vec();
            let (next, wanted) = match n % 4 {
                0 => (&new, &after_new),
                1 => (&third, &after_third),
                2 => (&old, &after_old),
                _ => (&nothing, &after_nothing),
            };
            let after = stage.settle(next)?;
            assert_eq!(wanted.differences(&after), "", "{}, then {next:?}", what());
        }
    }
    // Otherwise nothing was tested: both kinds of moment came.
    assert!(killed >= 10, "killed only {killed} times");
    Ok(())
}

macro_rules! ways {
    ($($name:ident: $old:ident $old_variant:ident to $new:ident $new_variant:ident;)*) => {
        $(
            #[test]
            fn $name() -> Result<()> {
                kill_everywhere(($old, Variant::$old_variant), ($new, Variant::$new_variant))
            }
        )*
    };
}

ways! {
    first_apply_nft: NOTHING Nft to TPROXY_DNS Nft;
    first_apply_legacy: NOTHING Legacy to TPROXY_DNS Legacy;
    more_features_nft: REDIRECT Nft to TPROXY_DNS Nft;
    more_features_legacy: REDIRECT Legacy to TPROXY_DNS Legacy;
    fewer_features_nft: TPROXY_DNS Nft to REDIRECT Nft;
    fewer_features_legacy: TPROXY_DNS Legacy to REDIRECT Legacy;
    another_mark_nft: TPROXY_DNS Nft to OTHER_MARK Nft;
    another_mark_legacy: TPROXY_DNS Legacy to OTHER_MARK Legacy;
    another_layout_nft: OTHER_MARK Nft to OWN Nft;
    another_layout_legacy: OWN Legacy to OTHER_MARK Legacy;
    another_variant_nft: TPROXY_DNS Legacy to REDIRECT Nft;
    another_variant_legacy: REDIRECT Nft to TPROXY_DNS Legacy;
    cleanup_nft: TPROXY_DNS Nft to NOTHING Nft;
    cleanup_legacy: TPROXY_DNS Legacy to NOTHING Legacy;
}
