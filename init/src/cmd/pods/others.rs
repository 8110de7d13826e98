//! A pod of a mesh that has an injector of its own: by its init container, or by its annotations.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, anyhow, bail};
use millrace_core::dialect::flags::Words as _;
use millrace_core::dialect::injector::{Injector, ProxyRequest, contradictions};
use millrace_core::dialect::sidecar::{Captured, Decision, SIDECARS, Sidecar};
use millrace_core::dialect::{FileValues, consul, kuma, linkerd, osm};
use millrace_core::facts::HostFacts;
use millrace_core::manifest::Workload;
use millrace_core::pod::{Container, PodFacts};

use super::super::config::{self, Loaded};
use super::super::output::warn;
use super::Described;
use crate::cli::istio::NotTyped;
use crate::cli::kuma::Asked;

/// What captures a pod of this mesh.
pub(super) fn described(
    workload: &Workload,
    injector: &'static Injector,
    facts: &HostFacts,
    inside: bool,
) -> Result<Described> {
    let pod = &workload.pod;
    if let Some(mut loaded) = from_inside(pod, injector, facts, inside)? {
        said_otherwise(pod, injector, &mut loaded);
        return Ok(Described::Inside(loaded));
    }
    let sidecar = SIDECARS.into_iter().find(|sidecar| sidecar.mesh.name == injector.mesh.name);
    let captured = if injector.is_injected(pod) {
        match sidecar {
            Some(sidecar) => by_plugin(pod, sidecar)?,
            None => Some((injector.policy)(pod)?),
        }
    } else {
        to_be_injected(workload, injector)?
    };
    let Some(Captured { policy, warnings }) = captured else { return Ok(Described::Open) };
    Ok(Described::Plugin(Loaded {
        nft: Some(config::rules_of(&policy, injector.nft_layout)),
        policy,
        layout: injector.layout,
        warnings,
        asks: Vec::new(),
    }))
}

/// What the mesh's CNI plugin, or `millrace-cni` in its place, does with an injected pod.
fn by_plugin(pod: &PodFacts, sidecar: &Sidecar) -> Result<Option<Captured>> {
    match (sidecar.decide)(pod) {
        Decision::Capture => {}
        Decision::Pass(why) => {
            warn(&format!("this pod is not captured: {why}"));
            return Ok(None);
        }
        Decision::Ask(what) => bail!("whether this pod is captured is not known: {what}"),
        Decision::Wrong(errors) => return Err(errors.into()),
    }
    let mut captured = (sidecar.policy)(pod, &FileValues::new())?;
    captured.warnings.push(format!(
        "no container of it captures it: this is what the CNI plugin does on a node whose settings of {} are \
         those that hold without any",
        sidecar.mesh.name
    ));
    Ok(Some(captured))
}

/// What holds once the pod is injected.
fn to_be_injected(workload: &Workload, injector: &Injector) -> Result<Option<Captured>> {
    let (pod, asked) = (&workload.pod, &injector.asked);
    let why = match injector.request(pod) {
        ProxyRequest::Refused => format!("its {} {} says so", asked.field.as_str(), asked.name),
        _ if workload.made => format!("it has no container {}", injector.proxy),
        _ => {
            warn(&format!(
                "it has no container {}: pods without one are not captured; this is what holds once it is \
                 injected",
                injector.proxy
            ));
            return Ok(Some((injector.policy)(pod)?));
        }
    };
    warn(&format!("this pod is not captured: {why}"));
    Ok(None)
}

