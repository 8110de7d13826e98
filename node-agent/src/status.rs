//! What holds on a node, without a change: the same look and the same plan as those of a pass, and in
//! words what a pass would change.

use std::collections::BTreeSet;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::binary::Binary;
use crate::flags::HookFlags;
use crate::folder::Folder;
use crate::install::{Config, InstallError, Report, SOCKET, UNINSTALLED, desired, drop_in};
use crate::kept::{Kept, Store};
use crate::kubeconfig;
use crate::list::Entry;
use crate::observe::{Snapshot, look, parse};
use crate::own_folder::special;
use crate::plan::{Cause, DropIn, Plan, State, Step, plan};
use crate::taken::{earlier_name, not_replaced};

/// What to do about it.
const REMEDY: &str = "an agent that runs with these flags and variables puts that right, and so does \
                      `millrace-node install`; if it was installed with others, give them to status, too";

/// How long the agent may take with an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many bytes of it are read.
const MOST: u64 = 16 * 1024;

/// What holds on a node.
#[derive(Debug)]
pub struct Status {
    /// Whether new pods are captured by what is wanted. Where that is the runtime's plugin alone, the file
    /// is the runtime's socket.
    pub report: Report,
    /// Whether the runtime tells the agent of each pod, where it is to.
    pub connected: Option<bool>,
}

/// What holds on the node, without a change.
///
/// # Errors
/// When something can't be read.
pub fn status(config: &Config, flags: &HookFlags) -> Result<Status, InstallError> {
    if !flags.hook.connects() {
        return Ok(Status { report: installed(config)?, connected: None });
    }
    let connection = connection(config);
    let connected = Some(connection.is_ok());
    if !flags.hook.installs() {
        return Ok(Status {
            report: plugged_in(config, &flags.nri_socket, connection)?,
            connected,
        });
    }
    let mut report = installed(config)?;
    match (connection, &report.state) {
        (Ok(()), _) => {
            let socket = flags.nri_socket.display();
            report.words.push(format!("the runtime at {socket} tells the agent of each pod"));
        }
        (Err(why), State::Installed { .. }) => report.state = State::Waiting(why),
        (Err(why), _) => report.words.push(why),
    }
    Ok(Status { report, connected })
}

/// What holds where the agent is the runtime's plugin, and no list is to name the CNI plugin.
fn plugged_in(
    config: &Config,
    socket: &Path,
    connection: Result<(), String>,
) -> Result<Report, InstallError> {
    let report = |state, words| Report { state, words, causes: Vec::new(), again: false };
    let kept = match Store::open_if_there(&config.state_dir)? {
        None => Kept::default(),
        Some(store) if store.is_uninstalled()? => {
            return Ok(report(State::Blocked(UNINSTALLED.to_owned()), Vec::new()));
        }
        Some(store) => store.read()?,
    };
    let conf = Folder::open(&config.conf_dir)?;
    let look = look(&conf, &kept, &drop_in(config), &config.kind, &[])?;
    let lists = look.seen.files.iter().filter(|file| {
        let entries = file.list.as_ref().map(|list| list.plugins.as_slice()).unwrap_or_default();
        entries.iter().any(|entry| entry.kind() == config.kind)
    });
    let words = lists.map(|file| {
        let path = config.conf_dir.join(&file.name);
        format!("{} names the plugin; the agent removes that while it is connected", path.display())
    });
    let words = words.collect();
    let file = socket.display().to_string();
    Ok(report(connection.map_or_else(State::Waiting, |()| State::Installed { file }), words))
}

/// Ask the agent whether the runtime tells it of each pod.
///
/// # Errors
/// Why it doesn't.
fn connection(config: &Config) -> Result<(), String> {
    let path = config.run_dir.join(SOCKET);
    let answer =
        ask(&path).map_err(|error| format!("no agent answers on {}: {error}", path.display()))?;
    let answer: Value = serde_json::from_str(&answer)
        .map_err(|error| format!("the agent's answer can't be read: {error}"))?;
    if answer["nri"]["connected"] == Value::Bool(true) {
        return Ok(());
    }
    let why = answer["nri"]["why"].as_str().or_else(|| answer["error"].as_str());
    Err(format!("the runtime is not connected: {}", why.unwrap_or("the agent does not say why")))
}

fn ask(path: &Path) -> io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"{\"version\":1,\"nri\":true}\n")?;
    let mut line = String::new();
    BufReader::new(stream.take(MOST)).read_line(&mut line)?;
    Ok(line)
}

