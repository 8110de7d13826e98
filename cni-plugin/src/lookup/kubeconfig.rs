//! A kubeconfig and the files and programs that it names, within a deadline. `kube` would read the
//! files and run the program as well, but for as long as these like.

use std::path::{Path, PathBuf};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube::config::{
    AuthInfo, Cluster, ExecAuthCluster, ExecConfig, KubeConfigOptions, Kubeconfig, KubeconfigError,
};
use millrace_core::from_objects;
use millrace_host::exec::{self, ExecError};
use serde::Deserialize;
use serde_json::json;

use crate::causes::chain;
use crate::file::{self, FileError};

/// The most that a program prints that gives credentials.
const MAX_PRINTED: usize = 1024 * 1024;

/// A kubeconfig can't be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadKubeconfig {
    #[error("{0}")]
    File(#[from] FileError),
    #[error("{}", chain(.0))]
    Content(#[from] KubeconfigError),
    #[error(
        "its cluster has proxy-url, which is not supported: name a server that is reached without \
         a proxy"
    )]
    Proxy,
    #[error(
        "its user has auth-provider {0:?}, which is not supported: use a token, a certificate or \
         exec"
    )]
    Provider(String),
    #[error("its user has exec without a command")]
    NoCommand,
    #[error("its user has exec with the command {0:?}, which is not found")]
    CommandNotFound(String),
    #[error("the program that its user names under exec: {0}")]
    Exec(#[from] ExecError),
    #[error(
        "what {command} printed is no ExecCredential with a token or a certificate and its key"
    )]
    Credential { command: String },
}

/// Read it, with everything that it names.
pub(super) async fn load(path: &Path, deadline: Instant) -> Result<kube::Config, BadKubeconfig> {
    let mut file = Kubeconfig::from_yaml(&file::read(path)?)?;
    let context = file.current_context.as_ref();
    let context = file.contexts.iter().find(|named| Some(&named.name) == context);
    let Some(context) = context.and_then(|named| named.context.clone()) else {
        // That says what is missing.
        return Ok(kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?);
    };
    let folder = path.parent().unwrap_or_else(|| Path::new("/"));
    let clusters = file.clusters.iter_mut().filter(|named| named.name == context.cluster);
    for cluster in clusters.filter_map(|named| named.cluster.as_mut()) {
        complete_cluster(cluster, folder)?;
    }
    let cluster = file.clusters.iter().find(|named| named.name == context.cluster);
    let cluster = cluster.and_then(|named| named.cluster.clone()).unwrap_or_default();
    let users =
        file.auth_infos.iter_mut().filter(|named| Some(&named.name) == context.user.as_ref());
    for user in users.filter_map(|named| named.auth_info.as_mut()) {
        complete_user(user, &cluster, folder, deadline)?;
    }
    Ok(kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?)
}

fn complete_cluster(cluster: &mut Cluster, folder: &Path) -> Result<(), BadKubeconfig> {
    if cluster.proxy_url.as_ref().is_some_and(|url| !url.is_empty()) {
        return Err(BadKubeconfig::Proxy);
    }
    let authority = &mut cluster.certificate_authority;
    put(&mut cluster.certificate_authority_data, authority.take(), folder)?;
    Ok(())
}

fn complete_user(
    user: &mut AuthInfo,
    cluster: &Cluster,
    folder: &Path,
    deadline: Instant,
) -> Result<(), BadKubeconfig> {
    if let Some(provider) = &user.auth_provider {
        return Err(BadKubeconfig::Provider(provider.name.clone()));
    }
    put(&mut user.client_certificate_data, user.client_certificate.take(), folder)?;
    put(&mut user.client_key_data, user.client_key.take(), folder)?;
    if let (None, Some(path)) = (&user.token, user.token_file.take()) {
        let token = file::read(&folder.join(path))?;
        user.token = Some(token.trim_end().to_owned().into());
    }
    let has_password = user.username.is_some() && user.password.is_some();
    if let (Some(exec), None, false) = (user.exec.take(), &user.token, has_password) {
        let Status { token, client_certificate_data: certificate, client_key_data: key } =
            ask(&exec, cluster, folder, deadline)?;
        user.token = token.map(Into::into);
        if let (Some(certificate), Some(key)) = (certificate, key) {
            user.client_certificate_data = Some(STANDARD.encode(certificate));
            user.client_key_data = Some(STANDARD.encode(key).into());
        }
    }
    Ok(())
}

/// Put a file's content where it may stand itself, if nothing stands there.
fn put<T: From<String>>(
    data: &mut Option<T>,
    path: Option<String>,
    folder: &Path,
) -> Result<(), FileError> {
    if let (None, Some(path)) = (&data, path) {
        *data = Some(STANDARD.encode(file::read(&folder.join(path))?).into());
    }
    Ok(())
}

/// What a program that gives credentials prints (Kubernetes, `client.authentication.k8s.io/v1`).
#[derive(Deserialize)]
#[serde(remote = "Self")]
struct Credential {
    status: Status,
}

#[derive(Deserialize)]
#[serde(remote = "Self", rename_all = "camelCase")]
struct Status {
    token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
}

from_objects!(Credential, Status);

/// Run a program that gives credentials. It runs as the plugin does, which is as root.
fn ask(
    exec: &ExecConfig,
    cluster: &Cluster,
    folder: &Path,
    deadline: Instant,
) -> Result<Status, BadKubeconfig> {
    let name = exec.command.as_ref().ok_or(BadKubeconfig::NoCommand)?;
    let program = if name.contains('/') { Some(folder.join(name)) } else { exec::find(name) };
    let program: PathBuf = program.ok_or_else(|| BadKubeconfig::CommandNotFound(name.clone()))?;
    let mut spec = json!({ "interactive": false });
    if exec.provide_cluster_info {
        spec["cluster"] = json!(ExecAuthCluster::try_from(cluster)?);
    }
    let info = json!({ "apiVersion": exec.api_version, "kind": "ExecCredential", "spec": spec });
    let named = |pair: &std::collections::HashMap<String, String>| {
        Some((pair.get("name")?.clone(), pair.get("value")?.clone()))
    };
    let mut env: Vec<_> = exec.env.iter().flatten().filter_map(named).collect();
    env.push(("KUBERNETES_EXEC_INFO".to_owned(), info.to_string()));
    let args: Vec<&str> = exec.args.iter().flatten().map(String::as_str).collect();
    // The plugin starts nothing else meanwhile.
    let options = exec::Options {
        env,
        most: MAX_PRINTED,
        group: true,
        adopts: true,
        ..exec::Options::default()
    };
    let printed = exec::run(&program, &args, None, deadline, &options)?;
    let read: Option<Credential> = serde_saphyr::from_str(&printed).ok();
    read.map(|credential| credential.status)
        .filter(|s| {
            s.token.is_some()
                || (s.client_certificate_data.is_some() && s.client_key_data.is_some())
        })
        .ok_or_else(|| BadKubeconfig::Credential { command: program.display().to_string() })
}
