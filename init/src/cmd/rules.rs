//! From what was typed to rules that can be walked: those of a configuration, of files, of a pod's
//! manifest, or of a namespace.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use millrace_core::ebpf::{beside, extended, judge, sources};
use millrace_core::facts::HostFacts;
use millrace_core::iptables::{TableDump, is_listing};
use millrace_core::manifest::says_kind;
use millrace_core::nft::NftRuleset;
use millrace_core::observed::{Holding, Observed, TableId, Variant};
use millrace_core::policy::CapturePolicy;
use millrace_core::ruleset::{Chain, Reason, Routing, Rule, Ruleset, Table};
use millrace_core::sim::{
    DEEPEST, Direction, EBPF, Explanation, Fate, Namespace, OwnAddress, Program, Question, Ranges,
    SourceTable, hindering_arp, of_dump, of_listed, of_nft, of_ruleset,
};
use millrace_core::status::{read_back, read_native_back};
use millrace_core::value::{Family, Groups};
use millrace_host::ebpf::Class;
use millrace_host::engine::Session;
use millrace_host::facts::resolv_conf;
use millrace_host::netns::NetnsRef;
use millrace_host::observe::Depth;
use millrace_host::{exec, surroundings};

use super::config::{self, Loaded};
use super::deep::deep;
use super::held::{Held, unknown};
use super::namespace;
use super::output::warn;
use super::pods::{self, Described};
use super::saved::{Saved, is_json, of_saved_rules, saved};
use crate::cli::ask::{Sources, Typed};
use crate::cli::own::{self, Common, Config, NetnsTarget};

/// Rules that can be walked, and where.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) program: Program,
    pub(super) namespace: Namespace,
    /// Whether they were read from a namespace, whose interfaces and routes are real.
    pub(super) live: bool,
    /// What eBPF has of the pod, where it captures.
    pub(super) ebpf: Option<Held>,
}

impl Rules {
    /// A question about these rules.
    pub(super) fn question(&self, typed: &Typed) -> Result<Question> {
        let own = self.namespace.interfaces().flat_map(|interface| &interface.addresses);
        let own: Vec<IpAddr> = own.map(OwnAddress::address).collect();
        let question = typed
            .question(&own)
            .context("the pod has no address of this family: say where it goes with --to")?;
        if let Some(name) = question.interface.as_ref().filter(|name| !self.namespace.lists(name))
            && self.live
        {
            let names = self.namespace.interfaces().map(|interface| interface.name.as_str());
            let names = names.collect::<Vec<_>>().join(", ");
            bail!("--iface {name}: the pod has no such interface; it has {names}");
        }
        Ok(question)
    }

    /// The address that something is to be sent from, if the pod has no such address.
    pub(super) fn foreign_source(&self, question: &Question) -> Option<IpAddr> {
        let source = question.source.filter(|_| question.direction == Direction::Out)?;
        (!source.is_loopback() && !self.namespace.has_address(source)).then_some(source)
    }

    /// What becomes of the connection that was typed, and the question that it was taken for. A source port
    /// that was not typed is any that the kernel may choose, or who is outside.
    pub(super) fn explain(&self, typed: &Typed) -> Result<(Question, Explanation)> {
        let question = self.question(typed)?;
        let found = self.explained(typed, &question)?;
        Ok((question, found))
    }

    /// Where eBPF decides, the programs' own function is asked as well.
    fn explained(&self, typed: &Typed, question: &Question) -> Result<Explanation> {
        let (first, last) = match question.direction {
            Direction::Out => self.namespace.ephemeral,
            Direction::In => (1, u16::MAX),
        };
        let any = (question.protocol.has_ports() && !typed.says_source_port())
            .then(|| Ranges::range(first.into(), last.into()));
        let found = deep(|| match &any {
            Some(ports) => self.program.explain_from(&self.namespace, question, ports),
            None => self.program.explain(&self.namespace, question),
        })?;
        let Some(held) = &self.ebpf else { return Ok(found) };
        let Some(id) = found.answer.decided.last() else { return Ok(found) };
        let rule = self.program.rule(*id);
        if self.program.chain(rule.chain).holder != EBPF {
            return Ok(found);
        }
        let decided = judge(&held.entry, &self.namespace, question, found.lookup).map(|verdict| {
            match found.answer.fate {
                // Whether the proxy listens is not in the entry.
                Fate::Refused { .. } if verdict.class == Class::Inbound => Class::Refused,
                _ => verdict.class,
            }
        });
        match decided {
            Some(class) if !rule.text.starts_with(&format!("{}:", class.as_str())) => bail!(
                "the programs decide by {}, and the walk by {}: this is a fault of Millrace",
                class.as_str(),
                rule.text
            ),
            _ => Ok(found),
        }
    }
}

