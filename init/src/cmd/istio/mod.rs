//! `istio-iptables`: what the reference does, in its order and with its exit codes.

mod validate;

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use millrace_core::capture::to_iptables;
use millrace_core::desired::Desired;
use millrace_core::dialect::istio::{self, LAYOUT, Options, Raw, Resolved, dry_run_log};
use millrace_core::iptables::render_restore;
use millrace_core::nft::render_transaction;
use millrace_core::plan::{Effect, Preference};
use millrace_core::policy::CapturePolicy;
use millrace_core::preflight::Backend;
use millrace_core::ruleset::Ruleset;
use millrace_core::value::Family;
use millrace_host::capture::{self, By, Farewell, Left, Order, leave};
use millrace_host::ebpf::Attached;
use millrace_host::engine::{Drift, Session};
use millrace_host::sandbox::Sandbox;
use millrace_host::{exec, facts};

use super::output::{log_effects, log_outcome, print};
use super::termination;
use super::{config, exit_of, namespace, reported};
use crate::cli::istio::{NotTyped, read};
use crate::cli::own::NetnsTarget;
use crate::exit::Exit;
use crate::log::Log;

/// The whole command, from the words behind its name.
pub(crate) fn istio(words: Vec<OsString>) -> Exit {
    let typed = match read(words) {
        Ok(typed) => typed,
        Err(NotTyped::Help(text)) => {
            return if print(&text).is_ok() { Exit::Ok } else { Exit::Failed };
        }
        Err(NotTyped::Bad(text)) => {
            let text = text.strip_prefix("error: ").unwrap_or(&text).to_owned();
            let mut log = Log::istio();
            log.error(&text);
            crate::complain(&text);
            termination::tell(log.errors());
            return Exit::BadFlag;
        }
    };
    let mut log = typed.log;
    let raw = config::environment().map(|env| Raw::new(typed.flags, env));
    let exit = raw.and_then(|raw| run(&raw, &mut log)).unwrap_or_else(|error| {
        for line in reported(&error).lines() {
            log.error(line);
        }
        match error.downcast_ref::<millrace_core::dialect::ConfigErrors>() {
            Some(errors) if errors.usage() => {
                crate::complain(&errors.to_string());
                Exit::BadFlag
            }
            _ => exit_of(&error),
        }
    });
    if exit != Exit::Ok {
        termination::tell(log.errors());
    }
    exit
}

fn run(raw: &Raw, log: &mut Log) -> Result<Exit> {
    // A dry run looks at the host, but enters nothing.
    let dry_run = raw.switch(&mut millrace_core::dialect::ValueReader::default(), "dry-run").value;
    let netns = raw.text("network-namespace");
    if !dry_run && !netns.value.is_empty() {
        namespace::enter_as(&format!("{}: {:?}", netns.source, netns.value), &netns.value)?;
    }
    let mut session = Session::open()?;
    let facts = facts::gather(session.net())?;
    let Resolved { policy, options, warnings } = istio::resolve(raw, &facts)?;
    for warning in &warnings {
        log.warn(warning);
    }
    let writes = !options.cleanup_only && !options.skip_rule_apply;
    if let Some(passes) = facts.uncaptured_v6().filter(|_| writes && !policy.ipv6.value) {
        log.info(passes);
    }
    let ruleset = to_iptables(&policy, &LAYOUT);
    let place = match netns.value.as_str() {
        name if !dry_run && !name.is_empty() => NetnsTarget::Netns(name.to_owned()),
        _ => NetnsTarget::Here,
    };
    let mut run = Run { session, groups: facts.groups, policy, options, ruleset, place, log };
    run.execute()
}

struct Run<'l> {
    session: Session,
    groups: millrace_core::value::Groups,
    policy: CapturePolicy,
    options: Options,
    ruleset: Ruleset,
    place: NetnsTarget,
    log: &'l mut Log,
}

