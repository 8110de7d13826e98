//! The command line of `millrace trace`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use millrace_core::sim::{Direction, Protocol};
use millrace_core::trace::Filter;
use millrace_core::value::{Cidr, Gid, Port, PortRange, Uid};

use super::ask::{end, ids, number};
use super::node::{bpffs, folder};
use super::own::{Common, NotTyped, duration};

#[derive(Debug)]
pub(crate) struct Trace {
    pub(crate) common: Common,
    /// Which connections are reported: those that every flag fits.
    pub(crate) filter: Filter,
    /// After how many to end; never with none.
    pub(crate) count: Option<u64>,
    /// After how long to end; never with none.
    pub(crate) timeout: Option<Duration>,
    /// What the node's eBPF programs decide is told, and not what rules do.
    pub(crate) ebpf: Option<Sampled>,
}

/// Reports of the node's eBPF programs.
#[derive(Debug)]
pub(crate) struct Sampled {
    /// The folder of a bpffs that holds the pins of these programs.
    pub(crate) folder: PathBuf,
    /// One of how many decisions is told of.
    pub(crate) one_of: u32,
}

/// Its flags, beside those of every command that works in a namespace.
pub(super) fn args(command: Command) -> Command {
    let text = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    let switch =
        |name: &'static str, help| Arg::new(name).long(name).help(help).action(ArgAction::SetTrue);
    command
        .arg(text("from", "uid=N[,gid=N]", "Connections that this user or group makes"))
        .arg(switch("in", "Connections from outside").conflicts_with("from"))
        .arg(switch("out", "Connections that processes of the namespace make").conflicts_with("in"))
        .arg(text(
            "to",
            "ADDRESS[:PORT][/PROTOCOL]|NETWORK",
            "Original destination, before any redirection",
        ))
        .arg(text(
            "to-port",
            "PORT[-PORT]",
            "Original destination port or range, before any redirection",
        ))
        .arg(text("proto", "PROTOCOL", "tcp, udp or another one by name or number [default: both]"))
        .arg(text("src", "ADDRESS|NETWORK", "Source address or network"))
        .arg(text("mark", "MARK", "The mark of their packets, decimal or 0x..."))
        .arg(text("iface", "NAME", "Inbound interface; a trailing + matches any suffix"))
        .arg(switch("every-packet", "Every packet, not only the first of each connection"))
        .arg(
            text("count", "NUMBER", "Exit after this many reports [default: no limit]")
                .value_parser(clap::value_parser!(u64).range(1..)),
        )
        .arg(text("timeout", "DURATION", "Exit after this time, such as 30s [default: no limit]"))
        .arg(
            text(
                "backend",
                "BACKEND",
                "What to trace. netfilter: iptables and nftables rules; ebpf: decisions \
                 of the node's eBPF programs",
            )
            .value_parser(["netfilter", "ebpf"])
            .default_value("netfilter"),
        )
        .arg(bpffs())
        .arg(
            text(
                "sample",
                "NUMBER",
                "With --backend ebpf, report one in NUMBER decisions, chosen at random",
            )
            .value_parser(clap::value_parser!(u32).range(1..))
            .default_value("1"),
        )
}

pub(super) fn trace(m: &ArgMatches, common: Common) -> Result<Trace, NotTyped> {
    let timeout = m.contains_id("timeout").then(|| duration(m, "timeout", "1s")).transpose()?;
    let count = m.get_one::<u64>("count").copied();
    let filter = filter(m)?;
    let by_ebpf = m.get_one::<String>("backend").is_some_and(|backend| backend == "ebpf");
    let needs_packets = filter.every_packet || filter.mark.is_some() || filter.interface.is_some();
    if by_ebpf && needs_packets {
        let message = "--every-packet, --mark and --iface are about packets, which --backend ebpf \
                       does not see";
        return Err(NotTyped::Bad(message.to_owned()));
    }
    if !by_ebpf && m.value_source("sample") == Some(ValueSource::CommandLine) {
        let message = "--sample is about decisions of eBPF programs: it goes with --backend ebpf";
        return Err(NotTyped::Bad(message.to_owned()));
    }
    let one_of = m.get_one::<u32>("sample").copied().unwrap_or(1);
    let ebpf = by_ebpf.then(|| Sampled { folder: folder(m), one_of });
    Ok(Trace { common, filter, count, timeout, ebpf })
}

