//! Forms of native rules, each alone in a pod: read live and as nft prints them they have the same
//! answer, which names what is not modelled; and where it is told, it is what the kernel does.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};
use millrace_core::sim::compare::{compare, difference_text};
use millrace_core::sim::graph::{Format, Trail, picture};
use millrace_core::sim::report::classes_text;
use millrace_core::sim::{
    Direction, Namespace, Outcome as Told, Program, Protocol, Question, partition,
};
use millrace_tests::fates::{Dice, Ground, Try, differs};

/// What a form is for a new connection of TCP to port 80 outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    /// It holds, and the connection is dropped.
    Met,
    /// It does not.
    Missed,
    /// It can't be told.
    Named,
}

use Is::{Met, Missed, Named};

/// Where rules stand.
const FILTER: &str = "type filter hook output priority 0";
const EARLY: &str = "type filter hook output priority -300";
const NAT: &str = "type nat hook output priority -100";

/// Forms, and whether they are drops by themselves.
const FORMS: &[(&str, &str, Is)] = &[
    // Connections.
    (FILTER, "ct state new drop", Met),
    (FILTER, "ct state != new drop", Missed),
    (FILTER, "ct state ! established,related drop", Met),
    (FILTER, "ct state & new == new drop", Met),
    (FILTER, "ct state vmap { established : accept, new : drop }", Met),
    (FILTER, "ct status & dnat == 0 drop", Met),
    (FILTER, "ct status & (snat | dnat) != 0 drop", Missed),
    (FILTER, "ct status ! dnat drop", Met),
    (FILTER, "ct status == dnat drop", Named),
    (FILTER, "ct status != dnat drop", Named),
    (FILTER, "ct status confirmed drop", Named),
    (FILTER, "ct direction original drop", Met),
    (FILTER, "ct original ip daddr 10.0.0.0/8 drop", Met),
    (FILTER, "ct original ip daddr != { 10.0.0.0/8, 11.0.0.1 } drop", Missed),
    (FILTER, "meta l4proto tcp ct original proto-dst 80 drop", Met),
    (FILTER, "meta l4proto tcp ct original proto-dst 81-90 drop", Missed),
    (FILTER, "meta l4proto tcp ct original proto-src 1-80 drop", Missed),
    (FILTER, "ct reply ip saddr 10.0.0.0/8 drop", Named),
    (FILTER, "ct mark 0x0 drop", Met),
    (FILTER, "ct l3proto ipv4 drop", Named),
    (FILTER, "ct protocol tcp drop", Named),
    (FILTER, "ct bytes > 100 drop", Named),
    (FILTER, "ct helper \"ftp\" drop", Named),
    (FILTER, "ct label 1 drop", Named),
    (FILTER, "meta l4proto tcp ct helper set \"h\" drop", Met),
    (FILTER, "meta l4proto tcp ct timeout set \"t\" drop", Met),
    (FILTER, "ct zone 0 drop", Named),
    (EARLY, "ct original zone set 1 counter drop", Named),
    (FILTER, "ct count over 5 drop", Named),
    // What is around a packet.
    (FILTER, "meta protocol ip drop", Met),
    (FILTER, "meta nfproto ipv6 drop", Missed),
    (FILTER, "meta cgroup 5 drop", Named),
    (FILTER, "socket cgroupv2 level 1 \"nothing\" drop", Named),
    (FILTER, "meta pkttype host drop", Met),
    (FILTER, "meta pkttype != host drop", Missed),
    (FILTER, "meta pkttype { broadcast, multicast } drop", Missed),
    (FILTER, "meta pkttype other drop", Named),
    (FILTER, "meta oifgroup 0 drop", Named),
    (FILTER, "meta iifgroup 0 drop", Named),
    (FILTER, "meta length > 20 drop", Named),
    (FILTER, "meta priority 0 drop", Named),
    (FILTER, "meta cpu 0 drop", Named),
    (FILTER, "meta hour \"00:00\"-\"23:59\" drop", Named),
    (FILTER, "meta mark { 0x0, 0x7 } drop", Named),
    (FILTER, "meta skuid { 1000, 7 } drop", Met),
    (FILTER, "meta skuid != 1000 drop", Missed),
    (FILTER, "rt ip nexthop 10.70.0.1 drop", Named),
    (FILTER, "fib daddr type local drop", Missed),
    (FILTER, "fib daddr type != local drop", Met),
    (FILTER, "fib daddr type unicast drop", Met),
    (FILTER, "fib daddr type { local, unicast } drop", Met),
    (FILTER, "fib daddr type { broadcast, multicast } drop", Missed),
    (FILTER, "fib daddr type anycast drop", Named),
    (FILTER, "fib saddr oif exists drop", Named),
    (FILTER, "fib daddr . mark type local drop", Named),
    // Chance, and what counts.
    (FILTER, "numgen random mod 2 == 0 drop", Named),
    (FILTER, "numgen inc mod 2 vmap { 0 : drop, 1 : accept }", Named),
    (FILTER, "jhash ip saddr mod 2 == 0 drop", Named),
    (FILTER, "symhash mod 2 0 drop", Named),
    (FILTER, "limit rate 5/second drop", Named),
    (FILTER, "limit rate 5/second log", Missed),
    (FILTER, "quota over 10 mbytes drop", Named),
    (FILTER, "counter name \"c\" drop", Met),
    (FILTER, "quota name \"q\" drop", Named),
    (FILTER, "limit name \"l\" drop", Named),
    (FILTER, "log prefix \"drop \"", Missed),
    (FILTER, "log prefix \"drop \" group 5 snaplen 40 queue-threshold 2", Missed),
    (FILTER, "log level audit", Missed),
    (FILTER, "log level debug flags all drop", Met),
    (FILTER, "meta length > 20 log group 7", Missed),
    // Headers.
    (FILTER, "tcp flags & (fin | syn | rst | ack) == syn drop", Met),
    (FILTER, "tcp flags syn drop", Met),
    (FILTER, "tcp flags & rst == rst drop", Missed),
    (FILTER, "tcp flags != syn drop", Named),
    (FILTER, "tcp flags & (syn | ack) == syn drop", Met),
    (FILTER, "tcp option maxseg size > 10 drop", Named),
    (FILTER, "rt type 0 drop", Missed),
    (FILTER, "frag more-fragments 1 drop", Missed),
    (FILTER, "ip dscp 0 drop", Named),
    (FILTER, "ip ttl 64 drop", Named),
    (FILTER, "ip length > 20 drop", Named),
    (FILTER, "ip protocol tcp drop", Met),
    (FILTER, "ip daddr & 0.0.0.1 == 0 drop", Named),
    (FILTER, "@nh,64,8 64 drop", Named),
    // Whatever the protocol is.
    (FILTER, "th dport 80 drop", Met),
    (FILTER, "th dport != 80 drop", Missed),
    (FILTER, "th sport < 5 drop", Missed),
    (FILTER, "@th,16,16 80 drop", Met),
    (FILTER, "@th,104,8 & 0x17 == 2 drop", Named),
    (FILTER, "th dport vmap { 80 : drop, 443 : accept }", Met),
    (FILTER, "th dport { 80, 443 } drop", Met),
    // Sets and maps.
    (FILTER, "ip daddr @plain drop", Met),
    (FILTER, "ip daddr != @plain drop", Missed),
    (FILTER, "ip daddr @counted drop", Met),
    (FILTER, "ip daddr @timed drop", Named),
    (FILTER, "ip daddr @limited drop", Named),
    (FILTER, "ip saddr 10.9.9.9 add @grows { ip daddr }\nip daddr @grows drop", Named),
    (FILTER, "add @grows { ip daddr } drop", Named),
    (FILTER, "update @grows { ip daddr limit rate 5/second } drop", Named),
    (FILTER, "ip daddr . tcp dport { 10.0.0.0/8 . 79-80 } drop", Met),
    (FILTER, "ip daddr . meta l4proto . th dport { 10.0.0.0/8 . udp . 80 } drop", Missed),
    (FILTER, "ip daddr . tcp dport vmap { 10.0.0.0/8 . 80 : drop, 11.0.0.0/8 . 80 : accept }", Met),
    (FILTER, "tcp dport vmap { 443 : accept, * : drop }", Met),
    (FILTER, "oifname vmap { \"eth0\" : drop, \"eth1\" : drop, \"lo\" : accept }", Met),
    (FILTER, "meta mark set tcp dport map { 80 : 0x1, 443 : 0x2 } drop", Met),
    (FILTER, "meta mark set tcp dport map { 81 : 0x1 } drop", Missed),
    (FILTER, "meta mark set meta mark xor 0x1 tcp dport vmap { 80 : drop, 443 : accept }", Named),
    // What is done.
    (FILTER, "reject with tcp reset", Met),
    (FILTER, "queue num 0", Named),
    (FILTER, "queue num 0 bypass", Named),
    (FILTER, "ip dscp set af11", Named),
    (FILTER, "ip daddr set 10.1.1.1", Named),
    (FILTER, "meta priority set 1:2 drop", Met),
    (FILTER, "tcp option maxseg size set 1000 drop", Met),
    (NAT, "tcp dport 80 redirect to :8080", Met),
    (NAT, "meta l4proto tcp redirect to :tcp dport map { 80 : 8080, 443 : 9090 }", Met),
    (NAT, "meta l4proto tcp redirect to :8080-8081", Named),
    (NAT, "dnat ip to tcp dport map { 80 : 127.0.0.1, 443 : 127.0.0.2 }", Met),
    (NAT, "dnat ip to numgen inc mod 2 map { 0 : 127.0.0.1, 1 : 127.0.0.2 }", Named),
    (NAT, "dnat ip to 10.71.0.1-10.71.0.9", Named),
];