/// The pod's addresses where nothing says them.
const ADDRESSES: [&str; 2] = ["10.4.0.2", "fd00:4::2"];

/// Read rules from wherever they are to come from.
pub(super) fn load(common: &Common, sources: &Sources, config: &Config) -> Result<Rules> {
    let live = sources.live || common.place != NetnsTarget::Here;
    let files = !sources.rules.is_empty();
    let manifest = sources.manifest.is_some();
    // Which backend a plugin uses is not in a manifest.
    let configured = if manifest { config.has_settings() } else { config.is_given() };
    let given = [live, files, manifest, configured];
    if given.iter().filter(|given| **given).count() > 1 {
        bail!(
            "rules come from one source: a configuration, --rules, --manifest, or a namespace \
             (--netns, --pid, --pod, --live)"
        );
    }
    let ebpf = config.by_ebpf();
    if live {
        if let Some(address) = sources.addresses.first() {
            bail!(
                "--pod-address {address}: a namespace has addresses of its own; it goes with a configuration, \
                 --manifest or --rules"
            );
        }
        let rules = of_namespace(&common.place, &sources.bpffs)?;
        if ebpf && rules.ebpf.is_none() {
            bail!("eBPF does not capture this pod; without --backend, the rules that do are asked");
        }
        return Ok(rules);
    }
    let addresses = addresses(sources)?;
    if files && ebpf {
        bail!(
            "--backend ebpf goes with a configuration or a namespace: what eBPF does is in no file"
        );
    }
    if files {
        let read = |path: &PathBuf| {
            let what = format!("--rules {}", path.display());
            let text = saved(path).with_context(|| what.clone())?;
            Ok(Saved { what, text })
        };
        let saved: Vec<Saved> = sources.rules.iter().map(read).collect::<Result<_>>()?;
        return of_saved_rules(&saved, &addresses);
    }
    match &sources.manifest {
        Some(word) => of_manifest(word, config, &addresses),
        None => of_config(config, &addresses),
    }
}

/// What to say where nothing is given, and the answers are about no namespace.
pub(super) fn by_default(
    common: &Common,
    sources: &Sources,
    config: &Config,
) -> Option<&'static str> {
    let given = sources.live
        || common.place != NetnsTarget::Here
        || !sources.rules.is_empty()
        || sources.manifest.is_some()
        || config.is_given();
    (!given).then_some("by the default configuration; --live asks the rules of this namespace")
}

fn addresses(sources: &Sources) -> Result<Vec<IpAddr>> {
    if !sources.addresses.is_empty() {
        return Ok(sources.addresses.clone());
    }
    Ok(ADDRESSES.iter().map(|a| a.parse()).collect::<Result<_, _>>()?)
}

/// Rules from a word: `live`, `netns:NAME`, `pid:N`, `pod:NAME`, a command line (`apply ...`,
/// `istio-iptables ...`), or files with commas between them, whose content says what they are.
pub(super) fn of_word(word: &str, sources: &Sources) -> Result<Rules> {
    let place = match word.split_once(':') {
        _ if word == "live" => Some(NetnsTarget::Here),
        Some(("netns", name)) => Some(NetnsTarget::Netns(name.to_owned())),
        Some(("pid", pid)) => Some(NetnsTarget::Process(pid.parse().context("pid:N")?)),
        Some(("pod", name)) => {
            let endpoint = sources.endpoint.clone();
            Some(NetnsTarget::Pod { name: name.to_owned(), endpoint })
        }
        _ => None,
    };
    if let Some(place) = place {
        return of_namespace(&place, &sources.bpffs).with_context(|| word.to_owned());
    }
    let addresses = addresses(sources)?;
    if let Some(config) = own::configuration(word) {
        let config = config.map_err(|text| anyhow!("{word}: {text}"))?;
        return of_config(&config, &addresses).with_context(|| word.to_owned());
    }
    if pods::names_pod(word) {
        let rules = of_manifest(Path::new(word), &Config::default(), &addresses);
        return rules.with_context(|| word.to_owned());
    }
    // Each is read once: a FIFO has nothing for who comes again.
    let read = |path: &str| {
        let text = saved(Path::new(path)).with_context(|| path.to_owned())?;
        Ok(Saved { what: path.to_owned(), text })
    };
    let files: Vec<Saved> = word.split(',').map(read).collect::<Result<_>>()?;
    let is_dump = |Saved { text, .. }: &Saved| {
        let mut lines = text.lines().map(str::trim);
        let first = lines.find(|l| !l.is_empty() && !l.starts_with('#'));
        first.is_some_and(|l| l.starts_with('*'))
            || is_json(text) && text.contains("\"nftables\"")
            // Which is refused with what to save instead.
            || is_listing(text)
    };
    if files.iter().all(is_dump) {
        return of_saved_rules(&files, &addresses);
    }
    let [Saved { what, text }] = files.as_slice() else {
        bail!(
            "{word}: several files can only be what iptables-save, ip6tables-save and nft -j list ruleset print"
        );
    };
    let facts = facts(&addresses);
    if says_kind(text) {
        let described = pods::of_manifest_text(Path::new(what), text, &facts);
        let described = described.with_context(|| what.clone())?;
        return of_described(described, &Config::default(), &facts, &addresses);
    }
    let loaded = config::of_text(text, &facts).with_context(|| what.clone())?;
    Ok(of_loaded(&loaded, false, &facts.groups, &addresses))
}

