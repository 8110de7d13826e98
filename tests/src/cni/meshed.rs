//! Pods of a mesh that are really reached: a link to the host, a proxy, an application, and who answers.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Api, Call, Host, Pod};
use crate::capture::{millrace, ran};
use crate::process::{Listeners, dial};
use crate::wire::{Dial, Identity, Listen, Outcome, Proto, Serve};

/// What the injector of Kuma writes.
pub const KUMA: &str = "kuma.io/sidecar-injected";
/// Its settings.
pub const KUMA_CONFIG: &str = "traffic.kuma.io/transparent-proxy-config";
/// What the injector of Consul writes.
pub const CONSUL: &str = "consul.hashicorp.com/connect-inject-status";
/// That traffic is to be captured.
pub const TRANSPARENT: &str = "consul.hashicorp.com/transparent-proxy-status";
/// Its settings.
pub const CONSUL_CONFIG: &str = "consul.hashicorp.com/redirect-traffic-config";
/// Whether IPv6 is captured.
pub const DUAL_STACK: &str = "consul.hashicorp.com/dual-stack";

/// A manifest with these containers, of which those with a colon are init containers.
pub fn manifest(containers: &[&str], annotations: &Value) -> Value {
    let named = |init: bool| -> Vec<Value> {
        let of = containers.iter().filter(|name| name.ends_with(':') == init);
        of.map(|name| json!({ "name": name.trim_end_matches(':') })).collect()
    };
    json!({
        "annotations": annotations,
        "spec": { "initContainers": named(true), "containers": named(false) },
    })
}

impl Host {
    /// A pod with a link to the host, in both families: it is 10.1.0.2 and `fd01::2`, and the host
    /// 10.1.0.1 and `fd01::1`. There is one at a time.
    pub fn linked_pod(&self) -> Result<Pod> {
        let pod = self.pod()?;
        let link = format!(
            "link add up0 type veth peer name eth0 netns {}\naddr add 10.1.0.1/24 dev up0\n\
             addr add fd01::1/64 dev up0 nodad\nlink set up0 up",
            pod.name
        );
        self.namespace.ip(&link)?;
        self.inside(&pod, |inside| {
            inside.ip("addr add 10.1.0.2/24 dev eth0\naddr add fd01::2/64 dev eth0 nodad\n\
                 link set eth0 up")
        })?;
        Ok(pod)
    }

    /// Take it away, so that another one can have its addresses.
    pub fn unlink(&self, pod: &Pod) -> Result<()> {
        self.namespace.ip("link delete up0")?;
        self.remove(pod)
    }

    /// A proxy in a pod: it listens on these ports in both families, and for datagrams on these of localhost.
    pub fn proxy_of(
        &self,
        pod: &Pod,
        identity: Identity,
        ports: &[u16],
        datagrams: &[u16],
    ) -> Result<Listeners> {
        let of = |proto: Proto, ports: &[u16], any: [&str; 2]| -> Result<Vec<Listen>> {
            let all = ports.iter().flat_map(|port| any.map(|ip| format!("{ip}:{port}")));
            all.map(|text| Ok(Listen { proto, addr: text.parse()?, transparent: false })).collect()
        };
        // What answers a datagram from any address may answer from another one.
        let listen = [
            of(Proto::Tcp, ports, ["0.0.0.0", "[::]"])?,
            of(Proto::Udp, datagrams, ["127.0.0.1", "[::1]"])?,
        ];
        let listen = listen.concat();
        let serve = Serve { name: "proxy".to_owned(), identity, listen };
        self.inside(pod, |inside| Listeners::start(inside, &serve))
    }

    /// Verify that who connects arrives at this one, on this port; a proxy has to know where to.
    pub fn arrives(
        &self,
        from: Option<&Pod>,
        who: Identity,
        to: &str,
        wanted: (&str, u16),
    ) -> Result<()> {
        let answer =
            self.dial(from, who, to)?.with_context(|| format!("nobody answers at {to}"))?;
        ensure!((answer.name.as_str(), answer.port) == wanted, "{to}: {answer:?}, not {wanted:?}");
        if wanted.0 == "proxy" {
            ensure!(answer.original == Some(to.parse()?), "{to}: {answer:?}");
        }
        Ok(())
    }

    /// Verify that a datagram from a pod arrives at this one, on this port.
    pub fn datagram_arrives(
        &self,
        pod: &Pod,
        who: Identity,
        to: &str,
        wanted: (&str, u16),
    ) -> Result<()> {
        let request = Dial {
            identity: who,
            proto: Proto::Udp,
            from: None,
            from_port: None,
            transparent_mark: None,
            to: to.parse()?,
            timeout_ms: 5000,
        };
        let outcome = self.inside(pod, |inside| dial(inside, &request))?;
        let Outcome::Answered { answer, .. } = outcome else {
            anyhow::bail!("nobody answers at {to}: {outcome:?}")
        };
        ensure!((answer.name.as_str(), answer.port) == wanted, "{to}: {answer:?}, not {wanted:?}");
        Ok(())
    }
}

impl Call {
    /// Make the call, which has to succeed. Gives the last line of the log.
    pub fn logged(&self, host: &Host) -> Result<Value> {
        let reply = self.run(host)?;
        reply.success()?;
        reply.lines()?.pop().context("a line")
    }
}

/// Annotations of an injected pod of Kuma.
pub fn kuma_annotations() -> Value {
    let config = "ipFamilyMode: dualstack\nkumaDPUser: '5678'\nredirect:\n  dns: {enabled: true, \
                  captureAll: true, port: 15053}\n  inbound: {port: 15006, excludePorts: [8081]}\n  \
                  outbound: {port: 15001, excludePorts: [81]}\n";
    json!({ KUMA: "true", KUMA_CONFIG: config })
}

/// Annotations of an injected pod of Consul.
pub fn consul_annotations() -> Value {
    let config = json!({
        "ProxyUserID": "5995",
        "ProxyInboundPort": 20000,
        "ProxyOutboundPort": 15001,
        "ExcludeInboundPorts": ["8081"],
        "ExcludeOutboundPorts": ["81"],
        "ExcludeUIDs": ["5996"],
    });
    json!({
        CONSUL: "injected",
        TRANSPARENT: "enabled",
        CONSUL_CONFIG: config.to_string(),
        DUAL_STACK: "true",
    })
}

/// A call on a node that expects pods of every mesh, with what the runtime tells of this one.
pub fn expecting_all(host: &Host, api: &Api, pod: &Pod, annotations: Value) -> Result<Call> {
    let mut call = Call::new(host, "ADD", pod, annotations);
    for key in ["linkerd", "kuma", "consul"] {
        call = call.with_key(key, json!({}));
    }
    Ok(call.with_key("kubeconfig", json!(api.kubeconfig("127.0.0.1")?)))
}

/// A call on a node that expects pods of this mesh alone beside those of Istio.
pub fn expecting(host: &Host, pod: &Pod, key: &str, annotations: &Value) -> Call {
    Call::new(host, "ADD", pod, annotations.clone()).with_key(key, json!({}))
}

/// Have `millrace` do this in a pod.
pub fn in_pod(host: &Host, pod: &Pod, words: &[&str]) -> Result<(Option<i32>, String)> {
    let mut command = millrace(words)?;
    host.inside(pod, |inside| ran(inside, &mut command))
}
