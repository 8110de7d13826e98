//! The kubeconfig that the plugin has on the node, from what Kubernetes gives the agent's pod: its
//! service account, whose token is renewed every hour or so.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::folder::{Folder, FolderError, Owner};

/// Its name in the agent's folder.
pub const NAME: &str = "kubeconfig";
/// The longest token or certificate.
const MOST: u64 = 1024 * 1024;

/// Where the plugin's kubeconfig comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    /// It is written from the service account.
    ServiceAccount,
    /// The operator has one there, as the host names it.
    Path(PathBuf),
    /// There is none: the plugin asks nobody but the agent.
    None,
}

/// Why none can be written.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// A part of the service account.
    #[error(
        "{}, of the agent's service account, can't be read: {why}; outside a pod, give \
         --kubeconfig none, or the path of a kubeconfig",
        path.display()
    )]
    Account {
        /// `token` or `ca.crt` in the folder of the service account.
        path: PathBuf,
        /// What reading it says, or that it is empty.
        why: String,
    },
    /// The API server's address can't be made of the variables.
    #[error(
        "KUBERNETES_SERVICE_HOST is {host:?} and KUBERNETES_SERVICE_PORT {port:?}: they have to \
         name the API server, as Kubernetes sets them in each pod; outside a pod, give \
         --kubeconfig none, or the path of a kubeconfig"
    )]
    Server {
        /// `KUBERNETES_SERVICE_HOST` as it is set; empty where it is not.
        host: String,
        /// `KUBERNETES_SERVICE_PORT` as it is set.
        port: String,
    },
    /// The kubeconfig can't be written to the agent's folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
}

impl std::str::FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "service-account" => Ok(Self::ServiceAccount),
            "none" => Ok(Self::None),
            path if Path::new(path).is_absolute() => Ok(Self::Path(path.into())),
            _ => Err(format!(
                "{text:?} is no source of a kubeconfig; it has to be service-account, none or an \
                 absolute path"
            )),
        }
    }
}

/// What Kubernetes gives each pod.
#[derive(Clone, Debug)]
pub struct Account {
    /// The folder of the service account.
    pub folder: PathBuf,
    /// `KUBERNETES_SERVICE_HOST`.
    pub host: String,
    /// `KUBERNETES_SERVICE_PORT`.
    pub port: String,
}

impl Account {
    /// A kubeconfig with the current token and authority, as JSON.
    ///
    /// # Errors
    /// When something of it is missing.
    pub fn kubeconfig(&self) -> Result<String, KubeconfigError> {
        let server = self.server()?;
        let authority = STANDARD.encode(self.part("ca.crt")?);
        let token = self.part("token")?.trim().to_owned();
        // JSON is YAML, and quotes whatever has to be.
        let text = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "local",
                "cluster": { "server": server, "certificate-authority-data": authority },
            }],
            "users": [{ "name": "millrace-cni", "user": { "token": token } }],
            "contexts": [{
                "name": "millrace-cni",
                "context": { "cluster": "local", "user": "millrace-cni" },
            }],
            "current-context": "millrace-cni",
        });
        Ok(format!("{text:#}\n"))
    }

    /// The URL of the API server.
    ///
    /// # Errors
    /// When the variables of Kubernetes name none.
    pub fn server(&self) -> Result<String, KubeconfigError> {
        let wrong = || KubeconfigError::Server { host: self.host.clone(), port: self.port.clone() };
        let port: u16 = self.port.parse().map_err(|_not_a_port| wrong())?;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || ".-".contains(c);
        match self.host.parse::<std::net::IpAddr>() {
            Ok(address) if address.is_ipv6() => Ok(format!("https://[{address}]:{port}")),
            Err(_) if self.host.is_empty() || !self.host.chars().all(is_plain) => Err(wrong()),
            _ => Ok(format!("https://{}:{port}", self.host)),
        }
    }

    fn part(&self, name: &str) -> Result<String, KubeconfigError> {
        let path = self.folder.join(name);
        let failed = |why: String| KubeconfigError::Account { path: path.clone(), why };
        let mut text = String::new();
        // The kubelet's files are links.
        let file = fs::File::open(&path).map_err(|error| failed(error.to_string()))?;
        let read = file.take(MOST).read_to_string(&mut text);
        read.map_err(|error| failed(error.to_string()))?;
        if text.trim().is_empty() {
            return Err(failed("it is empty".to_owned()));
        }
        Ok(text)
    }

    /// See to it that the kubeconfig is there and says what it has to. Gives whether it had to be
    /// written.
    ///
    /// # Errors
    /// See [`KubeconfigError`]; a kubeconfig that was there stays as it is.
    pub fn write(&self, folder: &Folder) -> Result<bool, KubeconfigError> {
        let (text, owner) = (self.kubeconfig()?, Owner::private().of_this_process());
        let there = folder.read(NAME).ok().flatten();
        if there.is_some_and(|there| there.bytes == text.as_bytes() && there.owner == owner) {
            return Ok(false);
        }
        folder.put(NAME, text.as_bytes(), owner)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn it_is_private_and_follows_the_token() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("ca.crt"), "-----BEGIN").unwrap();
        fs::write(at("token"), "one\n").unwrap();
        let account = Account {
            folder: dir.path().to_owned(),
            host: "fd00::1".to_owned(),
            port: "6443".to_owned(),
        };
        fs::create_dir(at("run")).unwrap();
        let folder = Folder::open(&at("run")).unwrap();
        assert!(account.write(&folder).unwrap());
        assert!(!account.write(&folder).unwrap());
        let text = fs::read_to_string(at("run/kubeconfig")).unwrap();
        assert!(text.contains("https://[fd00::1]:6443") && text.contains("\"one\""), "{text}");
        assert!(text.contains("LS0tLS1CRUdJTg=="), "{text}");
        fs::write(at("token"), "two").unwrap();
        assert!(account.write(&folder).unwrap());
        let path = at("run/kubeconfig");
        assert!(fs::read_to_string(&path).unwrap().contains("\"two\""));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(account.write(&folder).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(at("token"), "").unwrap();
        assert!(account.write(&folder).unwrap_err().to_string().contains("token"));
    }

    #[test]
    fn a_server_has_to_be_named() {
        let account = |host: &str, port: &str| Account {
            folder: "/".into(),
            host: host.to_owned(),
            port: port.to_owned(),
        };
        assert_eq!(account("10.0.0.1", "443").server().unwrap(), "https://10.0.0.1:443");
        assert_eq!(account("api.x", "443").server().unwrap(), "https://api.x:443");
        for (host, port) in [("", "443"), ("a", ""), ("a/b", "443"), ("a@b", "443"), ("a", "0x")] {
            assert!(account(host, port).server().is_err(), "{host} {port}");
        }
    }

    #[test]
    fn sources_are_read() {
        assert_eq!("service-account".parse(), Ok(From::ServiceAccount));
        assert_eq!("none".parse(), Ok(From::None));
        assert_eq!("/k".parse(), Ok(From::Path("/k".into())));
        assert!("k".parse::<From>().is_err());
    }
}
