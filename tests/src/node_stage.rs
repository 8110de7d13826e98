//! A node whose agent asks a Kubernetes API, on a host of its own.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, Result};

use crate::cni::{Api, Host};
use crate::node::{Agent, Node};

/// A host with an API server, and a node there with an agent.
#[derive(Debug)]
pub struct Stage {
    /// The host.
    pub host: Host,
    /// The API server.
    pub api: Api,
    /// The node.
    pub node: Node,
}

impl Stage {
    /// The node's name.
    pub const NODE: &str = "node-1";
    /// Where the agent says whether it is ready.
    pub const HEALTH: &str = "127.0.0.1:18000";
    /// Where it tells what it counted.
    pub const METRICS: &str = "127.0.0.1:18014";

    /// With a list of plugins, and a service account.
    pub fn new() -> Result<Self> {
        let host = Host::new()?;
        let api = Api::start(&host)?;
        let node = Node::new()?;
        node.write("10-net.conflist", r#"{"name":"net","plugins":[{"type":"bridge"}]}"#)?;
        let account = node.folder().join("account");
        fs::create_dir(&account).context("a service account")?;
        fs::copy(api.token(), account.join("token")).context("its token")?;
        fs::copy(api.token().with_file_name("ca.pem"), account.join("ca.crt"))
            .context("its authority")?;
        Ok(Self { host, api, node })
    }

    /// Start the agent, with these flags as well.
    pub fn start(&self, args: &[&str]) -> Result<Agent> {
        let args = self.flags(args)?;
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.host.namespace.enter(|| self.node.run(&args))?
    }

    /// The same as a container does, by these words: what they are put before is its command.
    pub fn start_by(&self, words: &[&str], args: &[&str]) -> Result<Agent> {
        let args = self.flags(args)?;
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.host.namespace.enter(|| self.node.run_by(words, &args))?
    }

    fn flags(&self, more: &[&str]) -> Result<Vec<String>> {
        let account = self.node.folder().join("account");
        let port = self.api.port().to_string();
        let own = [
            "--kubeconfig",
            "service-account",
            "--service-account",
            account.to_str().context("a path")?,
            "--kubernetes-host",
            "127.0.0.1",
            "--kubernetes-port",
            &port,
            "--node-name",
            Self::NODE,
            "--health-address",
            Self::HEALTH,
            "--metrics-address",
            Self::METRICS,
        ];
        Ok(own.iter().chain(more).map(|word| (*word).to_owned()).collect())
    }

    /// What is answered at an address: the status, and the body.
    pub fn get(&self, address: &str, path: &str) -> Result<(u16, String)> {
        let stream = self.host.namespace.enter(|| TcpStream::connect(address))?;
        let mut stream = stream.context("connecting")?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let code = text.split(' ').nth(1).context("no status")?.parse()?;
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
        Ok((code, body.unwrap_or_default()))
    }

    /// Whether the agent is ready.
    pub fn is_ready(&self) -> bool {
        self.get(Self::HEALTH, "/readyz").is_ok_and(|(code, _)| code == 200)
    }

    /// Whether the agent counts so: a line of its metrics begins with this.
    pub fn counts(&self, line: &str) -> bool {
        let metrics = self.get(Self::METRICS, "/metrics").map(|(_, text)| text);
        metrics.is_ok_and(|text| text.lines().any(|found| found.starts_with(line)))
    }
}