/// What a container in the pod writes; none where none does.
fn from_inside(
    pod: &PodFacts,
    injector: &Injector,
    facts: &HostFacts,
    inside: bool,
) -> Result<Option<Loaded>> {
    let who = || format!("init container {}", injector.inside);
    let own = |words: Vec<String>| words.into_iter().map(Into::into).collect();
    if let Some(words) = linkerd::init_container(pod) {
        return config::load_linkerd(own(words?)).with_context(who).map(Some);
    }
    if let Some(words) = kuma::init_container(pod) {
        let container = pod.container(injector.inside);
        return of_kuma(pod, words?, container, facts, inside).with_context(who).map(Some);
    }
    if let Some(init) = consul::init_container(pod) {
        let consul::InitContainer { words, env } = init?;
        let flags = match words {
            Some(words) => config::flags(crate::cli::consul::read(own(words)))?,
            None => Vec::new(),
        };
        let raw = consul::Raw::new(flags, env);
        if consul::reads_input(&raw) {
            bail!(
                "an init container reads its settings from standard input, which no manifest tells"
            );
        }
        let resolved = consul::resolve(&raw, None).with_context(who)?;
        let nft = resolved
            .options
            .native
            .then(|| config::rules_of(&resolved.policy, injector.nft_layout));
        let (policy, warnings) = (resolved.policy, resolved.warnings);
        return Ok(Some(Loaded {
            policy,
            layout: injector.layout,
            nft,
            warnings,
            asks: Vec::new(),
        }));
    }
    if let Some(script) = osm::init_script(pod) {
        let captured = (injector.policy)(pod)?;
        if script? != osm::script(&captured.policy) {
            bail!(
                "{} runs a script that is not what this pod's annotations alone give, so lists of the mesh's \
                 configuration are in it: ask the pod itself, with --pod",
                who()
            );
        }
        let policy = captured.policy;
        let (layout, nft, warnings) = (injector.layout, None, Vec::new());
        return Ok(Some(Loaded { policy, layout, nft, warnings, asks: Vec::new() }));
    }
    Ok(None)
}

/// What `kumactl` of an init container writes. Files that it reads are not in the manifest, but their
/// settings are, where the injector has put them into an annotation.
fn of_kuma(
    pod: &PodFacts,
    words: Vec<String>,
    container: Option<&Container>,
    facts: &HostFacts,
    inside: bool,
) -> Result<Loaded> {
    let flags = match crate::cli::kuma::read(words.into_iter().map(Into::into).collect()) {
        Ok(Asked::Install(flags)) => flags,
        Ok(Asked::Uninstall(_)) => {
            bail!("it takes rules away: what else captures the pod is not known")
        }
        Err(NotTyped::Help(text) | NotTyped::Bad(text)) => return Err(anyhow!(text)),
    };
    if let Some((_, file)) = flags.iter().find(|(name, _)| name == "config") {
        if pod.annotation(kuma::annotations::CONFIG).is_none_or(str::is_empty) {
            bail!(
                "it reads --config {file}, which no manifest tells, and the pod has no annotation {}",
                kuma::annotations::CONFIG
            );
        }
        let captured = kuma::annotations::policy(pod, &FileValues::new())?;
        let (policy, mut warnings) = (captured.policy, captured.warnings);
        warnings.push(format!(
            "it reads --config {file}, which no manifest tells: the settings are those that the injector has \
             put into annotation {}",
            kuma::annotations::CONFIG
        ));
        return Ok(Loaded { policy, layout: &kuma::LAYOUT, nft: None, warnings, asks: Vec::new() });
    }
    let env: BTreeMap<String, String> =
        container.into_iter().flat_map(|container| container.env.clone()).collect();
    let elsewhere = container.into_iter().flat_map(|container| &container.env_elsewhere);
    if let Some(name) =
        elsewhere.into_iter().find(|name| name.ends_with('*') || kuma::Kuma::is_variable(name))
    {
        bail!("variable {name} has its value from elsewhere, which the manifest does not tell");
    }
    let mut facts = facts.clone();
    if !inside {
        facts.resolv_conf = Some(pod.resolv_conf());
    }
    let resolved = kuma::resolve(&kuma::Raw::new(flags, env), &facts)?;
    let nft =
        resolved.options.native.then(|| config::rules_of(&resolved.policy, &kuma::NFT_LAYOUT));
    let (policy, warnings) = (resolved.policy, resolved.warnings);
    Ok(Loaded { policy, layout: &kuma::LAYOUT, nft, warnings, asks: Vec::new() })
}

/// Warn of annotations that say otherwise than what is written.
fn said_otherwise(pod: &PodFacts, injector: &Injector, loaded: &mut Loaded) {
    let what = match (injector.policy)(pod) {
        Ok(annotated) => {
            let names = contradictions(&annotated.policy, &loaded.policy);
            if names.is_empty() {
                return;
            }
            format!("say otherwise: {}", names.join(", "))
        }
        Err(errors) => format!("are wrong: {}", errors.to_string().replace('\n', "; ")),
    };
    loaded.warnings.push(format!(
        "the rules are those that init container {} is told to write; the pod's annotations {what}",
        injector.inside
    ));
}
