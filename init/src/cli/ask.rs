//! The command lines of the commands that ask where connections go.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use millrace_core::dialect::{DIALECTS, Dialect};
use millrace_core::sim::{Direction, EPHEMERAL, Identity, Known, Protocol, Question};

use super::node::{bpffs, folder};
use super::own::NotTyped;

/// Where rules come from, beside a configuration.
#[derive(Clone, Debug)]
pub(crate) struct Sources {
    /// `--rules`: saved rules of iptables or nftables; several are taken together.
    pub(crate) rules: Vec<PathBuf>,
    /// A pod's manifest, `FILE` or `FILE#KIND/NAME`.
    pub(crate) manifest: Option<PathBuf>,
    /// `--live`: the rules that the namespace holds.
    pub(crate) live: bool,
    /// The pod's addresses, where the source does not say them.
    pub(crate) addresses: Vec<IpAddr>,
    /// Where the container runtime listens.
    pub(crate) endpoint: PathBuf,
    /// Where the pins of eBPF capture are.
    pub(crate) bpffs: PathBuf,
}

/// The question: one connection, or every class of them.
#[derive(Clone, Debug)]
pub(crate) enum Asked {
    /// Where one connection goes. Without a destination, it goes to the pod itself.
    One(Typed),
    /// Where all of them go.
    All,
}

/// A question as it was typed.
#[derive(Clone, Debug)]
pub(crate) struct Typed {
    inward: bool,
    identity: Identity,
    to: Option<IpAddr>,
    port: u16,
    protocol: Protocol,
    source: Option<IpAddr>,
    source_port: Option<u16>,
    mark: u32,
    interface: Option<String>,
}

impl Typed {
    /// Whether the port was typed that it comes from.
    pub(crate) const fn says_source_port(&self) -> bool {
        self.source_port.is_some()
    }

    /// The question, in a pod with these addresses.
    pub(crate) fn question(&self, addresses: &[IpAddr]) -> Option<Question> {
        let like = self.source.or(self.to);
        let same = |a: &&IpAddr| like.is_none_or(|like| like.is_ipv4() == a.is_ipv4());
        let destination = self.to.or_else(|| addresses.iter().find(same).copied())?;
        let ports = self.protocol.has_ports();
        Some(Question {
            direction: if self.inward { Direction::In } else { Direction::Out },
            protocol: self.protocol,
            source: self.source,
            source_port: if ports { self.source_port.unwrap_or(EPHEMERAL) } else { 0 },
            destination,
            port: if ports { self.port } else { 0 },
            owner: (!self.inward).then_some(self.identity),
            mark: self.mark,
            interface: self.interface.clone(),
            known: Known::New,
        })
    }
}

/// The two sources that are compared.
pub(super) fn diff_args(command: Command) -> Command {
    let source = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).value_name(value).help(help).required_unless_present("between")
    };
    command
        .arg(source("before", "A", "First set of rules: a command line, a file or a namespace"))
        .arg(source("after", "B", "Second set of rules, of any of the same kinds"))
        .arg(
            Arg::new("between")
                .long("between")
                .value_name("MESH,MESH")
                .help("Compare the default capture of two meshes, such as istio,linkerd")
                .long_help(
                    "Compare the default capture of two meshes, such as istio,linkerd: the usual \
                     command line of each stands for A and B (ambient, appmesh, cilium, consul, \
                     istio, kuma, linkerd, osm)",
                )
                .conflicts_with_all(["before", "after"])
                .value_parser(between),
        )
        .arg(
            super::args::runtime_endpoint()
                .help("Where the container runtime listens (CRI), for pod:NAME"),
        )
        .arg(pod_address())
        .arg(bpffs())
        .arg(
            Arg::new("output")
                .long("output")
                .value_name("FORMAT")
                .help("How to print the result")
                .value_parser(["text", "json"])
                .default_value("text"),
        )
        .arg(super::args::color())
}

