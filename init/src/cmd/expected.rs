//! What is expected of a namespace, and what the rules that are there do otherwise.

use millrace_core::capture::to_iptables;
use millrace_core::ebpf::beside;
use millrace_core::observed::{Holding, Observed};
use millrace_core::policy::CapturePolicy;
use millrace_core::ruleset::{Routing, Ruleset};
use millrace_core::sim::{Namespace, Program, of_dump, of_ruleset};
use millrace_core::status::{read_back, read_native_back, whole_in_older_form};
use millrace_core::value::Groups;
use millrace_core::verify::{Compared, compared, unanswered};

use super::held::Held;
use super::rules::Rules;

/// What has to capture a namespace, ready to be compared with what is there.
pub(super) struct ExpectedCapture {
    pub(super) policy: CapturePolicy,
    pub(super) program: Program,
    pub(super) routing: Routing,
    /// Whether eBPF has to capture, and rules only what it needs beside.
    pub(super) ebpf: bool,
}

impl ExpectedCapture {
    pub(super) fn of_rules(policy: CapturePolicy, ruleset: &Ruleset, groups: &Groups) -> Self {
        let program = Program::new(of_ruleset(ruleset, groups));
        Self { policy, program, routing: ruleset.routing.clone(), ebpf: false }
    }

    pub(super) fn of_ebpf(held: Held) -> Self {
        let routing = beside(&held.policy).routing;
        Self { policy: held.policy, program: Program::new(held.tables), routing, ebpf: true }
    }

    /// The same where rules in the form of an older release are here, and whole: these are wanted.
    pub(super) fn or_older(self, observed: &Observed, groups: &Groups) -> Self {
        let Some(holdings) = whole_in_older_form(observed, groups) else { return self };
        let tables = holdings.iter().flat_map(|Holding { variant, family, dump }| {
            of_dump(dump, *family, &variant.to_string(), groups, &mut |_, _, _| None)
        });
        Self { program: Program::new(tables.collect()), ..self }
    }

    /// By the settings of the rules that are there, if some give these.
    pub(super) fn read_off(observed: &Observed, groups: &Groups) -> Option<Self> {
        // Settings that give other rules than these are a guess: by it, what is broken may be right.
        let older = whole_in_older_form(observed, groups).is_some();
        let found = read_back(observed).into_iter().find_map(|found| {
            let known = older || found.accounts_for(observed, groups);
            let policy = found.policy.filter(|_| known)?;
            Some((policy, found.dialect))
        });
        let native = || read_native_back(observed).map(|found| (found.policy, found.dialect));
        let (policy, dialect) = found.or_else(native)?;
        let ruleset = to_iptables(&policy, dialect.footprint.layout);
        Some(Self::of_rules(policy, &ruleset, groups).or_older(observed, groups))
    }

    /// What the rules that are there do otherwise.
    pub(super) fn compared(&self, real: &Rules) -> Compared {
        let namespace = self.namespace(real);
        let of_real = (&real.program, &real.namespace);
        compared(&self.policy, (&self.program, &namespace), of_real)
    }

    /// Captured connections whose answer the rules that are there take away, a sentence each.
    pub(super) fn unanswered(&self, real: &Rules) -> Vec<String> {
        let namespace = self.namespace(real);
        let of_real = (&real.program, &real.namespace);
        unanswered(&self.policy, (&self.program, &namespace), of_real)
    }

    /// The namespace with the policy routing that the rules need, whatever is there.
    fn namespace(&self, real: &Rules) -> Namespace {
        real.namespace.with_marks_of(&Namespace::pod(&[], &self.routing))
    }
}