/// What forms name.
const NAMED: &str = "
    counter c { }
    quota q { over 10 mbytes }
    limit l { rate 5/second }
    set plain { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 } }
    set counted { type ipv4_addr; flags interval; counter; elements = { 10.0.0.0/8 } }
    set timed { type ipv4_addr; flags interval, timeout; elements = { 10.0.0.0/8 timeout 1h } }
    set grows { type ipv4_addr; flags dynamic; }
";
/// What single forms name: not every nft writes it, nor has every kernel it.
const BESIDE: [(&str, &str); 3] = [
    ("@limited", "set limited { type ipv4_addr; limit rate 5/second; elements = { 10.72.0.10 } }"),
    ("helper set", "ct helper h { type \"ftp\" protocol tcp; }"),
    ("timeout set", "ct timeout t { protocol tcp; policy = { established : 60 }; }"),
];

/// A connection of TCP to port 80 outside.
fn connection(ground: &mut Ground, dice: &mut Dice, program: &Program, around: &Namespace) -> Try {
    loop {
        let one = ground.connection(dice);
        let q = &one.question;
        let fits = (q.direction, q.protocol, q.port, q.mark)
            == (Direction::Out, Protocol::TCP, 80, 0)
            && q.destination.is_ipv4()
            && q.owner.is_some_and(|owner| owner.uid == 1000)
            && matches!(program.answer(around, q).outcome, Told::Passed { .. });
        if fits {
            return one;
        }
    }
}

