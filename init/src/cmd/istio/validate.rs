//! `--run-validation`: what real connections prove, and who is to blame where they prove nothing good.

use millrace_core::dialect::istio::LAYOUT;
use millrace_core::iptables::render_rule;
use millrace_core::observed::Observed;
use millrace_core::ruleset::{Rule, TableChain};
use millrace_core::status::{State, judge, missing, read_back, unguarded};
use millrace_core::value::Family;
use millrace_host::engine::EngineError;
use millrace_host::observe::Depth;
use millrace_host::probe::{self, Ending, ProbeConfig, ProbeReport};

use super::Run;
use crate::exit::Exit;

/// What is there, or why it can't be seen.
type Seen = Result<Observed, EngineError>;

impl Run<'_> {
    /// Send real connections and see.
    pub(super) fn validate(&mut self) -> Exit {
        let config = ProbeConfig {
            policy: &self.policy,
            ruleset: &self.ruleset,
            layout: &LAYOUT,
            probe_port: self.options.probe_port,
            timeout: self.options.probe_timeout,
        };
        let report = probe::run(&config);
        let families: Vec<Family> = self.ruleset.families().collect();
        let arrivals: Vec<_> = families.iter().map(|f| (*f, probe::arrival(&config, *f))).collect();
        let exec = millrace_host::exec::Options::default();
        let observed = self.session.observe(&exec, Depth::Fast);
        // Who writes no rules validates those of somebody else, in whatever form: the CNI plugin's,
        // unless istio-iptables' own are there.
        let by_plugin = self.options.skip_rule_apply && !is_of_istio(&observed);
        self.tell(&report, &observed, by_plugin);
        let mut valid = report.passed();
        if report.checks.iter().all(|check| check.passed().is_none()) {
            self.log.error("no connection could be tried, so nothing is proved");
            if by_plugin {
                return Exit::NotValid;
            }
        }
        if by_plugin {
            return self.of_plugin(valid, &observed);
        }
        valid &= self.guarded(&observed);
        // Who may not see the rules has the connections alone to go by, and so has who can't look
        // for a single rule.
        if let (Ok(observed), false) = (&observed, self.options.native) {
            for (family, needed) in &arrivals {
                let gone = missing(observed, *family, needed, &self.groups);
                if gone.is_empty() {
                    continue;
                }
                valid = false;
                self.log.error(&format!(
                    "{family} connections from outside, which can't be made from here, don't meet \
                     every rule"
                ));
                self.list(&gone);
            }
        }
        if valid { Exit::Ok } else { Exit::NotValid }
    }

    /// Whether the guard is there that this configuration needs. Where none can be, the run that wrote
    /// the rules said so; who wrote none validates those of somebody else, who may know of no guard.
    fn guarded(&mut self, observed: &Seen) -> bool {
        let Some(why) = observed.as_ref().ok().and_then(unguarded) else { return true };
        let ours = !self.options.skip_rule_apply
            && observed.as_ref().is_ok_and(|observed| observed.nf_tables)
            && !self.session.lacks_guard();
        if ours {
            self.log.error(&why);
        } else {
            self.log.warn(&why);
        }
        !ours
    }

    /// Log how each connection ended, and which rules of its way a failed one lacks.
    fn tell(&mut self, report: &ProbeReport, observed: &Seen, by_plugin: bool) {
        let proved = report.checks.iter().any(|check| check.ending == Ending::Captured);
        for check in &report.checks {
            let text = check.to_string();
            match &check.ending {
                Ending::Captured => self.log.info(&text),
                // Nobody may be everybody: what others prove is enough.
                Ending::NotAllowed(_) if proved => self.log.info(&text),
                Ending::NotAllowed(_) | Ending::NotPossible(_) => self.log.warn(&text),
                Ending::Failed { needed, .. } => {
                    self.log.error(&text);
                    if !by_plugin {
                        self.blame(observed, check.family, needed);
                    }
                }
            }
        }
    }

    /// How rules end that are somebody else's.
    fn of_plugin(&mut self, proved: bool, observed: &Seen) -> Exit {
        let where_to_look = "its log on this node says why; a new pod is captured anew";
        let state = observed.as_ref().map(|observed| judge(observed, None, &self.groups));
        let whole = !matches!(&state, Ok(found) if found.state == State::Drifted);
        if proved && whole {
            return Exit::Ok;
        }
        let text = match state {
            Ok(found) if found.state == State::NotCaptured => {
                format!(
                    "the CNI plugin did not capture this pod: no rules of it are here; {where_to_look}"
                )
            }
            Ok(found) if found.state == State::Drifted => format!(
                "the CNI plugin did not capture this pod as a whole: rules are here that lack \
                 something, which `millrace status` tells; {where_to_look}"
            ),
            Ok(_) => "the CNI plugin captured this pod, and something is in the way of its rules: \
                      `millrace status` and `millrace explain` tell what"
                .to_owned(),
            Err(why) => format!(
                "the CNI plugin did not capture this pod; whether any rules are here can't be seen \
                 ({why}); {where_to_look}"
            ),
        };
        self.log.error(&text);
        Exit::NotValid
    }

    /// Say which rule on a connection's way is missing; which ones there should be, when what is
    /// there can't be seen.
    fn blame(&mut self, observed: &Seen, family: Family, needed: &[(TableChain, Rule)]) {
        if self.options.native {
            self.log.error("`nft list ruleset` shows the rules that are there");
            return;
        }
        let missing = match observed {
            Ok(observed) => missing(observed, family, needed, &self.groups),
            Err(error) => {
                self.log.warn(&format!("which rule is missing can't be seen: {error}"));
                needed.to_vec()
            }
        };
        if missing.is_empty() {
            self.log.error(
                "the rules on its way are there: something in front of them, or behind, is in its \
                 way",
            );
        }
        self.list(&missing);
    }

    fn list(&mut self, missing: &[(TableChain, Rule)]) {
        for ((table, chain), rule) in missing {
            self.log.error(&format!("missing in table {table}: -A {chain} {}", render_rule(rule)));
        }
    }
}

/// Whether rules are there that istio-iptables wrote with iptables.
fn is_of_istio(observed: &Seen) -> bool {
    let Ok(observed) = observed else { return false };
    read_back(observed).iter().any(|found| *found.dialect.footprint.layout == LAYOUT)
}
