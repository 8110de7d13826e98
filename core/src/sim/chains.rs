//! Rules one after the other, and what they do.

use super::halt::Halt;
use super::index::{Run, is_looked_up};
use super::lower::{CHOSEN, NATIVE};
use super::namespace::{Exit, LOOPBACK, index};
use super::notice::Rejection;
use super::packet::{Mark, Packet, Value};
use super::program::{Bound, Chain, ChainId, RuleId};
use super::question::Protocol;
use super::ranges::{address, number};
use super::reply::Transparent;
use super::rule::{Action, Field, MarkChange, Notice, States, Test};
use super::test::Truth;
use super::walk::Walk;
use super::witness::{Met, Witness};
use crate::ruleset::Hook;
use crate::value::Family;

/// Where the walk goes on behind a rule, or behind a part of it.
enum Flow {
    /// The next part of the rule follows, or the next rule.
    Next,
    /// The rule ends here, as with `NFT_BREAK`, and the next one follows.
    Break,
    /// The chain ends, and the one that jumped here goes on.
    Back,
    /// The chain that the kernel called ends.
    Done,
}

/// The most jumps in each other that a walk has room for on any stack.
pub(super) const DEEPEST: usize = 64;

/// The most rules on a packet's way. Chains that jump to each other can make a way of any length
/// out of few rules.
const MOST_PASSED: usize = 500_000;
const TOO_LONG: &str = "a way past more than 500000 rules";

const BRIDGED: &str = "it comes over a bridge that gives packets to rules: what TPROXY hands it to is \
                       forgotten, and whoever listens where it goes has it";

/// Destination and source, as indices of what is settled of a connection.
pub(super) const DESTINATION: usize = 0;
pub(super) const SOURCE: usize = 1;

impl<'a, W: Witness> Walk<'a, W> {
    /// Whether a rule of the chain decided; if none did, its policy holds.
    pub(super) fn chain(
        &mut self,
        chain: ChainId,
        hook: Hook,
        packet: &mut Packet<'a>,
    ) -> Result<bool, Halt> {
        let (rules, runs) = match &self.program.chains[chain.0] {
            Chain { grouped: Some(grouped), .. } if W::CLASSES => (&grouped.rules, &grouped.runs),
            Chain { rules, runs, .. } => (rules, runs),
        };
        let mut runs = runs.iter();
        let mut run = runs.next();
        let mut at = 0;
        while at < rules.len() {
            let here = run.filter(|run| !W::LISTENS && run.first == at);
            let flow = if let Some(found) = here {
                run = runs.next();
                at = found.end;
                self.run(found, rules, hook, packet)?
            } else {
                at += 1;
                self.pass(&rules[at - 1..at])?;
                let (id, steps) = &rules[at - 1];
                self.rule(*id, steps, None, hook, packet)?
            };
            match flow {
                Flow::Next | Flow::Break => {}
                Flow::Back => return Ok(false),
                Flow::Done => return Ok(true),
            }
        }
        Ok(false)
    }

    /// Of a run only the rules that ask for what the packet has.
    fn run(
        &mut self,
        run: &'a Run,
        rules: &'a [(RuleId, Vec<Bound>)],
        hook: Hook,
        packet: &mut Packet<'a>,
    ) -> Result<Flow, Halt> {
        let fails = |test: &Test| self.holds(test, hook, packet) == Truth::No;
        let none = run.common.iter().any(fails);
        let asked = if none { &[] } else { self.rules_for(run, packet) };
        let mut next = run.first;
        for at in asked {
            self.pass(&rules[next..=*at])?;
            next = at + 1;
            let (id, steps) = &rules[*at];
            let flow = self.rule(*id, steps, Some(run.field), hook, packet)?;
            if !matches!(flow, Flow::Next | Flow::Break) {
                return Ok(flow);
            }
        }
        self.pass(&rules[next..run.end])?;
        Ok(Flow::Next)
    }