/// The usual command lines of two meshes.
fn between(text: &str) -> Result<[&'static str; 2], String> {
    // One that has several words for a name is called by its command.
    let short = |dialect: &Dialect| {
        let mesh = dialect.mesh;
        let words = if mesh.name.contains(' ') { mesh.usual } else { mesh.name };
        words.split(' ').next().unwrap_or_default().to_ascii_lowercase()
    };
    let usual = |name: &str| {
        let of = |dialect: &&Dialect| short(dialect) == name.to_ascii_lowercase();
        DIALECTS.iter().find(of).map(|dialect| dialect.mesh.usual)
    };
    let known = || Vec::from_iter(DIALECTS.iter().map(short).collect::<BTreeSet<_>>()).join(", ");
    let pair = text.split_once(',').and_then(|(a, b)| Some([usual(a.trim())?, usual(b.trim())?]));
    pair.ok_or_else(|| format!("two meshes with a comma between them, of {}", known()))
}

fn pod_address() -> Arg {
    Arg::new("pod-address")
        .long("pod-address")
        .value_name("IP")
        .help(
            "Address of the pod, for rules that are not read from a namespace; may be given \
             several times [default: 10.4.0.2, fd00:4::2]",
        )
        .action(ArgAction::Append)
        .value_parser(clap::value_parser!(IpAddr))
}

pub(super) fn source_args(command: Command) -> Command {
    command
        .arg(
            Arg::new("rules")
                .long("rules")
                .value_name("FILE")
                .help("Rules as iptables-save, ip6tables-save or `nft -j list ruleset` print them; may be given several times")
                .action(ArgAction::Append)
                .value_parser(clap::value_parser!(PathBuf)),
        )
        .arg(manifest_arg())
        .arg(
            Arg::new("live")
                .long("live")
                .help("Read the rules from the namespace; implied by --netns, --pid and --pod")
                .action(ArgAction::SetTrue),
        )
        .arg(pod_address())
}

/// A pod's manifest as the configuration.
pub(super) fn manifest_arg() -> Arg {
    Arg::new("manifest")
        .long("manifest")
        .value_name("FILE[#KIND/NAME]")
        .help(
            "Manifest of a pod or workload, YAML or JSON, whose init container or annotations \
             give the configuration; `-` is standard input",
        )
        .value_parser(clap::value_parser!(PathBuf))
}

/// One connection, or all of them.
pub(super) fn questions_args(command: Command) -> Command {
    question_args(command).arg(
        Arg::new("all")
            .long("all")
            .help(
                "Report on every class of connections that the rules treat alike, instead of \
                 one connection",
            )
            .action(ArgAction::SetTrue)
            .conflicts_with_all(QUESTION),
    )
}

/// The flags that ask about one connection.
const QUESTION: [&str; 9] =
    ["from", "in", "to", "to-port", "proto", "src", "src-port", "mark", "iface"];

pub(super) fn question_args(command: Command) -> Command {
    let text = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    command
        .arg(text(
            "from",
            "uid=N[,gid=N]",
            "User and group that open the connection; gid defaults to the number of uid [default: \
             uid=1000]",
        ))
        .arg(
            Arg::new("in")
                .long("in")
                .help("Inbound connection, from the address in --src")
                .action(ArgAction::SetTrue)
                .conflicts_with("from"),
        )
        .arg(text(
            "to",
            "ADDRESS[:PORT][/PROTOCOL]",
            "Destination [default with --in: the pod's address]",
        ))
        .arg(
            text("to-port", "PORT", "Destination port, where --to has none")
                .value_parser(clap::value_parser!(u16)),
        )
        .arg(text("proto", "PROTOCOL", "tcp, udp or another one by name or number [default: tcp]"))
        .arg(text(
            "src",
            "ADDRESS[:PORT]",
            "Source address; for an outbound connection, the address that its socket is bound to",
        ))
        .arg(
            text(
                "src-port",
                "PORT",
                "Source port, where --src has none [default: any that may be chosen]",
            )
            .value_parser(clap::value_parser!(u16).range(1..)),
        )
        .arg(text("mark", "MARK", "The mark of its packets, decimal or 0x..."))
        .arg(text(
            "iface",
            "NAME",
            "Inbound interface, with --in [default: the one that leads to the source]",
        ))
}