impl Run<'_> {
    fn execute(&mut self) -> Result<Exit> {
        if self.options.cleanup_only {
            self.cleanup()?;
        } else if self.options.skip_rule_apply {
            self.log.info("rules are not written: --skip-rule-apply");
        } else if self.options.dry_run {
            self.dry_run()?;
        } else {
            self.apply()?;
        }
        if !self.options.run_validation {
            return Ok(Exit::Ok);
        }
        namespace::as_owner(&self.place)?;
        Ok(self.validate())
    }

    /// How programs are run: from the host's file system they get a view of their own.
    fn exec(&mut self) -> exec::Options {
        if !self.options.cni_mode || self.options.dry_run {
            return exec::Options::default();
        }
        if let Err(why) = Sandbox::check() {
            self.log.warn(&why);
            return exec::Options::default();
        }
        let netns = self.options.network_namespace.clone().map(PathBuf::from);
        exec::Options { sandbox: Some(Sandbox { netns }), ..exec::Options::default() }
    }

    fn desired(&self) -> Desired {
        let native = self.options.native.then(|| config::native_rules(&self.policy, &self.options));
        Desired { policy: self.policy.clone(), iptables: self.ruleset.clone(), native }
    }

    fn apply(&mut self) -> Result<()> {
        let (exec, desired) = (self.exec(), self.desired());
        let entered = namespace::entered(&self.place)?;
        let options = &self.options;
        let preference = match options.variant {
            _ if options.native => Preference::Backend(Backend::Nftables),
            Some(variant) => Preference::Binaries(variant),
            None => Preference::Iptables,
        };
        // With native nftables the reference always writes everything.
        let replace = options.reconcile || options.force_apply || options.native;
        let order = Order {
            entered: entered.as_ref(),
            drift: if replace { Drift::Replace } else { Drift::Refuse },
            everything: options.force_apply,
            text: self.log.shows_debug(),
            exec,
            ..Order::new(&desired, By::Rules(preference), &self.groups, options.wait)
        };
        let outcome = capture::apply(&mut self.session, &order)?.outcome;
        for warning in &outcome.warnings {
            self.log.warn(warning);
        }
        log_outcome(&outcome, self.log);
        Ok(())
    }

    fn cleanup(&mut self) -> Result<()> {
        let exec = self.exec();
        let entered = namespace::entered(&self.place)?;
        let farewell = Farewell {
            folder: None,
            entered: entered.as_ref(),
            chosen: None,
            marks: self.desired().marks(),
            groups: &self.groups,
            dry_run: self.options.dry_run,
            wait: self.options.wait,
            exec,
        };
        let Left { outcome, beyond, .. } = leave(&mut self.session, &farewell)?;
        if beyond != Attached::No {
            let text = "eBPF captures this pod, or may: what belongs to that is left as it is";
            self.log.warn(text);
        }
        let Some(outcome) = outcome else { return Ok(()) };
        for warning in &outcome.warnings {
            self.log.warn(warning);
        }
        if self.options.dry_run {
            let mut text = "iptables-save\nip6tables-save\n".to_owned();
            for effect in &outcome.effects {
                self.log.info(&format!("would do: {effect}"));
                if let Effect::Restore { input: rules, .. } | Effect::Native { text: rules, .. } =
                    effect
                {
                    text.push_str(rules);
                }
            }
            return self.write_dry_run(&text);
        }
        if outcome.effects.is_empty() {
            self.log.info("nothing to remove");
        }
        log_effects(&outcome.effects, self.log);
        Ok(())
    }

    fn dry_run(&mut self) -> Result<()> {
        if self.options.native {
            let ruleset = config::reference_rules(&self.policy, &self.options);
            let text = render_transaction(&ruleset);
            self.log.info(&format!("nftables rules, in one transaction:\n{}", text.trim_end()));
            return self.write_dry_run(&text);
        }
        for family in self.ruleset.families().collect::<Vec<_>>() {
            let program = match family {
                Family::V4 => "iptables-restore",
                Family::V6 => "ip6tables-restore",
            };
            let input = render_restore(&self.ruleset, family);
            self.log.info(&format!(
                "Running iptables restore with: {program} and the following input:\n{}",
                input.trim_end()
            ));
        }
        let text = dry_run_log(&self.ruleset);
        self.write_dry_run(&text)
    }

    fn write_dry_run(&mut self, text: &str) -> Result<()> {
        let Some(path) = &self.options.dry_run_file else { return Ok(()) };
        std::fs::write(path, text)
            .with_context(|| format!("environment variable DRY_RUN_FILE_PATH: {path:?}"))
    }
}
