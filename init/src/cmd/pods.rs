//! From a pod's manifest to what captures it: the command line of its init container, or what the CNI
//! plugin makes of its annotations.

mod others;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use millrace_core::dialect::injector::{Injector, meshes_of};
use millrace_core::dialect::istio::annotations::{
    self, Decision, Defaults, INIT_CONTAINER, Passed,
};
use millrace_core::dialect::others::captures_pod;
use millrace_core::dialect::{appmesh, consul, istio, native};
use millrace_core::facts::HostFacts;
use millrace_core::manifest::{self, Namespace, Selector, Workload};
use millrace_core::pod::PodFacts;
use millrace_host::file;

use super::bounds;
use super::config::{self, Loaded, environment, rules_of};
use super::output::warn;
use super::saved::is_json;

/// Who captures the pod of a manifest, and by which rules.
#[derive(Debug)]
pub(super) enum Described {
    /// Its init container, by these rules and no others.
    Inside(Loaded),
    /// The CNI plugin, by any backend.
    Plugin(Loaded),
    /// Nothing; a warning has reported why.
    Open,
}

/// Which file, and which pod in it.
struct Word {
    path: PathBuf,
    selector: Option<Selector>,
}

impl Word {
    /// `FILE` or `FILE#KIND/NAME`. A file whose own name has such a sign is one.
    fn parse(word: &Path) -> Result<Self> {
        let split = word.to_str().and_then(|text| text.rsplit_once('#'));
        match split {
            Some((path, selector)) if !word.exists() => {
                Ok(Self { path: path.into(), selector: Some(selector.parse()?) })
            }
            _ => Ok(Self { path: word.to_owned(), selector: None }),
        }
    }
}

/// The most that is read of a manifest, in bytes: all pods of a large cluster.
const MOST: usize = 64 * 1024 * 1024;

/// The text of a file; `-` is standard input.
pub(super) fn text(path: &Path) -> Result<String> {
    let text = match path {
        path if path == Path::new("-") => file::standard_input(MOST)?,
        path => file::text(path, MOST)?,
    };
    if is_json(&text) {
        bounds::json(&text)?;
    }
    Ok(text)
}

/// Whether a word is a file with the name of a pod in it.
pub(super) fn names_pod(word: &str) -> bool {
    let word = Word::parse(Path::new(word));
    word.is_ok_and(|word| word.selector.is_some() && word.path.is_file())
}

/// What captures the pod of a manifest. `facts` are those of its namespace where the command is in it
/// (`inside`), and otherwise those that are taken for it.
pub(super) fn of_manifest(word: &Path, facts: &HostFacts, inside: bool) -> Result<Described> {
    let what = || format!("--manifest {}", word.display());
    described(word, facts, inside).with_context(what)
}

fn described(word: &Path, facts: &HostFacts, inside: bool) -> Result<Described> {
    let word = Word::parse(word)?;
    described_text(&word, &text(&word.path)?, facts, inside)
}

/// As [`of_manifest`], of a file whose text was read already: a FIFO can't be read twice.
pub(super) fn of_manifest_text(path: &Path, text: &str, facts: &HostFacts) -> Result<Described> {
    described_text(&Word { path: path.to_owned(), selector: None }, text, facts, false)
}

fn described_text(word: &Word, text: &str, facts: &HostFacts, inside: bool) -> Result<Described> {
    let Word { path, selector } = word;
    let manifest = manifest::read(text)?;
    let hint = format!("name one with --manifest '{}#KIND/NAME'", path.display());
    let workload = match manifest.choose(selector.as_ref()) {
        Err(why @ manifest::NotChosen::Several(_)) => return Err(why).context(hint),
        chosen => chosen?,
    };
    let pod = &workload.pod;
    if pod.host_network {
        bail!(
            "the pod uses the node's network, whose rules are not in its manifest: ask there, with \
             --live"
        );
    }
    let injector = mesh_of(workload, &manifest.namespaces)?;
    if let Some(raw) = appmesh::init_container(pod) {
        let other = injector.map(|injector| injector.mesh.name);
        let other = other.or_else(|| istio::init_container(pod).map(|_| istio::MESH.name));
        if let Some(other) = other {
            bail!(
                "it is one of {} and {other}: its connections can go through the proxy of one mesh only",
                appmesh::MESH.name
            );
        }
        let raw = raw?;
        if !appmesh::options(&raw)?.enabled.value {
            warn(
                "this pod is not captured: APPMESH_START_ENABLED of init container proxyinit is not 1",
            );
            return Ok(Described::Open);
        }
        let loaded = super::appmesh::loaded(&raw, false);
        return loaded.context("init container proxyinit").map(Described::Inside);
    }
    if let Some(injector) = injector {
        return others::described(workload, injector, facts, inside);
    }
    if let Some((mesh, container)) = captures_pod(pod) {
        bail!("its init container {container} is one of {mesh}, whose rules are not known here");
    }
    match istio::init_container(pod) {
        Some(init) => from_inside(pod, init?, facts, inside).map(Described::Inside),
        None => by_plugin(workload),
    }
}

