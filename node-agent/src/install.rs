//! Installing: the binary, then the kubeconfig, then the entry, so that no list ever names what
//! isn't there. One pass looks and does what is left to do; it is repeated for ever.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use crate::binary::{Binary, BinaryError};
use crate::folder::{Folder, FolderError};
use crate::foreign::Mesh;
use crate::kept::{Kept, KeptError, Store};
use crate::kubeconfig::{self, Account, KubeconfigError};
use crate::observe::{Late, Snapshot, look};
use crate::own_folder::open_own;
use crate::plan::{Cause, Desired, Mode, Own, Plan, State, Step, default_file, plan};
use crate::rivalry::Rivalry;
use crate::settings::{BadSettings, Settings};
use crate::taken::{EarlierName, not_replaced};

/// Why nothing is installed where it was uninstalled.
pub(crate) const UNINSTALLED: &str = "it was uninstalled by `millrace-node uninstall`, and stays so until \
                                      `millrace-node install`";
/// How often a pass looks again after a change before it leaves the rest to the next one.
const ROUNDS: usize = 8;
/// The plugin's name where nobody gives it another one.
pub const PLUGIN: &str = "millrace-cni";
/// The socket that the plugin asks, in the agent's folder for what does not outlive a reboot.
pub const SOCKET: &str = "agent.sock";
/// Its name until it is there whole.
pub const SOCKET_BEING_MADE: &str = "agent.new";

/// What is to be installed, and where.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder of the runtime's plugins.
    pub bin_dir: PathBuf,
    /// The folder of CNI configurations.
    pub conf_dir: PathBuf,
    /// The agent's folder for the kubeconfig and the socket, which has this path on the host too.
    pub run_dir: PathBuf,
    /// The agent's folder for what outlives a reboot.
    pub state_dir: PathBuf,
    /// The binary that is installed.
    pub plugin: PathBuf,
    /// The name that it gets.
    pub kind: String,
    /// Where among the CNI configurations the plugin's entry stands.
    pub mode: Mode,
    /// The file, where the default is not wanted.
    pub file: Option<String>,
    /// What the operator sets, which holds over what was taken over.
    pub settings: Settings,
    /// Where the plugin's kubeconfig comes from.
    pub kubeconfig: kubeconfig::From,
    /// The agent's own: its folder, and the API server's address as a pod's variables have it.
    pub account: Account,
    /// Whether the agent answers the plugin on its socket.
    pub serves: bool,
    /// Whose entries are taken over.
    pub take_over: Vec<Mesh>,
}

/// Why a pass, or an uninstallation, was not carried to its end.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The binary can't be read, or not be put into the folder of the runtime's plugins.
    #[error(
        "the plugin's binary (--plugin) can't be installed into the runtime's folder of CNI plugins \
             (--cni-bin-dir)"
    )]
    Binary(#[from] BinaryError),
    /// A part of the service account is missing, or the file can't be written.
    #[error("the plugin's kubeconfig can't be written")]
    Kubeconfig(#[from] KubeconfigError),
    /// The folder of CNI configurations or a file in it can't be read or written.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The agent's folder, or what it keeps there, can't be read or written.
    #[error(transparent)]
    Kept(#[from] KeptError),
    /// Settings that were kept from another plugin's entry are not taken by this version.
    #[error("the settings that were taken over can't be used")]
    Settings(#[from] BadSettings),
    /// `uninstall --restore` where no entry and no file was taken over.
    #[error(
        "there is nothing to restore: nothing was taken over on this node; nothing is changed, and \
         uninstalling goes without --restore"
    )]
    NothingTaken,
    /// What was taken over can't run.
    #[error(
        "{0} can't be restored: its binary is neither in the agent's state folder nor in the \
         runtime's plugin folder"
    )]
    NoBinary(String),
    /// Another program has the plugin's name.
    #[error(
        "{} is there already, and is not the plugin: choose another name (--plugin-name), or remove it",
        .0.display()
    )]
    OtherPlugin(PathBuf),
    /// Another plugin's entry has the plugin's name.
    #[error(
        "{0} calls a plugin {1:?} already, and it is not this one: choose another name (--plugin-name)"
    )]
    OtherEntry(String, String),
    /// The plugin has another name than before.
    #[error(transparent)]
    EarlierName(#[from] EarlierName),
    /// What has the name of a file of the agent's own can't be read.
    #[error(
        "{0} has the name of the agent's own file, and can't be replaced ({1}): remove it, or choose \
         another name (--conf-file)"
    )]
    InTheWay(String, String),
    /// While uninstalling, others changed the same files at every one of `TURNS` tries.
    #[error(
        "other programs kept changing the CNI configuration during the uninstallation; try again"
    )]
    Busy,
}

