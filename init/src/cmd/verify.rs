//! `millrace verify`

use std::net::IpAddr;

use anyhow::{Context as _, Result, bail};
use millrace_core::ebpf::extended;
use millrace_core::facts::HostFacts;
use millrace_core::policy::CapturePolicy;
use millrace_core::ruleset::Ruleset;
use millrace_core::sim::{Identity, Namespace};
use millrace_core::status::holds_rules;
use millrace_core::verify::{Asked, Compared, Finding, Seen, checks, detours};
use millrace_host::engine::Session;
use millrace_host::observe::Depth;
use millrace_host::progress::Progress;
use millrace_host::verify::{Prover, free_port};
use millrace_host::{exec, surroundings};
use nix::unistd::{getegid, geteuid};
use serde_json::json;

use super::expected::ExpectedCapture;
use super::held::Held;
use super::output::{print_json, print_painted, warn};
use super::pods::{self, Described};
use super::rules::Rules;
use super::{config, namespace, reported, rules};
use crate::cli::node::Meant;
use crate::cli::own::Verify;
use crate::exit::Exit;
use crate::paint;

pub(crate) fn verify(verify: &Verify) -> Result<Exit> {
    let (mut session, facts) = namespace::open(&verify.common.place)?;
    let expected = expected(verify, &mut session, &facts)?;
    // Connections are made by users of the pod.
    namespace::as_owner(&verify.common.place)?;
    let addresses: Vec<_> = facts.usable_addresses().collect();
    // The proof has a link of its own, which is behind no bridge.
    let bypass = match expected.routing.marked {
        Some(route) if route.transparent => {
            session.refuse_bridges(addresses.iter().any(IpAddr::is_ipv6)).err()
        }
        _ => None,
    };
    let bypass = bypass.map(|error| error.to_string());
    let prover = Prover::open(&addresses, verify.patience);
    // From here on nothing ends the run before the prover is closed.
    let findings = prove(&prover, &expected, &facts, &addresses);
    let someone = !prover.outside().is_empty();
    let nobody = prover.nobody_outside().map(str::to_owned);
    let closed = prover.close();
    let (findings, tried_in) = findings?;
    // Its own link is gone: what is compared is the pod as it is.
    let read = real(verify, &expected);
    let mut around: Vec<String> = bypass.iter().cloned().collect();
    let passes = facts.uncaptured_v6().filter(|_| !expected.policy.ipv6.value);
    around.extend(passes.map(str::to_owned));
    let absent = facts.absent_v6(&expected.policy.ipv6);
    around.extend(absent.clone());
    let mut compared = Compared::default();
    match &read {
        Ok(real) => {
            if someone {
                let checks: Vec<_> = findings.iter().map(|finding| &finding.check).collect();
                around.extend(detours(&real.program, &tried_in, Prover::LINK, &checks));
            }
            compared = expected.compared(real);
            around.extend(compared.beside.take());
            around.extend(compared.unclear.take());
        }
        Err(error) => around.push(format!(
            "whether rules treat other connections differently is not known: {}",
            reported(error)
        )),
    }
    for text in &around {
        warn(text);
    }
    if let Some(why) = &nobody {
        warn(&format!("inbound connections from outside are not tried: {why}"));
    }
    if let Err(why) = closed {
        warn(&format!("the link to outside ends with this process: {why}"));
    }
    let count = |passed| findings.iter().filter(|f| f.passed == passed).count();
    let (good, bad, skipped) = (count(Some(true)), count(Some(false)), count(None));
    // What is as it would be without any capture proves none.
    let (captured, others): (Vec<_>, Vec<_>) = findings.iter().partition(|f| f.check.is_captured());
    let telling = if captured.is_empty() { others } else { captured };
    let is_captured = telling.iter().any(|finding| finding.passed == Some(true));
    let is_proved = bad == 0 && is_captured && bypass.is_none() && compared.wrong.is_empty();
    let in_part = skipped > 0 || nobody.is_some() || absent.is_some();
    if verify.common.json {
        print_json(&json!({
            "verified": is_proved,
            "inPart": in_part,
            "passed": good,
            "failed": bad,
            "skipped": skipped,
            "nobodyOutside": nobody,
            "notMet": around,
            "otherwise": compared.wrong,
            "kindsOtherwise": compared.count,
            "connections": serde_json::to_value(&findings)?,
        }))?;
    } else {
        let tried = |f: &&Finding| !matches!(f.result, Seen::NotTried { .. });
        let unclear = findings.iter().filter(|f| f.passed.is_none()).filter(tried).count();
        let skipped = skipped - unclear;
        let proved = match is_proved {
            true if in_part => "verified in part",
            true => "verified",
            false => "not verified",
        };
        let mut text = format!("{proved}: {good} as expected, {bad} not, {skipped} not tried");
        if unclear > 0 {
            text.push_str(&format!(", {unclear} can't be told"));
        }
        if nobody.is_some() {
            text.push_str(", nothing from outside");
        }
        match (compared.count, compared.wrong.len()) {
            (0, _) => {}
            (1, _) => text.push_str("; rules treat other connections differently"),
            (all, reported) if all == reported => {
                text.push_str(&format!("; rules treat {all} kinds of connections differently"));
            }
            (all, reported) => text.push_str(&format!(
                "; rules treat {all} kinds of connections differently, of which {reported} are told"
            )),
        }
        text.push('\n');
        let width = findings.iter().map(|finding| finding.check.to_string().chars().count()).max();
        for finding in &findings {
            text.push_str(&format!("{finding:0$}\n", width.unwrap_or_default()));
        }
        for one in &compared.wrong {
            text.push_str(&format!("DIFFERS {one}\n"));
        }
        print_painted(&text, verify.common.color, paint::verify)?;
    }
    Ok(if is_proved { Exit::Ok } else { Exit::NotValid })
}