/// What is known of a pod that is only described.
fn facts(addresses: &[IpAddr]) -> HostFacts {
    HostFacts {
        addresses: addresses.to_vec(),
        resolv_conf: Some(resolv_conf()),
        ..HostFacts::default()
    }
}

fn of_config(config: &Config, addresses: &[IpAddr]) -> Result<Rules> {
    let facts = facts(addresses);
    let loaded = config::load(config, &facts, false)?;
    loaded.warnings.iter().for_each(|w| warn(w));
    if config.by_ebpf() {
        return of_ebpf(&loaded.policy, &facts.groups, addresses);
    }
    Ok(of_loaded(&loaded, !config.is_open(), &facts.groups, addresses))
}

/// The rules of a configuration; those of nftables, if it has some, where these are meant.
fn of_loaded(loaded: &Loaded, native: bool, groups: &Groups, addresses: &[IpAddr]) -> Rules {
    let (tables, routing) = if let Some(nft) = loaded.nft.as_ref().filter(|_| native) {
        (of_nft(nft, groups), nft.routing.clone())
    } else {
        let ruleset = loaded.ruleset();
        (of_ruleset(&ruleset, groups), ruleset.routing)
    };
    let namespace = Namespace::pod(addresses, &routing).with_proxy(&loaded.policy);
    Rules { program: Program::new(tables), namespace, live: false, ebpf: None }
}

fn of_ebpf(policy: &CapturePolicy, groups: &Groups, addresses: &[IpAddr]) -> Result<Rules> {
    // That the pod has IPv6 is not known, and nothing says that it has none.
    let held = Held::of_policy(extended(policy, true).into_owned(), groups)?;
    let routing = beside(&held.policy).routing;
    let namespace = Namespace::pod(addresses, &routing).with_proxy(&held.policy);
    let program = Program::new(held.tables.clone());
    Ok(Rules { program, namespace, live: false, ebpf: Some(held) })
}

/// The rules that are written in the pod of a manifest, with the backend that is meant.
fn of_manifest(word: &Path, config: &Config, addresses: &[IpAddr]) -> Result<Rules> {
    let facts = facts(addresses);
    let described = pods::of_manifest(word, &facts, false)?;
    of_described(described, config, &facts, addresses)
}

fn of_described(
    described: Described,
    config: &Config,
    facts: &HostFacts,
    addresses: &[IpAddr],
) -> Result<Rules> {
    if let Described::Inside(loaded) | Described::Plugin(loaded) = &described {
        loaded.warnings.iter().for_each(|w| warn(w));
    }
    Ok(match described {
        Described::Inside(_) if config.by_ebpf() || config.is_given() => bail!(
            "an init container captures this pod, and says itself what by: --backend goes with pods \
             that the CNI plugin captures"
        ),
        Described::Inside(loaded) => of_loaded(&loaded, true, &facts.groups, addresses),
        Described::Plugin(loaded) if config.by_ebpf() => {
            of_ebpf(&loaded.policy, &facts.groups, addresses)?
        }
        Described::Plugin(loaded) => {
            of_loaded(&loaded, !config.is_open(), &facts.groups, addresses)
        }
        Described::Open => Rules {
            program: Program::new(Vec::new()),
            namespace: Namespace::pod(addresses, &Routing::default()),
            live: false,
            ebpf: None,
        },
    })
}

fn of_namespace(place: &NetnsTarget, bpffs: &Path) -> Result<Rules> {
    // Who asks for two namespaces names both from where the program was started.
    let home = match place {
        NetnsTarget::Here => None,
        _ => Some(NetnsRef::at("/proc/self/ns/net".into()).open()?),
    };
    let rules = held(place, bpffs)?;
    home.map_or(Ok(()), |home| home.enter())?;
    Ok(rules)
}

fn held(place: &NetnsTarget, bpffs: &Path) -> Result<Rules> {
    let (session, facts) = namespace::open(place)?;
    let ebpf = Held::here(bpffs)?;
    let unknown = if ebpf.is_none() { unknown(bpffs) } else { None };
    let rules = read(session, &facts, ebpf)?;
    let rules = Rules { program: rules.program.nested_to(DEEPEST), ..rules };
    Ok(match unknown {
        Some((why, both)) => Rules { program: rules.program.obscured(why, both), ..rules },
        None => rules,
    })
}

