//! Rules of nftables: one for both families, and where a rule names an address, one for each.

use super::super::program::{Branch, Condition, Decision, Program, Role, Verdict};
use super::super::{program, routing};
use super::{arranged, asked, chain, is_open, leads, name};
use crate::nft::{NftEmission, NftLayout, NftRuleset, OwnerSpelling, Statement, untaken};
use crate::policy::CapturePolicy;
use crate::ruleset::{Chain, Hook, Placement, Protocol, Reason, Side, Table};
use crate::value::Family;

/// The rules of nftables that carry out `policy`, in tables and chains with the names of `layout`.
/// Without IPv6 in the policy, rules that name no address still meet its packets, in tables that
/// serve both families: with `exempt_ipv6` it is exempt first.
pub fn to_nft(policy: &CapturePolicy, layout: &'static NftLayout, exempt_ipv6: bool) -> NftRuleset {
    let program = program(policy);
    let mut rules = Rules { program: &program, layout, emissions: Vec::new() };
    let decisions = arranged(program.decisions.clone(), &layout.chains);
    let asked = asked(&program, &decisions, &program.families);
    for decision in decisions.iter().filter(|decision| leads(decision, &asked, &layout.chains)) {
        rules.write(decision);
    }
    if exempt_ipv6 && !policy.ipv6.value {
        let reason = Reason {
            source: policy.ipv6.source.clone(),
            purpose: "IPv6 is not captured, and left alone".to_owned(),
        };
        rules.exempt(Family::V6, &reason);
    }
    let emissions = rules.emissions;
    let routing = routing(policy, layout.chains.passthrough);
    NftRuleset { layout, emissions, routing, families: program.families }
}

struct Rules<'p> {
    program: &'p Program,
    layout: &'static NftLayout,
    emissions: Vec<NftEmission>,
}

