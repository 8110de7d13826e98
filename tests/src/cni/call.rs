//! One call of a plugin.

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{Host, Pod, pod_args};
use crate::binary;

/// A call that is being put together: a good ADD of the plugin at first.
#[derive(Clone, Debug)]
pub struct Call {
    /// The variables; the rest of the environment is empty but for PATH.
    pub env: Vec<(String, String)>,
    /// Standard input.
    pub config: Value,
}

/// What a plugin answered.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// Standard output, as it came.
    pub text: String,
    /// Standard error.
    pub log: String,
}

impl Call {
    /// A call for a pod, with these annotations from the runtime.
    pub fn new(host: &Host, command: &str, pod: &Pod, annotations: Value) -> Self {
        let text = |text: &str| text.to_owned();
        let env = vec![
            (text("CNI_COMMAND"), text(command)),
            (text("CNI_CONTAINERID"), pod.id.clone()),
            (text("CNI_NETNS"), pod.netns.display().to_string()),
            (text("CNI_IFNAME"), text("eth0")),
            (text("CNI_ARGS"), pod_args("shop", &pod.name, &pod.uid())),
            (text("CNI_PATH"), text("/usr/lib/cni")),
        ];
        let mut config = host.entry();
        config["cniVersion"] = json!("1.1.0");
        config["name"] = json!("net");
        config["prevResult"] = json!({ "cniVersion": "1.1.0", "interfaces": [], "ips": [] });
        let told = [(super::POD_ANNOTATIONS.to_owned(), annotations)];
        config["runtimeConfig"] = Value::Object(told.into_iter().collect());
        Self { env, config }
    }