/// The rules of the namespace that this program is in, and what eBPF does there.
pub(super) fn of_here(ebpf: Option<Held>) -> Result<Rules> {
    let (session, facts) = namespace::open(&NetnsTarget::Here)?;
    read(session, &facts, ebpf)
}

fn read(mut session: Session, facts: &HostFacts, ebpf: Option<Held>) -> Result<Rules> {
    let options = exec::Options::default();
    let mut observed = session.observe(&options, Depth::Fast)?;
    // A rule that somebody else wrote has a text that iptables' own program may know.
    let unclear = observed.holdings.iter().any(|holding| holding.dump.is_unclear());
    if unclear || !observed.unread.is_empty() {
        observed = session.observe(&options, Depth::Verbatim)?;
    }
    session.take_warnings().iter().for_each(|w| warn(w));
    observed.asleep().for_each(|text| warn(&text));
    let found = read_back(&observed);
    let mut tables = ebpf.as_ref().map_or_else(Vec::new, |held| held.tables.clone());
    for holding in &observed.holdings {
        let explained =
            found.iter().find(|f| f.variant == holding.variant).and_then(|f| f.ruleset.as_ref());
        let holder = holding.variant.to_string();
        let called = called(&observed, holding);
        tables.extend(explained_tables(&called, &holder, explained, &facts.groups));
    }
    let known = |family, name: &str| {
        observed.holding(Variant::Nft, family).is_some_and(|dump| dump.table(name).is_some())
    };
    let (listed, interfaces) =
        (millrace_host::nft::list(&known)?, millrace_host::nft::interfaces());
    let arp = hindering_arp(&listed, &interfaces);
    let mut native = of_listed(&listed, &interfaces);
    if let Some(found) = read_native_back(&observed) {
        explain_native(&mut native, &found.ruleset);
    }
    tables.extend(native);
    let mut namespace = surroundings::namespace()?;
    namespace.enrolled.extend(ebpf.iter().flat_map(|held| sources(&held.entry.pod)));
    let program = Program::new(tables).asking_arp(arp);
    Ok(Rules { program, namespace, live: true, ebpf })
}

/// What the kernel carries out of what was dumped: no dormant table.
fn called(observed: &Observed, holding: &Holding) -> Holding {
    let mut called = holding.clone();
    if holding.variant == Variant::Nft {
        let id = |table: &TableDump| TableId::ip(holding.family, table.name.clone());
        called.dump.tables.retain(|table| !observed.dormant.contains(&id(table)));
    }
    called
}

/// Give native rules the reasons of those that were read back from them, which stand in the same
/// places.
pub(super) fn explain_native(tables: &mut [SourceTable], ruleset: &NftRuleset) {
    for part in ruleset.tables() {
        for chain in ruleset.chains(part) {
            let name = ruleset.layout.chain(part, &chain.chain);
            let ours = |t: &&mut SourceTable| {
                t.families == Family::ALL && ruleset.layout.table(part) == Some(t.name.as_str())
            };
            let Some(table) = tables.iter_mut().find(ours) else { continue };
            let found = table.chains.iter_mut().find(|found| found.name == name);
            for found in found.into_iter().filter(|f| f.rules.len() == chain.rules.len()) {
                for (rule, emission) in found.rules.iter_mut().zip(&chain.rules) {
                    rule.reason = Some(emission.reason.clone());
                }
            }
        }
    }
}

/// The tables of a dump; its rules have the reasons of those that are the same in `explained`.
pub(super) fn explained_tables(
    holding: &Holding,
    holder: &str,
    explained: Option<&Ruleset>,
    groups: &Groups,
) -> Vec<SourceTable> {
    let mut known: BTreeMap<(Table, String), Vec<(Rule, Reason)>> = BTreeMap::new();
    if let Some(ruleset) = explained {
        for ((table, chain), emissions) in ruleset.chains(holding.family) {
            let rules = emissions.iter().map(|e| (e.rule.canonical(groups), e.reason.clone()));
            let name = match &chain {
                Chain::Builtin(hook) => hook.as_str().to_owned(),
                Chain::User(name) => name.as_str().to_owned(),
            };
            known.insert((table, name), rules.collect());
        }
    }
    let mut reason = |table: Table, chain: &str, rule: &Rule| {
        let rules = known.get(&(table, chain.to_owned()))?;
        let rule = rule.canonical(groups);
        rules.iter().find(|(other, _)| *other == rule).map(|(_, reason)| reason.clone())
    };
    of_dump(&holding.dump, holding.family, holder, groups, &mut reason)
}