impl Rules<'_> {
    fn write(&mut self, decision: &Decision) {
        let program = self.program;
        let named = decision.when.iter().any(|c| matches!(c, Condition::Address { .. }))
            || decision.family().is_some();
        // A transparent socket is of one family.
        if !named && !matches!(decision.verdict, Verdict::Transparent { .. }) {
            // Any family will do: no condition depends on it.
            return self.of_family(decision, Family::V4);
        }
        for family in program.families.iter().copied() {
            if program.concerns(decision, family) {
                self.of_family(decision, family);
            }
        }
    }

    fn of_family(&mut self, decision: &Decision, family: Family) {
        let conditions = self.conditions(decision, family);
        let mut rule = conditions.clone();
        let says = |statement: &Statement| matches!(statement, Statement::Address { .. });
        if decision.family().is_some() && !rule.iter().any(says) {
            rule.insert(0, Statement::Family(family));
        }
        rule.extend(self.actions(decision, family));
        self.put(decision, rule, decision.reason.clone());
        // Where no transparent socket listens, `tproxy` ends its rule and no more
        // (`nft_tproxy_eval_v4()`); TPROXY of iptables drops. Where there is a table that drops it
        // (`nft::guarded`), the tables of the marks stay the reference's.
        if let Verdict::Transparent { port, .. } = decision.verdict
            && self.layout.guard.is_none()
        {
            let reason = Reason { source: decision.reason.source.clone(), purpose: untaken(port) };
            let mut rule = conditions;
            rule.extend([Statement::Counter, Statement::Drop]);
            self.put(decision, rule, reason);
        }
    }

    fn put(&mut self, decision: &Decision, rule: Vec<Statement>, reason: Reason) {
        let before = match decision.placement {
            Placement::Append => None,
            Placement::Insert(position) => {
                Some(usize::try_from(position).unwrap_or(usize::MAX).saturating_sub(1))
            }
        };
        let chain = chain(&self.layout.chains, decision.path);
        self.emissions.push(NftEmission { table: decision.table, chain, before, rule, reason });
    }

    /// The conditions of a decision, in nftables' order.
    fn conditions(&self, decision: &Decision, family: Family) -> Vec<Statement> {
        let protocol = decision.when.iter().find_map(|condition| match condition {
            Condition::Protocol(protocol) => Some(*protocol),
            _ => None,
        });
        let implied = implies_protocol(decision) || is_open(decision, &self.layout.chains);
        let mut ranked: Vec<(u8, Statement)> = Vec::new();
        for condition in &decision.when {
            if implied && matches!(condition, Condition::Protocol(_)) {
                continue;
            }
            // Where there is a guard, the tables of the marks stay the reference's.
            if self.layout.guard.is_some() && matches!(condition, Condition::Starts { .. }) {
                continue;
            }
            let spelled = self.condition(condition, protocol, decision.role, family);
            ranked.extend(spelled.map(|statement| (rank(decision, &statement), statement)));
        }
        // The reference drops TCP alone with nftables, and every protocol with iptables.
        if self.layout.invalid_of_tcp && decision.role == Role::Invalid && !ranked.is_empty() {
            ranked.push((0, Statement::Protocol(Protocol::Tcp)));
        }
        ranked.sort_by_key(|(rank, _)| *rank);
        ranked.into_iter().map(|(_, statement)| statement).collect()
    }

    /// A condition; none if it can't hold in this family.
    fn condition(
        &self,
        condition: &Condition,
        protocol: Option<Protocol>,
        role: Role,
        family: Family,
    ) -> Option<Statement> {
        let ports = |side, negated, ports: &[_]| Statement::Ports {
            // A port is one of TCP unless the decision says otherwise.
            protocol: protocol.unwrap_or(Protocol::Tcp),
            side,
            negated,
            ports: ports.to_vec(),
        };
        Some(match condition {
            Condition::Protocol(protocol) => Statement::Protocol(*protocol),
            Condition::ToPorts { negated, ports: list } => ports(Side::Destination, *negated, list),
            Condition::FromPort(range) => ports(Side::Source, false, &[*range]),
            Condition::Address { side, negated, of } => Statement::Address {
                side: *side,
                negated: *negated,
                cidrs: vec![self.program.network(*of, family)?],
            },
            Condition::Owner { negated, owner } => Statement::Owner {
                negated: *negated,
                owners: vec![owner.clone()],
                // The reference writes the one here and the other there.
                spelling: match role {
                    Role::Zone => OwnerSpelling::Meta,
                    _ => OwnerSpelling::Short,
                },
            },
            Condition::ArrivedBy(name) => Statement::InInterface(vec![name.clone()]),
            Condition::LeavesBy { negated: false, name } => {
                Statement::OutInterface(vec![name.clone()])
            }
            Condition::LeavesBy { negated: true, name } => Statement::NotOutInterface(name.clone()),
            Condition::Starts { negated } => Statement::Syn { negated: *negated },
            Condition::Local { side, negated } => {
                Statement::Local { side: *side, negated: *negated }
            }
            Condition::State(states) => Statement::State(states.clone()),
            Condition::Mark { negated, mark } => Statement::Mark { negated: *negated, mark: *mark },
            Condition::ConnectionMark(mark) => Statement::Connmark(*mark),
        })
    }

    /// What follows, behind a counter.
    fn actions(&self, decision: &Decision, family: Family) -> Vec<Statement> {
        let action = match decision.verdict {
            Verdict::Pass => Statement::Return,
            Verdict::Accept => Statement::Accept,
            Verdict::Drop => Statement::Drop,
            Verdict::Ask(branch) => Statement::Jump(name(&self.layout.chains, branch)),
            Verdict::Redirect(port) => Statement::Redirect(port),
            Verdict::Translate { address, port } => Statement::Dnat { address, port },
            Verdict::Transparent { mark, port } => {
                // Only what a socket took is marked, counted and accepted.
                let taken = [Statement::Tproxy { family, port }, Statement::SetMark(mark.get())];
                return taken.into_iter().chain([Statement::Counter, Statement::Accept]).collect();
            }
            Verdict::SetMark(mark) => Statement::SetMark(mark),
            Verdict::MarkConnection(mark) => Statement::SetConnmark(mark),
            Verdict::SaveMark => Statement::SaveMark,
            Verdict::RestoreMark => Statement::RestoreMark,
            Verdict::Zone(zone) => Statement::Zone(zone),
        };
        if self.layout.bare_jumps && matches!(action, Statement::Jump(_)) {
            return vec![action];
        }
        vec![Statement::Counter, action]
    }

    /// Let a family past, in front of everything else of each base chain.
    fn exempt(&mut self, family: Family, reason: &Reason) {
        let mut chains: Vec<(Table, Hook)> = Vec::new();
        for emission in &self.emissions {
            if let Chain::Builtin(hook) = emission.chain
                && !chains.contains(&(emission.table, hook))
            {
                chains.push((emission.table, hook));
            }
        }
        for (table, hook) in chains {
            self.emissions.push(NftEmission {
                table,
                chain: Chain::Builtin(hook),
                before: Some(0),
                rule: vec![Statement::Family(family), Statement::Counter, Statement::Return],
                reason: reason.clone(),
            });
        }
    }
}

/// Where in a rule a condition stands. It means nothing to the kernel.
fn rank(decision: &Decision, statement: &Statement) -> u8 {
    let elsewhere = |c: &Condition| matches!(c, Condition::LeavesBy { negated: true, .. });
    match statement {
        Statement::InInterface(_) | Statement::OutInterface(_) | Statement::NotOutInterface(_) => 0,
        Statement::Protocol(_) => 1,
        // The reference asks for servers behind the port where it sets zones.
        Statement::Address { .. } if decision.role == Role::Zone => 5,
        Statement::Address { .. } => 2,
        Statement::Syn { .. } | Statement::State(_) => 3,
        Statement::Ports { .. } => 4,
        // And so does what asks for queries to elsewhere.
        Statement::Mark { .. } if decision.when.iter().any(elsewhere) => 3,
        _ => 6,
    }
}

/// Whether a rule that asks for a port leaves the protocol to that, as the reference does in some
/// rules and not in others.
fn implies_protocol(decision: &Decision) -> bool {
    let mut port = false;
    let mut address = false;
    for condition in &decision.when {
        match condition {
            Condition::ToPorts { negated: true, .. } => {
                return decision.path == Branch::Inbound.into();
            }
            Condition::ToPorts { .. } | Condition::FromPort(_) => port = true,
            Condition::Address { .. } => address = true,
            _ => {}
        }
    }
    let tcp = decision.when.contains(&Condition::Protocol(Protocol::Tcp));
    let inbound = decision.path == Branch::Inbound.into() && decision.role != Role::Zone;
    // All DNS queries by TCP.
    let named = inbound || (decision.role == Role::Dns && tcp && !address);
    port && !named
}
