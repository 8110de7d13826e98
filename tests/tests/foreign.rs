//! Rules that Millrace did not write, against the kernel: connections really made, each held against
//! what is said of the rules as they are read live, and of the same rules saved.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use millrace_core::sim::compare::{compare, difference_text};
use millrace_core::sim::{Outcome as Told, Program};
use millrace_tests::fates::{Dice, Ground, Try, differs};

/// Connections for each set of rules.
const CONNECTIONS: usize = 40;
/// How often what is in doubt is made again.
const AGAIN: usize = 3;

/// Native rules by what they are about, and whether nft prints all of them as JSON that can be read.
const NATIVE: [(&str, bool, &str); 11] = [
    (
        "what stands where others have a port: a type and a code of ICMP, which tell who is refused",
        true,
        "
table inet t {
    chain i { type filter hook input priority 0; policy accept
        tcp dport { 80, 8080 } reject with icmpx port-unreachable
        udp dport 53 reject with icmpx port-unreachable
    }
    chain o { type filter hook output priority 0; policy accept
        oifname \"lo\" th sport { 256-511, 768-1023 } drop
        th dport 8005 drop
        @th,16,16 9090 drop
    }
}",
    ),
    (
        "verdict maps by state",
        true,
        "
table inet t {
    chain o { type filter hook output priority 0; policy accept
        ct state vmap { established : accept, related : accept, new : drop }
    }
}",
    ),
    (
        "verdict maps by port and interface, goto",
        true,
        "
table inet t {
    chain some { meta skuid 1000 drop
    }
    chain o { type filter hook output priority 0; policy accept
        tcp dport vmap { 80 : drop, 443 : jump some, 8000-8010 : goto some }
        tcp dport 8005 drop
    }
    chain p { type filter hook prerouting priority -300; policy accept
        iifname vmap { lo : accept, eth0 : goto outer }
        tcp dport 9090 drop
    }
    chain outer { udp dport 53 drop
    }
}",
    ),
    (
        "translation",
        true,
        "
table inet t {
    chain o { type nat hook output priority -100; policy accept
        fib daddr type local tcp dport 80 redirect to :8080
        meta nfproto ipv4 tcp dport 443 dnat ip to 127.0.0.1:8080
        tcp dport 8000 redirect
        tcp dport { 22, 9090 } dnat ip6 to [::1]:8080
    }
    chain i { type filter hook input priority 0; policy accept
        ct status dnat meta skuid 1 drop
        ct direction reply accept
        ct status dnat udp dport 53 drop
    }
}",
    ),
    (
        "status of what has no connection",
        false,
        "
table inet t {
    chain r { type filter hook output priority -300; policy accept
        th dport { 80, 8000 } notrack
    }
    chain o { type filter hook output priority 0; policy accept
        ct status & dnat == 0 th dport { 80, 443 } drop
    }
    chain i { type filter hook input priority 0; policy accept
        ct status & snat == 0 th dport { 8000, 9090 } drop
    }
}",
    ),
    (
        "bits of marks",
        true,
        "
table inet t {
    chain o { type route hook output priority -150; policy accept
        meta mark set meta mark or 0x2000
        ct mark set meta mark and 0x2fff
        ct mark set ct mark xor 0x2003
        meta mark set ct mark and 0xff
    }
    chain f { type filter hook output priority 0; policy accept
        meta mark and 0x3 == 0x3 tcp dport 80 drop
        ct mark 0x3 tcp dport 443 reject with tcp reset
        ct mark != 0x3 drop
    }
}",
    ),
    (
        "owners and interfaces",
        true,
        "
table inet t {
    chain o { type filter hook output priority 0; policy accept
        meta skuid >= 1000 tcp dport 80 drop
        meta skuid 1-9 tcp dport 443 reject with tcp reset
        meta skgid { 7, 202 } drop
        oif lo udp dport 80 drop
        oif eth0 tcp dport > 9000 drop
    }
    chain i { type filter hook input priority 0; policy accept
        iif eth1 tcp dport 22 drop
        tcp flags & (fin | syn | rst | ack) == syn tcp dport 8000 drop
    }
}",
    ),
    (
        "two chains of one priority",
        true,
        "
table inet t {
    chain a { type route hook output priority -150; policy accept
        tcp dport 80 meta mark set 1
    }
    chain b { type filter hook output priority -150; policy accept
        meta mark 1 drop
        tcp dport 443 meta mark set 2
    }
    chain c { type filter hook output priority -149; policy accept
        meta mark 2 drop
    }
    chain n { type nat hook output priority -100; policy accept
        tcp dport { 8000, 8005 } redirect to :8080
    }
    chain m { type nat hook output priority -100; policy accept
        tcp dport 8000 redirect to :9090
    }
}",
    ),
    (
        "chains at interfaces",
        false,
        "
table netdev t {
    chain i { type filter hook ingress device \"eth0\" priority 0; policy accept
        tcp dport 80 drop
        ip saddr 10.70.0.0/16 udp sport 53 drop
    }
    chain e { type filter hook egress device \"eth0\" priority 0; policy accept
        tcp dport 8080 drop
    }
}
table inet u {
    chain i { type filter hook ingress device \"lo\" priority 0; policy accept
        tcp dport 443 drop
    }
}",
    ),
    (
        "a dormant table",
        false,
        "
table inet t {
    flags dormant
    chain o { type filter hook output priority 0; policy accept
        drop
    }
}
table inet u {
    chain o { type filter hook output priority 0; policy accept
        tcp dport 80 drop
    }
}",
    ),
    (
        "maps and several keys",
        false,
        "
table inet t {
    set closed { type ipv4_addr . inet_proto . inet_service; flags interval
        elements = { 10.0.0.0/8 . tcp . 8000-8005, 127.0.0.1 . udp . 53 }
    }
    chain o { type nat hook output priority -100; policy accept
        meta l4proto tcp redirect to :tcp dport map { 80 : 8080, 443 : 9090 }
    }
    chain f { type filter hook output priority 0; policy accept
        ip daddr . meta l4proto . th dport @closed drop
        ip6 daddr . tcp dport vmap { fd70::2 . 22 : drop, ::1 . 22 : drop }
        tcp dport vmap { 9090 : accept, 15021 : drop, * : accept }
    }
}",
    ),
];