/// The mesh that a pod is in, or is to be in; none for the one that is taken where nothing is said.
fn mesh_of(workload: &Workload, namespaces: &[Namespace]) -> Result<Option<&'static Injector>> {
    let pod = &workload.pod;
    let by_default = istio::lint::is_in_mesh(pod);
    let meshes: Vec<&Injector> = match consul::init_container(pod) {
        Some(_) if !by_default => vec![&consul::INJECTOR],
        _ => meshes_of(pod, workload.namespace(namespaces)),
    };
    let injected = meshes.iter().filter(|mesh| mesh.is_injected(pod) || !by_default);
    let of_default = by_default.then_some(istio::MESH.name);
    let names: Vec<&str> = of_default.into_iter().chain(injected.map(|i| i.mesh.name)).collect();
    if names.len() > 1 {
        bail!(
            "it is one of {}: its connections can go through the proxy of one mesh only, and the CNI \
             plugin refuses such a pod",
            names.join(" and ")
        );
    }
    Ok(meshes.first().copied().filter(|_| !by_default))
}

fn from_inside(
    pod: &PodFacts,
    init: istio::InitContainer,
    facts: &HostFacts,
    inside: bool,
) -> Result<Loaded> {
    let who = || format!("init container {INIT_CONTAINER}");
    let flags =
        config::typed(init.words.into_iter().map(Into::into).collect()).with_context(who)?;
    if let Some(flag) = istio::writes_nothing(&istio::Raw::new(flags.clone(), init.env.clone())) {
        bail!("{} writes no rules (--{flag}): what else captures the pod is not known", who());
    }
    let mut facts = facts.clone();
    if !inside {
        facts.resolv_conf = Some(pod.resolv_conf());
    }
    let mut loaded = config::of_istio(flags, init.env, &facts).with_context(who)?;
    match annotations::policy(pod, &Defaults::default()) {
        Ok(annotated) => {
            let names = istio::contradictions(pod, &annotated.policy, &loaded.policy);
            if !names.is_empty() {
                loaded.warnings.push(format!(
                    "the rules are those that the arguments of {} say; the pod's annotations say \
                     otherwise: {}",
                    who(),
                    names.join(", ")
                ));
            }
        }
        Err(errors) => loaded.warnings.push(format!(
            "the rules are those that the arguments of {} say; the pod's annotations are wrong: {}",
            who(),
            errors.to_string().replace('\n', "; ")
        )),
    }
    Ok(loaded)
}

fn by_plugin(workload: &Workload) -> Result<Described> {
    let pod = &workload.pod;
    match annotations::decide_by_contents(pod) {
        Decision::Capture => {}
        // What makes pods has no proxy in it before they are made.
        Decision::Pass(why @ (Passed::NoProxy | Passed::NotInjected)) if !workload.made => {
            warn(&format!(
                "{why}: pods without one are not captured; this is what holds once it is injected"
            ));
        }
        Decision::Pass(why) => {
            warn(&format!("this pod is not captured: {why}"));
            return Ok(Described::Open);
        }
        Decision::Ask(what) => warn(&format!("whether this pod is captured is not known: {what}")),
    }
    let defaults = Defaults { env: environment()?, ..Defaults::default() };
    let captured = annotations::policy(pod, &defaults)?;
    Ok(Described::Plugin(Loaded {
        nft: Some(rules_of(&captured.policy, &native::NFT_LAYOUT)),
        policy: captured.policy,
        layout: &native::LAYOUT,
        warnings: captured.warnings,
        asks: Vec::new(),
    }))
}