pub(super) fn sources(m: &ArgMatches) -> Sources {
    let files = m.try_get_many::<PathBuf>("rules").ok().flatten().into_iter().flatten();
    let addresses = m.get_many::<IpAddr>("pod-address").into_iter().flatten();
    Sources {
        rules: files.cloned().collect(),
        manifest: m.try_get_one::<PathBuf>("manifest").ok().flatten().cloned(),
        live: m.try_get_one::<bool>("live").ok().flatten().copied().unwrap_or(false),
        addresses: addresses.map(IpAddr::to_canonical).collect(),
        endpoint: super::own::endpoint(m),
        bpffs: folder(m),
    }
}

pub(super) fn asked(m: &ArgMatches) -> Result<Asked, NotTyped> {
    if m.get_flag("all") {
        return Ok(Asked::All);
    }
    one(m).map(Asked::One)
}

/// The connection that is asked about, if one is.
pub(super) fn asked_for(m: &ArgMatches) -> Result<Option<Typed>, NotTyped> {
    let typed = |flag: &&str| m.value_source(flag) == Some(ValueSource::CommandLine);
    QUESTION.iter().any(typed).then(|| one(m)).transpose()
}

fn one(m: &ArgMatches) -> Result<Typed, NotTyped> {
    let word = |name: &str| m.get_one::<String>(name).map(String::as_str);
    let bad =
        |flag: &str, value: &str, what: &str| NotTyped::Bad(format!("--{flag} {value:?}: {what}"));
    let identity = match word("from") {
        None => Identity { uid: 1000, gid: 1000 },
        Some(text) => identity(text).ok_or_else(|| {
            bad("from", text, "it has to be uid=N, gid=N or both, such as uid=1000,gid=1000")
        })?,
    };
    let inward = m.get_flag("in");
    let (mut source, mut source_port) = (None, None);
    if let Some(text) = word("src") {
        let what = "a source is ADDRESS or ADDRESS:PORT, such as 10.4.0.3 or [fd00::1]:40000";
        let known = end(text).filter(|(_, port)| *port != Some(0));
        let (ip, port) = known.ok_or_else(|| bad("src", text, what))?;
        (source, source_port) = (Some(ip), port);
    }
    let source_port = agreed(m, "src-port", source_port, "src")?;
    if inward && source.is_none() {
        return Err(NotTyped::Bad("--in needs --src, the address it comes from".to_owned()));
    }
    let (mut to, mut port, mut protocol) = (None, None, None);
    if let Some(text) = word("to") {
        let (address, name) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        let what =
            "a destination is ADDRESS:PORT/PROTOCOL, such as 10.4.0.3:8000/tcp or [fd00::1]:53/udp";
        let (ip, number) = end(address).ok_or_else(|| bad("to", text, what))?;
        (to, port) = (Some(ip), number);
        if let Some(name) = name {
            let known = Protocol::from_name(name);
            protocol = Some(known.ok_or_else(|| bad("to", text, "this protocol is not known"))?);
        }
    }
    if to.is_none() && !inward {
        return Err(NotTyped::Bad(
            "no destination: give --to, such as --to 10.4.0.3:8000/tcp, --in for an inbound \
             connection, or --all"
                .to_owned(),
        ));
    }
    if let Some(name) = word("proto") {
        let known = Protocol::from_name(name);
        let known = known.ok_or_else(|| bad("proto", name, "this protocol is not known"))?;
        if let Some(other) = protocol.filter(|other| *other != known) {
            return Err(bad("proto", name, &format!("--to says {other}")));
        }
        protocol = Some(known);
    }
    let protocol = protocol.unwrap_or(Protocol::TCP);
    let port = agreed(m, "to-port", port, "to")?;
    if port.is_none() && protocol.has_ports() {
        return Err(NotTyped::Bad(
            "no destination port: add it to --to, or give --to-port 8080".to_owned(),
        ));
    }
    let mark = match word("mark") {
        None => 0,
        Some(text) => number(text).ok_or_else(|| bad("mark", text, "a mark is a 32 bit number"))?,
    };
    let interface = word("iface").map(str::to_owned);
    if let Some(name) = interface.as_ref().filter(|_| !inward) {
        let what = "the routes decide by which interface an outbound connection leaves; --iface goes with --in";
        return Err(bad("iface", name, what));
    }
    if let (Some(source), Some(to)) = (source, to)
        && source.is_ipv4() != to.is_ipv4()
    {
        let what = format!("{to} in --to is of the other IP version");
        return Err(bad("src", &source.to_string(), &what));
    }
    let port = port.unwrap_or(0);
    Ok(Typed { inward, identity, to, port, protocol, source, source_port, mark, interface })
}