    fn rules_for(&mut self, run: &'a Run, packet: &Packet<'_>) -> &'a [usize] {
        let ends = &packet.ends;
        let value = match run.field {
            Field::Source => ends.source,
            Field::Destination => ends.destination,
            Field::SourcePort | Field::Port if !packet.protocol.has_ports() => return &[],
            Field::SourcePort => ends.source_port,
            _ => ends.port,
        };
        let index = run.index(packet.family);
        if let Some(origin) = value.origin {
            self.witness.asked_rules(origin, index);
        }
        index.rules(value.number)
    }

    /// Rules are on the way.
    fn pass(&mut self, rules: &[(RuleId, Vec<Bound>)]) -> Result<(), Halt> {
        let left = MOST_PASSED.saturating_sub(self.passed);
        if let Some((id, _)) = rules.get(left) {
            return Err(self.unknown(*id, TOO_LONG));
        }
        if self.witness.has_heard() {
            return Err(Halt::Unknown { rule: None, what: String::new() });
        }
        self.passed += rules.len();
        Ok(())
    }

    /// `known` is the field by which the rule was looked up: it asks for what the packet has.
    fn rule(
        &mut self,
        id: RuleId,
        steps: &'a [Bound],
        mut known: Option<Field>,
        hook: Hook,
        packet: &mut Packet<'a>,
    ) -> Result<Flow, Halt> {
        self.asked += 1;
        let mut unclear: Option<&str> = None;
        let mut reported = false;
        for step in steps {
            if known.is_some_and(|field| is_looked_up(step, field)) {
                known = None;
                continue;
            }
            let action = match step {
                Bound::Test(test) => {
                    match self.holds(test, hook, packet) {
                        Truth::Yes => {}
                        Truth::No => {
                            if W::LISTENS && !reported {
                                let why = self.why_not(test, packet);
                                self.met(id, Met::Failed(why));
                            }
                            return Ok(Flow::Next);
                        }
                        Truth::Unknown(what) => unclear = unclear.or(Some(what)),
                    }
                    continue;
                }
                Bound::Do(Action::Note) => continue,
                Bound::Do(Action::Effect(what)) => {
                    self.did.push(match unclear {
                        Some(unclear) => format!("{what}, if {unclear}"),
                        None => what.clone(),
                    });
                    continue;
                }
                // What tracking has seen already it does nothing to, whether it matches or not.
                Bound::Do(Action::Notrack) if packet.seen || packet.zoned => continue,
                Bound::Do(Action::Notrack | Action::Zone(_))
                    if packet.attached && !self.is_native(id) =>
                {
                    continue;
                }
                Bound::Do(action) => Some(action),
                Bound::Jump { .. } => None,
            };
            if let Some(what) = unclear {
                return Err(self.unknown(id, what));
            }
            if !reported {
                self.met(id, Met::Matched);
                reported = true;
            }
            let flow = match (step, action) {
                (Bound::Jump { to, back }, _) => {
                    if self.stack.len() >= self.program.deepest {
                        let deepest = self.program.deepest;
                        let what = format!("chains that are nested more than {deepest} deep");
                        return Err(self.unknown(id, &what));
                    }
                    self.stack.push(id);
                    let done = self.chain(*to, hook, packet)?;
                    self.stack.pop();
                    match (done, back) {
                        (true, _) => Flow::Done,
                        (false, true) => Flow::Next,
                        (false, false) => Flow::Back,
                    }
                }
                (_, Some(action)) => self.act(id, action, hook, packet)?,
                (_, None) => Flow::Next,
            };
            if !matches!(flow, Flow::Next) {
                return Ok(flow);
            }
        }
        if W::LISTENS && !reported {
            let met = unclear.map_or(Met::Matched, |what| Met::Unclear(what.to_owned()));
            self.met(id, met);
        }
        Ok(Flow::Next)
    }

    fn met(&mut self, id: RuleId, met: Met) {
        if W::LISTENS {
            self.witness.met(id, self.stack.len(), met);
        }
    }

    fn unknown(&mut self, id: RuleId, what: &str) -> Halt {
        self.met(id, Met::Unclear(what.to_owned()));
        self.decide(id);
        Halt::Unknown { rule: Some(id), what: what.to_owned() }
    }

    /// This rule, and those whose jumps led to it, decided.
    fn decide(&mut self, id: RuleId) {
        self.decided.clone_from(&self.stack);
        self.decided.push(id);
    }

    fn act(
        &mut self,
        id: RuleId,
        action: &'a Action,
        hook: Hook,
        packet: &mut Packet<'a>,
    ) -> Result<Flow, Halt> {
        match action {
            Action::Accept | Action::Return => {
                if self.deciding && !self.acted {
                    self.decide(id);
                }
                return Ok(if *action == Action::Accept { Flow::Done } else { Flow::Back });
            }
            Action::Drop => {
                self.decide(id);
                let why = "a rule says so".to_owned();
                return Err(Halt::Dropped { rule: Some(id), why });
            }
            Action::Reject(notice) => {
                self.decide(id);
                if *notice == Notice::Reset {
                    self.did.push("tcp reset".to_owned());
                }
                self.refusal = Some(Rejection { packet: *packet, notice: *notice });
                return Err(Halt::Refused(id));
            }
            Action::Redirect(ports) => {
                let Some(address) = self.own_address(hook, packet) else {
                    let name = packet.input.unwrap_or(LOOPBACK);
                    // What interfaces there are is only supposed.
                    if self.namespace.supposed && !self.namespace.lists(name) {
                        return Err(
                            self.unknown(id, "which address the interface has that it came in by")
                        );
                    }
                    return Err(Halt::Dropped {
                        rule: Some(id),
                        why: "the interface it came in by has no address to redirect to".to_owned(),
                    });
                };
                return self.lead(id, Some(address), *ports, packet);
            }
            // In a table of both families it is for packets of its own one (`nft_nat_inet_eval()`).
            Action::Dnat(to) | Action::Snat(to)
                if to.address.is_some_and(|to| Family::of(to) != packet.family) => {}
            Action::Dnat(to) => {
                let address = to.address.map(number);
                return self.lead(id, address, to.ports, packet);
            }
            Action::Snat(to) => {
                let own = to.address.map_or(packet.ends.source.number, number);
                return self.hide(id, own, to.ports, packet);
            }
            Action::Masquerade(ports) => {
                let to = packet.ends.destination;
                let exit = self.exit.cloned().unwrap_or_else(|| Exit::by(LOOPBACK));
                // The next hop, or else the destination, is what the address is beside.
                let hop = exit.gateway.unwrap_or(address(packet.family, to.number));
                let exit = Exit { gateway: Some(hop), scope: 0, ..exit };
                let Some(own) = self.source_at(&exit, to, packet.family) else {
                    self.decide(id);
                    let why = format!("{} has no address to masquerade with", exit.interface);
                    return Err(Halt::Dropped { rule: Some(id), why });
                };
                return self.hide(id, own.number, *ports, packet);
            }
            // Some kernels load such a rule of nftables, others don't.
            Action::Tproxy { .. } if hook != Hook::Prerouting => {
                return Err(self.unknown(id, "what tproxy does outside of PREROUTING"));
            }
            Action::Tproxy { port, address: at, family, drops } => {
                let fits = matches!(packet.protocol, Protocol::TCP | Protocol::UDP)
                    && family.is_none_or(|family| family == packet.family);
                if !fits {
                    return Ok(Flow::Break);
                }
                match self.holds_socket(packet) {
                    // Its own socket is found first, and that has to be transparent too.
                    Some(Transparent::Yes) => return Ok(Flow::Next),
                    Some(Transparent::No) if !drops => return Ok(Flow::Break),
                    Some(Transparent::No) => {
                        self.decide(id);
                        let why = "TPROXY drops what is for a socket that is not transparent";
                        return Err(Halt::Dropped { rule: Some(id), why: why.to_owned() });
                    }
                    Some(Transparent::Unknown) => {
                        return Err(self.unknown(id, "whether a socket of it is transparent"));
                    }
                    None => {}
                }
                if self.unheard {
                    if !drops {
                        return Ok(Flow::Break);
                    }
                    self.decide(id);
                    let why = "no transparent socket takes it".to_owned();
                    return Err(Halt::Dropped { rule: Some(id), why });
                }
                let bridge = packet.input.map(|name| self.namespace.settings(name).bridge_calls);
                if bridge.is_some_and(|calls| calls[index(packet.family)]) {
                    // `ip_rcv_core()` comes behind, and takes the socket off the packet again.
                    self.note(BRIDGED);
                    self.decide(id);
                    return Ok(Flow::Next);
                }
                // Without one, or with the one that means none, the kernel takes the interface's.
                if let Some(at) = at.filter(|at| !at.is_unspecified()) {
                    self.did.push(format!("for a transparent socket at {at}"));
                }
                packet.taken = Some(port.map_or(packet.ends.port, |p| Value::made(p.into())));
                self.decide(id);
                self.acted = true;
            }
            Action::Connect { address, port } => {
                packet.meant = Some((packet.ends.destination, packet.ends.port));
                let localhost = || self.namespace.first_address(LOOPBACK, packet.family);
                let to = address.map(number).or_else(localhost).unwrap_or(1);
                packet.ends.destination = Value::made(to);
                if let Some(port) = port {
                    packet.ends.port = Value::made((*port).into());
                }
                self.decide(id);
                self.acted = true;
                return Ok(Flow::Done);
            }
            Action::Hand(port) => {
                packet.handed = Some(Value::made((*port).into()));
                self.decide(id);
                self.acted = true;
                return Ok(Flow::Done);
            }
            Action::Tos => packet.tos = true,
            Action::Mark(change) => packet.mark = changed(packet.mark, *change),
            Action::Unknown(what) => return Err(self.unknown(id, what)),
            Action::Zone(zone) => {
                // With nft it undoes NOTRACK (`nft_ct_set_zone_eval()`), with iptables it does not
                // (`xt_ct_target()`).
                let untracked = packet.icmp.is_none() && packet.state == States::UNTRACKED;
                if untracked && self.is_native(id) {
                    packet.seen = false;
                }
                if !packet.seen && !packet.zoned {
                    (packet.zone, packet.zoned) = (*zone, true);
                }
            }
            Action::Notrack => {
                if !packet.seen && !packet.zoned {
                    (packet.seen, packet.attached) = (true, false);
                    packet.state = States::UNTRACKED;
                }
            }
            Action::Connmark(_) | Action::Save { .. } | Action::Restore { .. } => {
                self.connmark(action, packet);
            }
            Action::Note | Action::Effect(_) | Action::Jump(_) | Action::Goto(_) => {}
        }
        Ok(Flow::Next)
    }

    /// Whether a rule is one of nftables, and none of iptables.
    fn is_native(&self, id: RuleId) -> bool {
        self.program.chain(self.program.rule(id).chain).holder == NATIVE
    }

    fn connmark(&mut self, action: &Action, packet: &mut Packet<'_>) {
        let Some((at, _)) = packet.connection else { return };
        let mark = &mut self.connections[at].mark;
        match action {
            Action::Connmark(change) => *mark = changed(*mark, *change),
            Action::Save { packet: own, connection } => {
                *mark = mark.bits(!connection).flipped(packet.mark.bits(*own));
            }
            Action::Restore { packet: own, connection } => {
                packet.mark = packet.mark.bits(!own).flipped(mark.bits(*connection));
            }
            _ => {}
        }
    }

    /// Where a REDIRECT leads (`nf_nat_redirect.c`).
    fn own_address(&self, hook: Hook, packet: &Packet<'_>) -> Option<u128> {
        let interface = match hook {
            Hook::Output => "lo",
            _ => packet.input?,
        };
        self.namespace.first_address(interface, packet.family)
    }

    /// Change the destination of a packet's connection.
    fn lead(
        &mut self,
        id: RuleId,
        address: Option<u128>,
        ports: Option<(u16, u16)>,
        packet: &mut Packet<'a>,
    ) -> Result<Flow, Halt> {
        let Some((at, _)) = packet.connection else { return Ok(Flow::Done) };
        let address = address.map_or(packet.ends.destination, Value::made);
        let Some(port) = within(packet.ends.port, ports, packet.protocol) else {
            return Err(self.unknown(id, "which port of a range is taken"));
        };
        self.connections[at].to = Some((address, port));
        self.connections[at].settled[DESTINATION] = true;
        // A transparent socket has it already, whatever its address becomes.
        if packet.taken.is_none() {
            self.decide(id);
        }
        self.acted = true;
        Ok(Flow::Done)
    }

    /// Whether a rule of translation chooses a port at random (`NF_NAT_RANGE_PROTO_RANDOM_ALL`).
    fn chooses_at_random(&self, id: RuleId) -> bool {
        self.program.steps(id).iter().any(|step| match step {
            Bound::Do(Action::Effect(what)) => what.starts_with(CHOSEN) && what.contains("random"),
            _ => false,
        })
    }

    /// Change the source of a packet's connection.
    fn hide(
        &mut self,
        id: RuleId,
        address: u128,
        ports: Option<(u16, u16)>,
        packet: &mut Packet<'a>,
    ) -> Result<Flow, Halt> {
        let Some((at, _)) = packet.connection else { return Ok(Flow::Done) };
        let Some(port) = within(packet.ends.source_port, ports, packet.protocol) else {
            return Err(self.unknown(id, "which port of a range is taken"));
        };
        self.shuffled |= packet.protocol.has_ports() && self.chooses_at_random(id);
        self.connections[at].from = Some((Value::made(address), port));
        self.connections[at].settled[SOURCE] = true;
        Ok(Flow::Done)
    }
}

const fn changed(mark: Mark, change: MarkChange) -> Mark {
    let kept = mark.bits(change.keep);
    Mark { keep: kept.keep, flip: kept.flip ^ change.flip }
}

/// The port that a packet gets of a range: its own if it is one of them.
fn within(own: Value, ports: Option<(u16, u16)>, protocol: Protocol) -> Option<Value> {
    match ports {
        None => Some(own),
        Some(_) if !protocol.has_ports() => Some(own),
        Some((first, last)) if first == last => Some(Value::made(first.into())),
        Some(_) => None,
    }
}
