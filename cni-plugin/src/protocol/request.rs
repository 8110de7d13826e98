//! What the runtime asks for: its variables, checked.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::error::{CniError, Code};

/// The longest name of an interface (`IFNAMSIZ` less its terminating zero).
const MAX_INTERFACE: usize = 15;

/// Variables of the process by name; bytes that are not UTF-8 are replaced in their values.
pub type Environment = BTreeMap<String, String>;

/// What is to be done (CNI specification, section 2, «CNI operations»).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Capture the pod before its containers start, and pass the previous result on.
    Add,
    /// Take away what ADD wrote; it succeeds also where that fails or the namespace is gone.
    Del,
    /// See whether it is still so.
    Check,
    /// Forget what belongs to no pod any more.
    Gc,
    /// Say whether ADD would work.
    Status,
    /// Say which versions are spoken.
    Version,
}

impl Command {
    /// The commands of CNI 1.1.0.
    pub const ALL: [Self; 6] =
        [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version];

    /// The word in `CNI_COMMAND`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// The variables that it can't do without.
    const fn needs(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            Self::Del => &["CNI_CONTAINERID", "CNI_IFNAME"],
            Self::Gc | Self::Status | Self::Version => &[],
        }
    }
}

/// An interface of a container on a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// `CNI_CONTAINERID`: a letter or digit, then letters, digits, `_`, `.` and `-`.
    pub container_id: String,
    /// `CNI_IFNAME`: the interface in the container, of at most 15 bytes.
    pub ifname: String,
}

/// What the runtime's variables say, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is to be done.
    pub command: Command,
    /// For which container and interface; empty for GC, STATUS and VERSION.
    pub attachment: Attachment,
    /// The container's network namespace, where there still is one.
    pub netns: Option<PathBuf>,
    /// `CNI_ARGS` unread: `KEY=VALUE` pairs with `;` between; empty where it is not set.
    pub args: String,
}

impl Request {
    /// Read the runtime's variables. Everything that is missing is told at once.
    ///
    /// # Errors
    /// What is missing or bad, with code 4.
    pub fn parse(env: &Environment) -> Result<Self, CniError> {
        let value = |name: &str| env.get(name).map(String::as_str).filter(|v| !v.is_empty());
        let word = value("CNI_COMMAND").unwrap_or_default();
        let Some(command) = Command::ALL.into_iter().find(|c| c.as_str() == word) else {
            let known = Command::ALL.map(Command::as_str).join(", ");
            return Err(bad(format!("CNI_COMMAND is {word:?}; it is one of {known}")));
        };
        let missing: Vec<&str> =
            command.needs().iter().copied().filter(|name| value(name).is_none()).collect();
        if !missing.is_empty() {
            let list = missing.join(", ");
            return Err(bad(format!("{word} needs the variables {list}, which are not set")));
        }
        let mut attachment = Attachment::default();
        if !command.needs().is_empty() {
            let text = |name: &str| value(name).unwrap_or_default().to_owned();
            attachment.container_id = text("CNI_CONTAINERID");
            attachment.ifname = text("CNI_IFNAME");
            attachment.check()?;
        }
        Ok(Self {
            command,
            attachment,
            netns: value("CNI_NETNS").map(PathBuf::from),
            args: env.get("CNI_ARGS").cloned().unwrap_or_default(),
        })
    }
}

impl Attachment {
    /// Whether its parts are what they are to be.
    ///
    /// # Errors
    /// What is not, with code 4.
    pub(crate) fn check(&self) -> Result<(), CniError> {
        let Self { container_id: id, ifname } = self;
        if !is_identifier(id) {
            return Err(bad(format!(
                "CNI_CONTAINERID is {id:?}; a container id begins with a letter or digit and goes \
                 on with letters, digits, _ . -"
            )));
        }
        let good = ifname.len() <= MAX_INTERFACE
            && ![".", ".."].contains(&ifname.as_str())
            && !ifname.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
        if !good {
            return Err(bad(format!(
                "CNI_IFNAME is {ifname:?}; an interface name has at most {MAX_INTERFACE} bytes, and \
                 no blank, / or :"
            )));
        }
        Ok(())
    }
}

/// Whether it is a container id or a name of a network: a letter or digit, then letters, digits,
/// `_`, `.` and `-` (CNI specification, sections 1 and 2).
pub(crate) fn is_identifier(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

fn bad(msg: String) -> CniError {
    CniError::new(Code::BadEnvironment, msg)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Environment {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn full(command: &str) -> Environment {
        env(&[
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "abc"),
            ("CNI_NETNS", "/run/netns/x"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", ""),
        ])
    }

    #[test]
    fn every_command_is_read() {
        for command in Command::ALL {
            assert_eq!(Request::parse(&full(command.as_str())).unwrap().command, command);
        }
    }

    #[test]
    fn all_that_is_missing_is_told_at_once() {
        let error = Request::parse(&env(&[("CNI_COMMAND", "ADD"), ("CNI_NETNS", "")])).unwrap_err();
        assert_eq!(error.code, Code::BadEnvironment);
        for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
            assert!(error.msg.contains(name), "{}", error.msg);
        }
        let word = Request::parse(&env(&[("CNI_COMMAND", "add")])).unwrap_err();
        assert!(word.msg.contains("\"add\"") && word.msg.contains("STATUS"));
    }

    #[test]
    fn a_namespace_may_be_gone_at_del_and_nowhere_else() {
        for command in ["ADD", "CHECK", "DEL"] {
            let mut env = full(command);
            env.insert("CNI_NETNS".to_owned(), String::new());
            assert_eq!(Request::parse(&env).is_ok(), command == "DEL", "{command}");
        }
    }

    #[test]
    fn bad_ids_and_names_are_refused() {
        for (name, values) in [
            ("CNI_CONTAINERID", ["-a", "a/b", "a b", "\u{e9}", "../x"]),
            ("CNI_IFNAME", ["a/b", "a:b", "a b", "..", "1234567890123456"]),
        ] {
            for value in values {
                let mut env = full("ADD");
                env.insert(name.to_owned(), value.to_owned());
                let error = Request::parse(&env).unwrap_err();
                assert!(error.msg.contains(name), "{value}: {}", error.msg);
            }
        }
    }
}