/// A port of a flag of its own, or of an address: what both say has to be the same.
fn agreed(
    m: &ArgMatches,
    flag: &str,
    beside: Option<u16>,
    of: &str,
) -> Result<Option<u16>, NotTyped> {
    let own = m.get_one::<u16>(flag).copied();
    match (own, beside) {
        (Some(own), Some(other)) if own != other => {
            Err(NotTyped::Bad(format!("--{flag} {own}: --{of} says {other}")))
        }
        _ => Ok(own.or(beside)),
    }
}

pub(super) fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// `uid=N`, `gid=N` or both; the group is the user's number if it is left out.
fn identity(text: &str) -> Option<Identity> {
    let (uid, gid) = ids(text)?;
    let uid = uid.unwrap_or(1000);
    Some(Identity { uid, gid: gid.unwrap_or(uid) })
}

/// `uid=N`, `gid=N` or both.
pub(super) fn ids(text: &str) -> Option<(Option<u32>, Option<u32>)> {
    let (mut uid, mut gid) = (None, None);
    for part in text.split(',') {
        match part.split_once('=')? {
            ("uid", id) => uid = Some(id.parse().ok()?),
            ("gid", id) => gid = Some(id.parse().ok()?),
            _ => return None,
        }
    }
    Some((uid, gid))
}

/// `ADDRESS`, `ADDRESS:PORT` or `[ADDRESS]:PORT`. What a socket of IPv6 sends to an address of IPv4
/// (`::ffff:192.0.2.1`) is a packet of IPv4 (RFC 4291, 2.5.5.2).
pub(super) fn end(text: &str) -> Option<(IpAddr, Option<u16>)> {
    if let Ok(socket) = text.parse::<std::net::SocketAddr>() {
        return Some((socket.ip().to_canonical(), Some(socket.port())));
    }
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().map(|ip: IpAddr| (ip.to_canonical(), None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_address_in_an_ipv6_one_is_the_former() {
        let ip: IpAddr = "192.0.2.1".parse().unwrap();
        assert_eq!(end("[::ffff:192.0.2.1]:53"), Some((ip, Some(53))));
        assert_eq!(end("::ffff:192.0.2.1"), Some((ip, None)));
    }

    /// Verify that a mesh is named by its name, and stands for a command line that can be carried out.
    #[test]
    fn meshes_are_compared_by_name() {
        let [istio, linkerd] = between("Istio, linkerd").unwrap();
        assert!(istio.starts_with("istio-iptables ") && linkerd.starts_with("linkerd "));
        for dialect in DIALECTS {
            let line = super::super::own::configuration(dialect.mesh.usual).unwrap();
            assert!(line.unwrap().tool.is_some(), "{}", dialect.mesh.usual);
        }
        assert_eq!(between("osm,consul").unwrap()[0], "osm");
        for bad in ["", "istio", "istio,", "istio,foo", "istio,linkerd,kuma"] {
            assert!(between(bad).unwrap_err().contains("istio"), "{bad}");
        }
    }
}
