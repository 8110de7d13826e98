//! How iptables and nft write what rules ask.

use std::fmt;

use super::rule::Cond;

/// A condition as iptables writes it.
pub(super) struct InIptables<'a>(pub(super) &'a Cond);

impl fmt::Display for InIptables<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = |not: bool| if not { "! " } else { "" };
        match self.0 {
            Cond::Port { not: n, source, first, last } => {
                let side = if *source { "sport" } else { "dport" };
                write!(f, "{}--{side} {first}", not(*n))?;
                if first == last { Ok(()) } else { write!(f, ":{last}") }
            }
            Cond::Ports { not: n, list } => {
                let list: Vec<String> = list.iter().map(u16::to_string).collect();
                write!(f, "-m multiport {}--dports {}", not(*n), list.join(","))
            }
            Cond::Address { not: n, source, network } => {
                write!(f, "{}{} {network}", not(*n), if *source { "-s" } else { "-d" })
            }
            Cond::Interface { not: n, out, name } => {
                write!(f, "{}{} {name}", not(*n), if *out { "-o" } else { "-i" })
            }
            Cond::Owner { not: n, group, first, last } => {
                let what = if *group { "gid" } else { "uid" };
                write!(f, "-m owner {}--{what}-owner {first}", not(*n))?;
                if first == last { Ok(()) } else { write!(f, "-{last}") }
            }
            Cond::State { not: n, states } => {
                write!(f, "-m conntrack {}--ctstate {}", not(*n), states.to_ascii_uppercase())
            }
            Cond::Mark { not: n, connection, value, mask } => {
                let module = if *connection { "connmark" } else { "mark" };
                write!(f, "-m {module} {}--mark {value:#x}/{mask:#x}", not(*n))
            }
            Cond::Local { not: n, source } => {
                let side = if *source { "src" } else { "dst" };
                write!(f, "-m addrtype {}--{side}-type LOCAL", not(*n))
            }
            Cond::Reply { not: n } => {
                write!(f, "-m conntrack --ctdir {}", if *n { "ORIGINAL" } else { "REPLY" })
            }
            Cond::Syn { not: n } => write!(f, "{}--syn", not(*n)),
            Cond::Flags { not: n, mask, set } => {
                let [mask, set] = [mask, set].map(|flags| flags.to_uppercase());
                write!(f, "{}--tcp-flags {mask} {set}", not(*n))
            }
            Cond::Range { not: n, first, last } => {
                write!(f, "-m iprange {}--dst-range {first}-{last}", not(*n))
            }
            Cond::AddressType { not: n, source, types } => {
                let side = if *source { "src" } else { "dst" };
                write!(f, "-m addrtype {}--{side}-type {}", not(*n), types.to_uppercase())
            }
            Cond::ForThisHost { not: n } => {
                write!(f, "-m pkttype {}--pkt-type unicast", not(*n))
            }
            Cond::ReturnRoute { not: n, loose, mark } => {
                let option = |given: bool, option| if given { option } else { "" };
                let (loose, mark) = (option(*loose, " --loose"), option(*mark, " --validmark"));
                write!(f, "-m rpfilter{loose}{mark}{}", option(*n, " --invert"))
            }
            Cond::Original { not: n, source, network } => {
                let side = if *source { "src" } else { "dst" };
                write!(f, "-m conntrack {}--ctorig{side} {network}", not(*n))
            }
            Cond::OriginalPort { not: n, first, last } => {
                write!(f, "-m conntrack {}--ctorigdstport {first}:{last}", not(*n))
            }
        }
    }
}

/// The same as nft writes it.
pub(super) fn in_nft(cond: &Cond, family: &str) -> String {
    let not = |not: bool| if not { "!= " } else { "" };
    let range = |first: u32, last: u32| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    match cond {
        Cond::Port { not: n, source, first, last } => {
            let side = if *source { "sport" } else { "dport" };
            format!("th {side} {}{}", not(*n), range((*first).into(), (*last).into()))
        }
        Cond::Ports { not: n, list } => {
            let list: Vec<String> = list.iter().map(u16::to_string).collect();
            format!("th dport {}{{ {} }}", not(*n), list.join(", "))
        }
        Cond::Address { not: n, source, network } => {
            format!("{family} {} {}{network}", if *source { "saddr" } else { "daddr" }, not(*n))
        }
        Cond::Interface { not: n, out, name } => {
            let name = name.replace('+', "*");
            format!("{} {}\"{name}\"", if *out { "oifname" } else { "iifname" }, not(*n))
        }
        Cond::Owner { not: n, group, first, last } => {
            let what = if *group { "skgid" } else { "skuid" };
            format!("meta {what} {}{}", not(*n), range(*first, *last))
        }
        Cond::State { not: n, states } if matches!(*states, "dnat" | "snat") => {
            format!("ct status & {states} {} 0", if *n { "==" } else { "!=" })
        }
        Cond::State { not: n, states } => {
            format!("ct state {}{{ {} }}", not(*n), states.replace(',', ", "))
        }
        Cond::Mark { not: n, connection, value, mask } => {
            let of = if *connection { "ct mark" } else { "meta mark" };
            format!("{of} & {mask:#x} {} {value:#x}", if *n { "!=" } else { "==" })
        }
        Cond::Local { not: n, source } => {
            format!("fib {} type {}local", if *source { "saddr" } else { "daddr" }, not(*n))
        }
        Cond::Reply { not: n } => {
            format!("ct direction {}", if *n { "original" } else { "reply" })
        }
        Cond::Syn { not: n } => {
            let is = if *n { "!=" } else { "==" };
            format!("tcp flags & (fin | syn | rst | ack) {is} syn")
        }
        Cond::Flags { not: n, mask, set } => {
            let is = if *n { "!=" } else { "==" };
            let [mask, set] = [mask, set].map(|flags| flags.replace(',', " | "));
            format!("tcp flags & ({mask}) {is} {set}")
        }
        Cond::Range { not: n, first, last } => {
            format!("{family} daddr {}{first}-{last}", not(*n))
        }
        Cond::AddressType { not: n, source, types } => {
            let (side, types) = (if *source { "saddr" } else { "daddr" }, types.replace(',', ", "));
            format!("fib {side} type {}{{ {types} }}", not(*n))
        }
        Cond::ForThisHost { not: n } => format!("meta pkttype {}host", not(*n)),
        Cond::ReturnRoute { not: n, loose, mark } => {
            let mark = if *mark { " . mark" } else { "" };
            let by = if *loose { "" } else { " . iif" };
            format!("fib saddr{mark}{by} oif {}", if *n { "missing" } else { "exists" })
        }
        Cond::Original { not: n, source, network } => {
            let side = if *source { "saddr" } else { "daddr" };
            format!("ct original {family} {side} {}{network}", not(*n))
        }
        Cond::OriginalPort { not: n, first, last } => {
            let range = range((*first).into(), (*last).into());
            format!("ct original proto-dst {}{range}", not(*n))
        }
    }
}