/// What is expected: by the configuration, or else by the settings of what is there.
fn expected(verify: &Verify, session: &mut Session, facts: &HostFacts) -> Result<ExpectedCapture> {
    let groups = &facts.groups;
    match (held(verify)?, given(verify, facts)?) {
        (Some(held), None) => Ok(ExpectedCapture::of_ebpf(held.listening())),
        (Some(_), Some((policy, _))) => {
            let policy = extended(&policy, facts.has_v6()).into_owned();
            Ok(ExpectedCapture::of_ebpf(Held::of_policy(policy, groups)?))
        }
        (None, Some((policy, ruleset))) => Ok(ExpectedCapture::of_rules(policy, &ruleset, groups)),
        (None, None) => {
            let what = "what is expected can't be read off the rules; give the configuration";
            let observed = session.observe(&exec::Options::default(), Depth::Fast).context(what)?;
            let give = "give the configuration: --config, --manifest, flags, or a command line of a \
                 mesh's tool behind --";
            let elsewhere = || super::ebpf::elsewhere(&verify.config.ebpf.as_ref()?.folder);
            ExpectedCapture::read_off(&observed, groups).with_context(|| {
                if holds_rules(&observed, groups) {
                    format!("what is expected can't be read off the rules that are here; {give}")
                } else if let Some(why) = elsewhere() {
                    format!("{why}; or {give}")
                } else {
                    format!(
                        "not captured: nothing of Millrace or a mesh's tool is here. To be told which \
                         connections pass, {give}"
                    )
                }
            })
        }
    }
}

/// What eBPF does in the pod, where it captures.
fn held(verify: &Verify) -> Result<Option<Held>> {
    let held = match &verify.config.ebpf {
        Some(ebpf) if ebpf.meant == Meant::Yes => Held::here(&ebpf.folder)?,
        // Any user proves what it may.
        Some(ebpf) if ebpf.meant == Meant::Perhaps => {
            Held::here(&ebpf.folder).unwrap_or_else(|error| {
                warn(&reported(&error));
                None
            })
        }
        _ => None,
    };
    if held.is_none() && verify.config.by_ebpf() {
        bail!("eBPF does not capture this pod");
    }
    Ok(held)
}

/// The policy that was given, and its rules.
fn given(verify: &Verify, facts: &HostFacts) -> Result<Option<(CapturePolicy, Ruleset)>> {
    Ok(match &verify.manifest {
        Some(_) if verify.config.is_given() => {
            bail!("what is expected comes from one source: --manifest, or another configuration")
        }
        Some(word) => {
            let loaded = match pods::of_manifest(word, facts, true)? {
                Described::Inside(loaded) | Described::Plugin(loaded) => loaded,
                Described::Open => bail!("nothing captures the pod of this manifest"),
            };
            loaded.warnings.iter().for_each(|w| warn(w));
            let ruleset = loaded.ruleset();
            Some((loaded.policy, ruleset))
        }
        None if verify.config.is_given() => {
            let loaded = config::load(&verify.config, facts, false)?;
            loaded.warnings.iter().for_each(|w| warn(w));
            let ruleset = loaded.ruleset();
            Some((loaded.policy, ruleset))
        }
        None => None,
    })
}

/// The rules that are there, as they are while the proxy listens.
fn real(verify: &Verify, expected: &ExpectedCapture) -> Result<Rules> {
    let held = match &verify.config.ebpf {
        Some(ebpf) if expected.ebpf => Held::here(&ebpf.folder)?,
        _ => None,
    };
    rules::of_here(held.map(Held::listening))
}

fn prove(
    prover: &Prover,
    wanted: &ExpectedCapture,
    facts: &HostFacts,
    addresses: &[IpAddr],
) -> Result<(Vec<Finding>, Namespace)> {
    // Policy routing as the rules need it, whatever is there.
    let needed = Namespace::pod(&[], &wanted.routing);
    let namespace = surroundings::namespace()?.with_marks_of(&needed);
    let port = free_port().context("no port from 61000 to 61099 is free")?;
    let user = Identity { uid: geteuid().as_raw(), gid: getegid().as_raw() };
    let outside = prover.outside();
    let checks = checks(&Asked {
        policy: &wanted.policy,
        program: &wanted.program,
        groups: &facts.groups,
        namespace: &namespace,
        addresses,
        outside: &outside,
        port,
        user,
    });
    let progress = Progress::start("verify", Some((checks.len(), "connections")));
    Ok((prover.run(checks, || progress.step()), namespace))
}