    /// The same call with another variable.
    #[must_use]
    pub fn with_env(mut self, name: &str, value: &str) -> Self {
        self.env.retain(|(n, _)| n != name);
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same call without a variable.
    #[must_use]
    pub fn without_env(mut self, name: &str) -> Self {
        self.env.retain(|(n, _)| n != name);
        self
    }

    /// The same call with another key.
    #[must_use]
    pub fn with_key(mut self, name: &str, value: Value) -> Self {
        self.config[name] = value;
        self
    }

    /// The same call without a key.
    #[must_use]
    pub fn without_key(mut self, name: &str) -> Self {
        if let Some(object) = self.config.as_object_mut() {
            object.shift_remove(name);
        }
        self
    }

    /// The same call with a prevResult that has this address, with its prefix, which the pod gets at an
    /// `eth0` of its own.
    pub fn given(self, host: &Host, pod: &Pod, address: &str) -> Result<Self> {
        host.inside(pod, |inside| {
            inside.ip(&format!(
                "link add eth0 type veth peer name out0\nlink set eth0 up\naddress add {address} dev eth0"
            ))
        })?;
        let previous = json!({
            "cniVersion": "1.1.0",
            "interfaces": [{ "name": "eth0", "sandbox": pod.netns }],
            "ips": [{ "address": address, "interface": 0 }],
        });
        Ok(self.with_key("prevResult", previous))
    }

    /// The same call for another command.
    #[must_use]
    pub fn to(self, command: &str) -> Self {
        self.with_env("CNI_COMMAND", command)
    }

    /// Make the call.
    pub fn run(&self, host: &Host) -> Result<Reply> {
        self.run_with(host, &self.config.to_string())
    }

    /// Make the call with another text as standard input.
    pub fn run_with(&self, host: &Host, stdin: &str) -> Result<Reply> {
        let child = self.start_with(host, stdin)?;
        Reply::of(&child.wait_with_output().context("waiting for the plugin")?)
    }

    /// Make the call, which has to end by itself before this time is over.
    pub fn run_within(&self, host: &Host, limit: Duration) -> Result<Reply> {
        end_within(self.start(host)?, limit).with_context(|| format!("{self:?}"))
    }

    /// Make the call, which has to keep this deadline ([`kept`]).
    pub fn run_by(&self, host: &Host, deadline: Duration) -> Result<Reply> {
        self.run_within(host, kept(host, deadline)?)
    }

    /// Start the call, and don't wait for its end.
    pub fn start(&self, host: &Host) -> Result<Child> {
        self.start_with(host, &self.config.to_string())
    }

    /// Start the call, with a program in front that ends by running it: these words, then the
    /// plugin's path.
    pub fn start_under(&self, host: &Host, words: &[&str]) -> Result<Child> {
        let plugin = binary::millrace_cni()?;
        let plugin = plugin.to_str().context("the plugin's path")?;
        let (program, args) = words.split_first().context("a program in front")?;
        let mut command = Command::new(program);
        command.args(args).arg(plugin);
        spawn(host, &mut command, &self.env, &self.config.to_string())
    }

    /// Make the call with a program in front.
    pub fn run_under(&self, host: &Host, words: &[&str]) -> Result<Reply> {
        let child = self.start_under(host, words)?;
        Reply::of(&child.wait_with_output().context("waiting for the plugin")?)
    }

    fn start_with(&self, host: &Host, stdin: &str) -> Result<Child> {
        start(host, &binary::millrace_cni()?, &self.env, stdin)
    }
}

/// Start a plugin on a host.
pub(super) fn start(
    host: &Host,
    program: &Path,
    env: &[(String, String)],
    stdin: &str,
) -> Result<Child> {
    spawn(host, &mut Command::new(program), env, stdin)
}

fn spawn(
    host: &Host,
    command: &mut Command,
    env: &[(String, String)],
    stdin: &str,
) -> Result<Child> {
    command.env_clear().envs(env.iter().map(|(n, v)| (n, v)));
    command.env("PATH", std::env::var_os("PATH").context("PATH is not set")?);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = host.namespace.enter(|| command.spawn())?;
    let mut child = child.with_context(|| format!("{command:?}"))?;
    let mut pipe = child.stdin.take().context("a pipe was asked for")?;
    // A plugin that fails early closes the pipe: its own message says more.
    let _written = pipe.write_all(stdin.as_bytes());
    Ok(child)
}

/// How long after its deadline an alarm ends a plugin, which is set in whole seconds.
const ALARM: Duration = Duration::from_secs(3);

/// How long a plugin may take that keeps this deadline: so much, with what an alarm comes later and what is
/// not the plugin's. That is measured, since it is the machine's: so much for a start as so many take now.
pub fn kept(host: &Host, deadline: Duration) -> Result<Duration> {
    /// The load of a moment may be many times that of the one before.
    const STARTS: u32 = 20;
    let env = [("CNI_COMMAND".to_owned(), "VERSION".to_owned())];
    let began = Instant::now();
    let child = start(host, &binary::millrace_cni()?, &env, r#"{"cniVersion":"1.1.0"}"#)?;
    Reply::of(&child.wait_with_output()?)?.success()?;
    Ok(deadline + ALARM + Duration::from_secs(1) + began.elapsed() * STARTS)
}

/// Wait for the end of a plugin, which says little enough to fit into pipes.
pub fn end_within(mut child: Child, limit: Duration) -> Result<Reply> {
    let began = Instant::now();
    while child.try_wait().context("waiting for the plugin")?.is_none() {
        if began.elapsed() > limit {
            child.kill().context("a plugin that hangs")?;
            child.wait().context("a plugin that was killed")?;
            bail!("it did not end within {limit:?}");
        }
        thread::sleep(Duration::from_millis(5));
    }
    Reply::of(&child.wait_with_output().context("what the plugin said")?)
}

impl Reply {
    /// What a process that ended said.
    pub fn of(output: &Output) -> Result<Self> {
        Ok(Self {
            code: output.status.code(),
            text: String::from_utf8(output.stdout.clone()).context("standard output")?,
            log: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Standard output of a success, as JSON; null where there is none.
    pub fn success(&self) -> Result<Value> {
        ensure!(self.code == Some(0), "it failed: {self:?}");
        if self.text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&self.text).with_context(|| format!("{self:?}"))
    }

    /// The error of a failure, which has to have this code. Gives its message and details.
    pub fn failure(&self, code: u64) -> Result<String> {
        ensure!(self.code.is_some_and(|code| code != 0), "it did not fail: {self:?}");
        let error: Value = serde_json::from_str(&self.text).with_context(|| format!("{self:?}"))?;
        ensure!(error["code"] == code, "it failed with another code than {code}: {self:?}");
        ensure!(error["cniVersion"].is_string(), "no version: {self:?}");
        let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
        ensure!(!text("msg").is_empty(), "no message: {self:?}");
        Ok(format!("{} {}", text("msg"), text("details")))
    }

    /// The lines of the log, each of which has to be an object.
    pub fn lines(&self) -> Result<Vec<Value>> {
        let parse = |line: &str| -> Result<Value> {
            let value: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            ensure!(value.is_object(), "{line}");
            Ok(value)
        };
        self.log.lines().map(parse).collect()
    }
}