/// What becomes of a connection. What can't be told, classes, a comparison and a picture have to name.
fn everywhere(program: &Program, around: &Namespace, question: &Question) -> Result<Told> {
    let told = program.explain(around, question);
    let Told::Unknown { what } = &told.answer.outcome else { return Ok(told.answer.outcome) };
    let classes = partition(program, around);
    let class = classes.iter().find(|class| class.has(question)).context("no class")?;
    ensure!(class.answer.outcome == told.answer.outcome, "--all: {:?}", class.answer.outcome);
    let nothing = Program::new(Vec::new());
    let compared = compare((program, around), (&nothing, around));
    let change = compared.traffic.iter().find(|class| class.has(question));
    let before = change.map(|change| &change.answer.before.outcome);
    ensure!(before == Some(&told.answer.outcome), "diff: {before:?}");
    let named = format!("can't be told: {what}");
    for text in [
        classes_text(program, &classes),
        difference_text(program, &nothing, &compared),
        picture(program, Format::Dot, None, Some(&Trail::of(&told))),
    ] {
        ensure!(text.replace("\\\"", "\"").contains(&named), "{named} is not in\n{text}");
    }
    Ok(told.answer.outcome)
}

/// Verify every form.
#[test]
fn every_form_is_what_the_kernel_does_or_named() -> Result<()> {
    let mut ground = Ground::new()?;
    let mut dice = Dice(u64::from(std::process::id()));
    println!("seed {}", dice.0);
    let nothing = Program::new(Vec::new());
    let (mut wrong, mut refused) = (String::new(), BTreeMap::new());
    for (place, form, is) in FORMS {
        let beside = BESIDE.iter().filter(|(named, _)| form.contains(named));
        let beside: String = beside.map(|(_, object)| *object).collect();
        let rules = format!("table inet t {{{NAMED}{beside}\nchain c {{ {place}\n{form}\n}}\n}}");
        let (program, around) = match ground.hold(&rules) {
            Ok(held) => held,
            Err(error) => {
                let why = format!("{error:#}");
                let why = why.lines().find(|line| line.contains("rror")).unwrap_or(&why);
                refused.insert(*form, why.to_owned());
                continue;
            }
        };
        let saved = ground.printed("nftables")?;
        let one = connection(&mut ground, &mut dice, &nothing, &around);
        let live = everywhere(&program, &around, &one.question)?;
        let printed = saved.answer(&around, &one.question).outcome;
        let kind = |told: &Told| match told {
            Told::Unknown { .. } => Named,
            Told::Passed { .. } => Missed,
            _ => Met,
        };
        if (kind(&live), kind(&printed)) != (*is, *is) {
            writeln!(wrong, "{form}: live {live:?}, as printed {printed:?}, and not {is:?}")?;
            continue;
        }
        if *is == Named {
            continue;
        }
        // On a machine with much to do a packet can be late.
        let mut last = None;
        for one in [one.clone(), one.again(&mut ground), one.again(&mut ground)] {
            let outcomes = ground.make(std::slice::from_ref(&one))?;
            last = differs(&program, &around, &one.question, &outcomes[0]);
            if last.is_none() {
                break;
            }
        }
        if let Some(why) = last {
            writeln!(wrong, "{form}: {why}")?;
        }
    }
    println!("{} forms, refused here: {refused:#?}", FORMS.len());
    ensure!(wrong.is_empty(), "{wrong}");
    // A kernel, or an nft, can be without some of them.
    ensure!(refused.len() * 4 < FORMS.len(), "too many are refused: {refused:#?}");
    Ok(())
}