fn filter(m: &ArgMatches) -> Result<Filter, NotTyped> {
    let word = |name: &str| m.get_one::<String>(name).map(String::as_str);
    let mut filter = Filter { every_packet: m.get_flag("every-packet"), ..Filter::default() };
    let outward = m.get_flag("out").then_some(Direction::Out);
    filter.direction = m.get_flag("in").then_some(Direction::In).or(outward);
    if let Some(text) = word("from") {
        let what = "it has to be uid=N, gid=N or both, such as uid=1000,gid=1000";
        let (uid, gid) = ids(text).ok_or_else(|| bad("from", text, what))?;
        let number = "a number of a user or group is below 4294967295";
        let uid = uid.map(|id| Uid::new(id).ok_or_else(|| bad("from", text, number)));
        let gid = gid.map(|id| Gid::new(id).ok_or_else(|| bad("from", text, number)));
        (filter.uid, filter.gid) = (uid.transpose()?, gid.transpose()?);
    }
    if let Some(text) = word("to") {
        let to = destination(text).ok_or_else(|| {
            let what = "a destination is ADDRESS:PORT/PROTOCOL, such as 10.4.0.3:8000/tcp or \
                        [fd00::1]:53/udp, or a network, such as 10.4.0.0/16";
            bad("to", text, what)
        })?;
        (filter.destination, filter.port, filter.protocol) = to;
    }
    if let Some(text) = word("to-port") {
        let what = "a port is a number up to 65535, and a range two of them: 8000-8080";
        filter.port = Some(ports(text).ok_or_else(|| bad("to-port", text, what))?);
    }
    if let Some(name) = word("proto") {
        let known = Protocol::from_name(name);
        let what = "this protocol is not known";
        filter.protocol = Some(known.ok_or_else(|| bad("proto", name, what))?);
    }
    if let Some(text) = word("src") {
        let what = "a source is an address or a network, such as 10.4.0.3 or 10.4.0.0/16";
        filter.source = Some(network(text).ok_or_else(|| bad("src", text, what))?);
    }
    if let Some(text) = word("mark") {
        let what = "a mark is a 32 bit number";
        filter.mark = Some(number(text).ok_or_else(|| bad("mark", text, what))?);
    }
    if let Some(text) = word("iface") {
        filter.interface = Some(text.parse().map_err(|e| NotTyped::Bad(format!("--iface: {e}")))?);
    }
    // A filter that no connection can pass is told before anything is done.
    filter.table().map_err(|error| NotTyped::Bad(error.to_string()))?;
    Ok(filter)
}

fn bad(flag: &str, value: &str, what: &str) -> NotTyped {
    NotTyped::Bad(format!("--{flag} {value:?}: {what}"))
}

fn network(text: &str) -> Option<Cidr> {
    text.parse::<IpAddr>()
        .map(|ip| Cidr::host(ip.to_canonical()))
        .ok()
        .or_else(|| text.parse().ok())
}

fn ports(text: &str) -> Option<PortRange> {
    let port = |text: &str| text.parse().ok().map(Port::new);
    match text.split_once('-') {
        Some((first, last)) => PortRange::new(port(first)?, port(last)?),
        None => port(text).map(PortRange::single),
    }
}

type Destination = (Option<Cidr>, Option<PortRange>, Option<Protocol>);

fn destination(text: &str) -> Option<Destination> {
    if let Some(network) = network(text) {
        return Some((Some(network), None, None));
    }
    let (address, name) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
    let (ip, port) = end(address)?;
    let protocol = name.map(|name| Protocol::from_name(name).ok_or(())).transpose().ok()?;
    Some((Some(Cidr::host(ip)), port.map(|p| PortRange::single(Port::new(p))), protocol))
}

#[cfg(test)]
mod tests {
    use super::super::own::{NotTyped, Own, read};
    use super::*;

    fn typed(words: &[&str]) -> Result<Trace, NotTyped> {
        let words = [&["trace"], words].concat();
        match read(words.iter().map(Into::into).collect())? {
            Own::Trace(trace) => Ok(trace),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn nothing_typed_means_everything() {
        let trace = typed(&[]).unwrap();
        assert_eq!(trace.filter, Filter::default());
        assert_eq!((trace.count, trace.timeout), (None, None));
    }

    #[test]
    fn what_is_typed_is_meant() {
        let words = ["--from", "uid=1000", "--to", "10.4.0.3:8000/tcp", "--count", "2"];
        let trace = typed(&words).unwrap();
        let filter = trace.filter;
        assert_eq!((filter.uid.map(Uid::get), filter.gid), (Some(1000), None));
        assert_eq!(filter.destination, Some("10.4.0.3/32".parse().unwrap()));
        assert_eq!(filter.port, ports("8000"));
        assert_eq!((filter.protocol, trace.count), (Some(Protocol::TCP), Some(2)));
        let words = ["--in", "--src", "fd00::/64", "--to-port", "1-1024", "--proto", "udp"];
        let filter = typed(&[&words[..], &["--iface", "eth+", "--mark", "0x539"]].concat());
        let filter = filter.unwrap().filter;
        assert_eq!(filter.direction, Some(Direction::In));
        assert_eq!(filter.source, Some("fd00::/64".parse().unwrap()));
        assert_eq!((filter.port, filter.mark), (ports("1-1024"), Some(1337)));
        assert_eq!(
            typed(&["--to", "10.4.0.0/16"]).unwrap().filter.destination,
            network("10.4.0.0/16")
        );
        assert_eq!(typed(&["--timeout", "2s"]).unwrap().timeout, Some(Duration::from_secs(2)));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for words in [
            &["--to", "nowhere"][..],
            &["--to", "10.4.0.3:80/abc"],
            &["--to-port", "9-1"],
            &["--to-port", "65536"],
            &["--from", "root"],
            &["--from", "uid=4294967295"],
            &["--in", "--from", "uid=1"],
            &["--in", "--out"],
            &["--from", "uid=1", "--iface", "eth0"],
            &["--src", "10.0.0.1", "--to", "fd00::1"],
            &["--proto", "icmp", "--to-port", "1"],
            &["--count", "0"],
            &["--timeout", "soon"],
        ] {
            assert!(matches!(typed(words), Err(NotTyped::Bad(_))), "{words:?}");
        }
    }
}