/// What holds where the CNI plugin is to be installed.
fn installed(config: &Config) -> Result<Report, InstallError> {
    let report = |state, words| Report { state, words, causes: Vec::new(), again: false };
    let kept = match Store::open_if_there(&config.state_dir)? {
        None => Kept::default(),
        Some(store) if store.is_uninstalled()? => {
            return Ok(report(State::Blocked(UNINSTALLED.to_owned()), Vec::new()));
        }
        Some(store) => store.read()?,
    };
    let (bin, conf) = (Folder::open(&config.bin_dir)?, Folder::open(&config.conf_dir)?);
    let look = look(&conf, &kept, &drop_in(config), &config.kind, &[])?;
    if let Err(why) = earlier_name(&look.seen, &kept, &config.kind) {
        return Ok(report(State::Blocked(why.to_string()), Vec::new()));
    }
    let plan = plan(&look.seen, &desired(config, &kept, Vec::new())?);
    let mut words = plan.words.clone();
    let state = match &plan.state {
        State::Installed { .. } => {
            words.extend(not_replaced(&kept, &bin));
            words.extend(silent(config));
            let why = match wrong_file(config, &bin)? {
                None => wrong_entry(config, &look, &plan).map(|why| format!("{why}: {REMEDY}")),
                why => why,
            };
            why.map_or_else(|| plan.state.clone(), State::Waiting)
        }
        state => state.clone(),
    };
    Ok(report(state, words))
}

/// What is wrong with the files that the entry needs.
fn wrong_file(config: &Config, bin: &Folder) -> Result<Option<String>, InstallError> {
    let binary = Binary::read(&config.plugin)?;
    let path = config.bin_dir.join(&config.kind);
    if !binary.is_at(bin, &config.kind) {
        let what = match special(bin, &config.kind) {
            Some(what) => format!("is {what}, and not the plugin"),
            None if !path.exists() => "is not there".to_owned(),
            None => format!("is not the same as {}, or can't be run", config.plugin.display()),
        };
        return Ok(Some(format!("{} {what}: {REMEDY}", path.display())));
    }
    let path = config.run_dir.join(kubeconfig::NAME);
    let is_missing = config.kubeconfig == kubeconfig::From::ServiceAccount && !path.exists();
    Ok(is_missing.then(|| {
        format!("{}, which the plugin asks the API with, is not there: {REMEDY}", path.display())
    }))
}

/// What is wrong with what runtimes read: the first that a pass would change.
fn wrong_entry(config: &Config, look: &Snapshot, plan: &Plan) -> Option<String> {
    let at = |file: &str| config.conf_dir.join(file).display().to_string();
    plan.steps.iter().find_map(|step| match step {
        Step::Keep { mesh, file, .. } => {
            Some(format!("{} has an entry of {mesh}, which is taken over", at(file)))
        }
        Step::KeepFile { mesh, file, .. } => {
            Some(format!("{} is of {mesh}, and is taken over", at(file)))
        }
        Step::Own { .. } => None,
        Step::Write { file, was: None, .. } => Some(format!("{} is not there", at(file))),
        Step::Write { file, text, cause: Cause::Changed, .. } => {
            let there = look.seen.files.iter().find(|there| there.name == *file);
            let there = there.and_then(|there| there.list.as_ref().ok());
            let wanted = parse(file, text).ok();
            let is_ours = |entry: &&Entry| entry.kind() == config.kind;
            let there = there.and_then(|list| list.plugins.iter().find(is_ours));
            let wanted = wanted.as_ref().and_then(|list| list.plugins.iter().find(is_ours));
            Some(format!("{}: {}", at(file), differences(there, wanted)))
        }
        Step::WriteDropIn { network, text, cause: Cause::Changed } => {
            let file = drop_in(config);
            let is_it = |own: &&DropIn| own.network == *network && own.file == file;
            let there = look.seen.drop_ins.iter().find(is_it).and_then(|own| own.entry.as_ref());
            let wanted = Entry::parse(text).ok();
            let path = at(&format!("{network}/{file}"));
            Some(format!("{path}: {}", differences(there, wanted.as_ref())))
        }
        Step::Write { file, cause, .. } => Some(format!("{} has {cause}", at(file))),
        Step::WriteDropIn { network, .. } => {
            Some(format!("{} is not there", at(&format!("{network}/{}", drop_in(config)))))
        }
        Step::Remove { file } => {
            Some(format!("{} is the agent's, of another mode, and has to go", at(file)))
        }
        Step::RemoveDropIn { network, file } => {
            let path = at(&format!("{network}/{file}"));
            Some(format!("{path} is the agent's, of another mode, and has to go"))
        }
    })
}

/// The settings in which an entry is not as it should be.
fn differences(there: Option<&Entry>, wanted: Option<&Entry>) -> String {
    let members = |entry: Option<&Entry>| -> Map<String, Value> {
        entry.and_then(|entry| serde_json::from_str(entry.text()).ok()).unwrap_or_default()
    };
    let (there, wanted) = (members(there), members(wanted));
    let names: BTreeSet<&String> = there.keys().chain(wanted.keys()).collect();
    let shown =
        |value: Option<&Value>| value.map_or_else(|| "not set".to_owned(), Value::to_string);
    let differs = names.into_iter().filter(|name| there.get(*name) != wanted.get(*name));
    let each = differs.map(|name| {
        format!("{name} is {} and should be {}", shown(there.get(name)), shown(wanted.get(name)))
    });
    format!("in the plugin's entry, {}", each.collect::<Vec<_>>().join("; "))
}

/// That nobody answers where the entry has the plugin ask the agent.
fn silent(config: &Config) -> Option<String> {
    let path = config.run_dir.join(SOCKET);
    (config.serves && UnixStream::connect(&path).is_err()).then(|| {
        format!(
            "no agent answers on {}: until one does, the plugin asks the API itself",
            path.display()
        )
    })
}