/// What a pass found and did.
#[derive(Clone, Debug)]
pub struct Report {
    /// Whether the plugin is called for each pod, by which file, or why not.
    pub state: State,
    /// What the user should know.
    pub words: Vec<String>,
    /// One for each file that was written, in that order; empty where all was right.
    pub causes: Vec<Cause>,
    /// Whether somebody else was writing, so that it has to be looked at again soon.
    pub again: bool,
}

/// Makes passes: each looks at the node and does what is missing.
#[derive(Debug)]
pub struct Installer {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) binary: Binary,
    pub(crate) late: Vec<Late>,
    pub(crate) rivalry: Rivalry,
}

impl Installer {
    /// With the binary that is to be installed.
    ///
    /// # Errors
    /// When that can't be read, or the agent's folder not opened.
    pub fn new(config: Config) -> Result<Self, InstallError> {
        let binary = Binary::read(&config.plugin)?;
        let store = Store::open(&config.state_dir)?;
        let (late, rivalry) = (Vec::new(), Rivalry::default());
        Ok(Self { config, store, binary, late, rivalry })
    }

    /// What is to be installed, and where.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Have it be installed where it was uninstalled.
    ///
    /// # Errors
    /// When that can't be written.
    pub fn install_again(&self) -> Result<(), InstallError> {
        Ok(self.store.set_uninstalled(false)?)
    }

    /// The folders in which a change means something.
    pub fn watched(&self) -> Vec<PathBuf> {
        let config = &self.config;
        let mut folders = vec![config.bin_dir.clone(), config.conf_dir.clone()];
        if config.kubeconfig == kubeconfig::From::ServiceAccount {
            folders.extend([config.account.folder.clone(), config.run_dir.clone()]);
        }
        folders.push(config.state_dir.clone());
        let networks = self.store.read().map(|kept| kept.drop_ins).unwrap_or_default();
        folders.extend(networks.iter().map(|network| config.conf_dir.join(network)));
        folders
    }

    /// Look, and do what is left to do.
    ///
    /// # Errors
    /// When something can't be read or written. What was installed still is.
    pub fn pass(&mut self) -> Result<Report, InstallError> {
        let _held = self.store.hold()?;
        if self.store.is_uninstalled()? {
            let state = State::Blocked(UNINSTALLED.to_owned());
            return Ok(Report { state, words: Vec::new(), causes: Vec::new(), again: false });
        }
        let bin = Folder::open(&self.config.bin_dir).map_err(BinaryError::from)?;
        let conf = self.conf()?;
        for folder in [&bin, &conf] {
            folder.clean()?;
        }
        self.store.clean()?;
        self.own_name(&bin, &conf)?;
        self.renew_binaries(&bin)?;
        if self.binary.install(&bin, &self.config.kind)? {
            tracing::info!("installed {}", self.config.bin_dir.join(&self.config.kind).display());
        }
        self.kubeconfig()?;
        let mut report = self.settle(&conf)?;
        if matches!(report.state, State::Installed { .. }) && !report.again {
            report.again = self.take_binaries(&bin)?;
            report.words.extend(not_replaced(&self.store.read()?, &bin));
        }
        Ok(report)
    }

    pub(crate) fn conf(&self) -> Result<Folder, FolderError> {
        Folder::open(&self.config.conf_dir)
    }

    fn kubeconfig(&self) -> Result<(), InstallError> {
        let run = open_own(&self.config.run_dir)?;
        run.clean()?;
        if self.config.kubeconfig == kubeconfig::From::ServiceAccount
            && self.config.account.write(&run)?
        {
            tracing::info!("wrote {}", self.config.run_dir.join(kubeconfig::NAME).display());
        }
        Ok(())
    }

    /// Change files until nothing is left to change.
    fn settle(&mut self, conf: &Folder) -> Result<Report, InstallError> {
        let (mut causes, mut lost) = (Vec::new(), Vec::new());
        let mut rounds = 0;
        loop {
            let (mut kept, look, plan) = self.plan(conf)?;
            for word in &plan.lost {
                Kept::note(&mut lost, word);
            }
            rounds += 1;
            let done = plan.steps.is_empty();
            if done || rounds > ROUNDS || !self.apply(conf, &mut kept, &look, &plan, &mut causes)? {
                let words = plan.words.into_iter().chain(lost).collect();
                return Ok(Report { state: plan.state, words, causes, again: !done });
            }
        }
    }