/// Rules of iptables.
const IPTABLES: [(&str, &[&str]); 4] = [
    (
        "marks that are flipped",
        &[
            "-t mangle -A OUTPUT -p tcp --dport 80 -j MARK --set-xmark 0x4000/0x4000",
            "-t mangle -A OUTPUT -p tcp -j MARK --set-xmark 0x4000/0x0",
            "-t mangle -A OUTPUT -j CONNMARK --save-mark --nfmask 0xf000 --ctmask 0xffff",
            "-t filter -A OUTPUT -m mark --mark 0x4000/0x4000 -j DROP",
            "-t filter -A INPUT -p udp -m connmark --mark 0x0 -j REJECT",
        ],
    ),
    (
        "targets without options",
        &[
            "-t raw -A OUTPUT -p udp --dport 80 -j NOTRACK",
            "-t raw -A OUTPUT -j TRACE",
            "-t nat -A POSTROUTING -o eth0 -j MASQUERADE",
            "-t filter -A OUTPUT -j NFLOG",
            "-t filter -A OUTPUT -m conntrack --ctstate UNTRACKED -j DROP",
            "-t filter -A OUTPUT -p tcp --dport 443 -j REJECT --reject-with tcp-reset",
        ],
    ),
    (
        "what tells of packets that are not tracked",
        &[
            "-t raw -A OUTPUT -j CT --notrack",
            "-t filter -A OUTPUT -p tcp --dport 80 -j REJECT",
            "-t filter -A OUTPUT -p tcp --dport 443 -j REJECT --reject-with tcp-reset",
            "-t mangle -A PREROUTING -m conntrack --ctstate INVALID -j DROP",
        ],
    ),
    (
        "owners",
        &[
            "-t nat -A OUTPUT -p tcp -m owner ! --uid-owner 1337 --dport 80 -j REDIRECT --to-ports 15001",
            "-t filter -A OUTPUT -m owner --gid-owner 202 -j DROP",
        ],
    ),
];

/// Make connections; what really becomes of them, where it is not what is told.
fn wrong(
    ground: &mut Ground,
    dice: &mut Dice,
    (program, around): (&Program, &millrace_core::sim::Namespace),
) -> Result<String> {
    let tries: Vec<Try> = (0..CONNECTIONS).map(|_| ground.connection(dice)).collect();
    let outcomes = ground.make(&tries)?;
    let mut wrong = String::new();
    let mut doubtful = Vec::new();
    for (one, outcome) in tries.iter().zip(&outcomes) {
        if let Told::Unknown { what } = program.answer(around, &one.question).outcome {
            writeln!(wrong, "{}\ncan't be told: {what}", one.question)?;
        } else if differs(program, around, &one.question, outcome).is_some() {
            doubtful.push(one.clone());
        }
    }
    // A machine with much to do can be slow: what is in doubt is made again, with more time. What is false
    // stays so.
    let mut found = Vec::new();
    for _ in 0..AGAIN {
        let again: Vec<Try> = doubtful.iter().map(|one| one.again(ground)).collect();
        let outcomes = ground.make(&again)?;
        (found, doubtful) = (Vec::new(), Vec::new());
        for (one, outcome) in again.into_iter().zip(&outcomes) {
            if let Some(why) = differs(program, around, &one.question, outcome) {
                found.push(why);
                doubtful.push(one);
            }
        }
    }
    found.iter().try_for_each(|why| writeln!(wrong, "{why}"))?;
    Ok(wrong)
}

/// Verify that native rules read live say what the kernel does, and that the same rules saved say so
/// too.
#[test]
fn native_rules_of_others_do_what_is_said() -> Result<()> {
    let mut ground = Ground::new()?;
    let mut dice = Dice(u64::from(std::process::id()));
    println!("seed {}", dice.0);
    let mut all = String::new();
    for (about, printed, rules) in NATIVE {
        let (program, around) = ground.hold(rules)?;
        let found = wrong(&mut ground, &mut dice, (&program, &around))?;
        if !found.is_empty() {
            writeln!(all, "== {about}\n{found}")?;
        }
        if printed {
            let saved = ground.printed("nftables")?;
            let difference = compare((&program, &around), (&saved, &around));
            if !difference.traffic.is_empty() {
                let text = difference_text(&program, &saved, &difference);
                writeln!(all, "== {about}, as printed:\n{text}")?;
            }
        }
    }
    ensure!(all.is_empty(), "{all}");
    Ok(())
}

/// Verify that rules of iptables that Millrace does not write say what the kernel does.
#[test]
fn iptables_rules_of_others_do_what_is_said() -> Result<()> {
    let mut ground = Ground::new()?;
    let mut dice = Dice(u64::from(std::process::id()));
    println!("seed {}", dice.0);
    let mut all = String::new();
    for (about, rules) in IPTABLES {
        let (program, around) = ground.hold_iptables(rules)?;
        let found = wrong(&mut ground, &mut dice, (&program, &around))?;
        if !found.is_empty() {
            writeln!(all, "== {about}\n{found}")?;
        }
    }
    ensure!(all.is_empty(), "{all}");
    Ok(())
}