    fn plan(&mut self, conf: &Folder) -> Result<(Kept, Snapshot, Plan), InstallError> {
        let now = Instant::now();
        self.late.retain(|late| now < late.until);
        let kept = self.store.read()?;
        let look = look(conf, &kept, &self.drop_in(), &self.config.kind, &self.late)?;
        let there = |mesh: Mesh| {
            let lists = look.seen.files.iter().filter_map(|file| file.list.as_ref().ok());
            lists.flat_map(|list| &list.plugins).any(|entry| Mesh::of(entry.kind()) == Some(mesh))
        };
        self.rivalry.gone(|mesh| !there(mesh));
        let yielded = self.rivalry.yielded(now);
        let wanted = self.desired(&kept, yielded)?;
        let plan = plan(&look.seen, &wanted);
        Ok((kept, look, plan))
    }

    /// The name of the agent's file in drop-in directories.
    pub(crate) fn drop_in(&self) -> String {
        drop_in(&self.config)
    }

    pub(crate) fn desired(
        &self,
        kept: &Kept,
        yield_to: Vec<Mesh>,
    ) -> Result<Desired, InstallError> {
        desired(&self.config, kept, yield_to)
    }

    /// Carry steps out in their order, until somebody else turns out to be writing. Gives whether
    /// all were.
    fn apply(
        &mut self,
        conf: &Folder,
        kept: &mut Kept,
        look: &Snapshot,
        plan: &Plan,
        causes: &mut Vec<Cause>,
    ) -> Result<bool, InstallError> {
        let now = Instant::now();
        let mut taken: Vec<Mesh> = plan.steps.iter().filter_map(Step::mesh).collect();
        taken.dedup();
        for mesh in &taken {
            if !self.rivalry.may_take(*mesh, now) {
                tracing::warn!(
                    "the agent of {mesh} puts its entry back each time that it is taken over: its entry \
                     is left alone for some minutes"
                );
                self.give_binaries_back(kept, *mesh)?;
                return Ok(false);
            }
        }
        for step in &plan.steps {
            if !self.step(conf, kept, look, step)? {
                return Ok(false);
            }
            if let Step::Write { cause, .. } | Step::WriteDropIn { cause, .. } = step {
                causes.push(*cause);
            }
        }
        for mesh in taken {
            self.rivalry.took(mesh, now);
        }
        Ok(true)
    }
}

pub(crate) fn drop_in(config: &Config) -> String {
    let named = config.file.clone().filter(|_| config.mode == Mode::DropIn);
    named.unwrap_or_else(|| default_file(Mode::DropIn).to_owned())
}

pub(crate) fn desired(
    config: &Config,
    kept: &Kept,
    yield_to: Vec<Mesh>,
) -> Result<Desired, InstallError> {
    let has_own = [Mode::OwnFile, Mode::Standalone].contains(&config.mode);
    let own =
        Own { written: kept.own_files.clone(), named: config.file.clone().filter(|_| has_own) };
    let mut places = Settings::default();
    let kubeconfig = match &config.kubeconfig {
        kubeconfig::From::ServiceAccount => Some(config.run_dir.join(kubeconfig::NAME)),
        kubeconfig::From::Path(path) => Some(path.clone()),
        kubeconfig::From::None => None,
    };
    if let Some(path) = kubeconfig {
        places = places.with("kubeconfig", path.to_string_lossy().into_owned().into());
    }
    if config.serves {
        let socket = config.run_dir.join(SOCKET).to_string_lossy().into_owned();
        places = places.with("agent_socket", socket.into());
    }
    Ok(Desired {
        kind: config.kind.clone(),
        mode: config.mode,
        file: config.file.clone(),
        own,
        settings: config.settings.clone(),
        kept: Settings::new(kept.settings.clone())?,
        places,
        take_over: config.take_over.clone(),
        yield_to,
    })
}

/// The settings that the plugin's entry has on this node.
///
/// # Errors
/// When what was taken over can't be read.
pub fn settings(config: &Config) -> Result<Settings, InstallError> {
    let store = Store::open_if_there(&config.state_dir)?;
    let kept = store.map_or_else(|| Ok(Kept::default()), |store| store.read())?;
    let wanted = desired(config, &kept, Vec::new())?;
    Ok(wanted.settings.over(&wanted.kept).over(&wanted.places))
}

/// Passes until it is installed, or the time is over.
///
/// # Errors
/// As [`Installer::pass`]; that it is not installed in time is no error.
pub fn until_installed(installer: &mut Installer, limit: Duration) -> Result<Report, InstallError> {
    let until = Instant::now() + limit;
    loop {
        let report = installer.pass()?;
        let installed = matches!(report.state, State::Installed { .. }) && !report.again;
        if installed || (Instant::now() >= until && !report.again) {
            return Ok(report);
        }
        thread::sleep(Duration::from_millis(if report.again { 10 } else { 200 }));
    }
}
