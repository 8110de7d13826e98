//! `xtask image`: container images of the binaries in `dist/`, made without any daemon.

mod archive;
mod debian;
mod layout;

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::{Arg, ArgMatches};

pub(crate) use archive::pack;
pub use archive::{Content, Entry};
pub use debian::{entries, merged};
pub(crate) use layout::gzip;
pub use layout::{Image, Settings, hex, oci_archive};

use crate::dist::{MACHINES, Machine};
use crate::repo;

/// The largest that a node fetches of an image, in bytes.
pub const LIMIT: usize = 15 * 1024 * 1024;
/// What stands in front of an image's name where nobody says it.
pub const PREFIX: &str = "localhost";
/// Where the binaries are in an image.
const FOLDER: &str = "usr/local/bin";
const FOLDERS: &str = "/usr/local/bin:/usr/bin:/bin:/usr/sbin";

/// What an image is made of.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    /// Its name.
    pub name: &'static str,
    description: &'static str,
    /// The binaries that it holds.
    pub binaries: &'static [&'static str],
    /// Other names of the first binary, which answers to each: paths from the root.
    pub links: &'static [&'static str],
    /// The packages of Debian's whose files it has.
    pub packages: &'static [&'static str],
    entrypoint: &'static str,
    arguments: &'static [&'static str],
}

/// The init container, where the images of the meshes have their tools. An injector gives arguments
/// and no command, so the program that starts is Istio's.
pub const INIT: Recipe = Recipe {
    name: "millrace-init",
    description: "Init container that diverts a pod's traffic into its mesh proxy",
    binaries: &["millrace"],
    links: &[
        "usr/local/bin/pilot-agent",
        "usr/local/bin/istio-iptables",
        "usr/lib/linkerd/linkerd2-proxy-init",
        "usr/bin/kumactl",
        "bin/consul",
    ],
    packages: &[],
    entrypoint: "/usr/local/bin/pilot-agent",
    arguments: &[],
};

/// The same with iptables' binaries, for kernels without `nf_tables` and for who asks for those binaries.
pub const INIT_IPTABLES: Recipe = Recipe {
    name: "millrace-init-iptables",
    description: "Init container that diverts a pod's traffic into its mesh proxy, with iptables",
    packages: &debian::IPTABLES,
    ..INIT
};

/// The node agent with what it installs.
pub const NODE: Recipe = Recipe {
    name: "millrace-node",
    description: "Node agent that installs the Millrace CNI plugin and keeps it installed",
    binaries: &["millrace-node", "millrace-cni", "millrace"],
    links: &[],
    packages: &[],
    entrypoint: "/usr/local/bin/millrace-node",
    arguments: &["run"],
};

const RECIPES: [Recipe; 3] = [INIT, INIT_IPTABLES, NODE];

/// Of which source an image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The commit; with `-dirty` behind it if something else was built.
    pub revision: String,
    /// When that was made, in seconds since 1970.
    pub time: u64,
}

impl Recipe {
    /// The image's name in a registry, or on a node that it was imported on.
    #[must_use]
    pub fn reference(&self, prefix: &str) -> String {
        format!("{prefix}/{}:{}", self.name, env!("CARGO_PKG_VERSION"))
    }

    /// The image for a machine, of binaries with these contents in the order of
    /// [`Self::binaries`], and further files.
    ///
    /// # Errors
    /// When the binaries are not as many, or a file is there twice.
    pub fn image(
        &self,
        architecture: &str,
        binaries: &[Vec<u8>],
        further: &[Entry],
        source: &Source,
    ) -> Result<Image> {
        ensure!(binaries.len() == self.binaries.len(), "{} needs {:?}", self.name, self.binaries);
        let mut files = further.to_vec();
        for (name, bytes) in self.binaries.iter().zip(binaries) {
            files.push(Entry::program(&format!("{FOLDER}/{name}"), bytes.as_slice()));
        }
        if let Some(first) = self.binaries.first() {
            let links = self.links.iter();
            files.extend(links.map(|link| Entry::link(link, &format!("/{FOLDER}/{first}"))));
        }
        let label = |name: &str, value: &str| {
            (format!("org.opencontainers.image.{name}"), value.to_owned())
        };
        let settings = Settings {
            labels: vec![
                label("title", self.name),
                label("description", self.description),
                label("version", env!("CARGO_PKG_VERSION")),
                label("revision", &source.revision),
                label("licenses", "Apache-2.0"),
            ],
            entrypoint: vec![self.entrypoint.to_owned()],
            arguments: self.arguments.iter().map(|word| (*word).to_owned()).collect(),
            path: FOLDERS.to_owned(),
            // Without another user in the pod's manifest. For any but 0 a container's capabilities
            // are gone once a program starts that has none of its own.
            user: "0:0".to_owned(),
            time: source.time,
        };
        Image::new(architecture, &files, &settings)
    }
}

/// The command line of `xtask image`.
pub fn command() -> clap::Command {
    clap::Command::new("image")
        .about("Make container images of the binaries that `xtask dist` left in dist/, for every machine that is there")
        .arg(
            Arg::new("repository")
                .long("repository")
                .value_name("PREFIX")
                .default_value(PREFIX)
                .help("What stands in front of an image's name"),
        )
        .arg(
            Arg::new("name")
                .value_name("NAME")
                .num_args(0..)
                .value_parser(RECIPES.map(|recipe| recipe.name))
                .help("Which images [default: all]"),
        )
}

/// Writes the images to `dist/images/`: for each an OCI archive with an index over the machines, and
/// docker's archive for each machine.
///
/// # Errors
/// When a binary is missing, was built of another source than the others, or an image is too large.
pub fn run(args: &ArgMatches) -> Result<()> {
    let prefix = args.get_one::<String>("repository").map_or(PREFIX, String::as_str);
    let names: Vec<&String> = args.get_many("name").into_iter().flatten().collect();
    let wanted = |recipe: &&Recipe| names.is_empty() || names.iter().any(|n| *n == recipe.name);
    let folder = repo::root().join("dist/images");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    for recipe in RECIPES.iter().filter(wanted) {
        let images = of_dist(recipe).with_context(|| recipe.name.to_owned())?;
        let reference = recipe.reference(prefix);
        write(&folder, &format!("{}.oci.tar", recipe.name), &oci_archive(&images, &reference)?)?;
        for image in &images {
            let (machine, size) = (image.architecture(), image.size());
            let file = format!("{}-{machine}.docker.tar", recipe.name);
            write(&folder, &file, &image.docker_archive(&reference)?)?;
            repo::print(&format!("{reference} {machine}: {size} bytes to fetch\n"))?;
        }
    }
    Ok(())
}

/// The images of what is in `dist/`, one for each machine that has binaries there.
fn of_dist(recipe: &Recipe) -> Result<Vec<Image>> {
    let mut images = Vec::new();
    let mut first: Option<String> = None;
    for machine in MACHINES {
        let Some((binaries, source)) = of_dist_for(machine, recipe.binaries)? else {
            repo::say(&format!("image: {} is not made for {}", recipe.name, machine.image));
            continue;
        };
        let first = first.get_or_insert_with(|| source.revision.clone());
        same_commit(first, &source.revision, &machine.folder()?)?;
        let further = match recipe.packages {
            [] => Vec::new(),
            packages => debian::fetched(machine, packages)?,
        };
        let image = recipe.image(machine.image, &binaries, &further, &source)?;
        let size = image.size();
        ensure!(
            size < LIMIT,
            "{} bytes to fetch for {}; the limit is {LIMIT}",
            size,
            machine.image
        );
        images.push(image);
    }
    ensure!(!images.is_empty(), "dist/ has no binaries: `cargo xtask dist`");
    Ok(images)
}

/// The binaries of these names for a machine that `xtask dist` left, and of which source they are; none where
/// none is there.
///
/// # Errors
/// When some are missing, or are of different commits.
pub(crate) fn of_dist_for(
    machine: Machine,
    names: &[&str],
) -> Result<Option<(Vec<Vec<u8>>, Source)>> {
    let folder = machine.folder()?;
    if !names.iter().any(|name| folder.join(name).is_file()) {
        return Ok(None);
    }
    let mut binaries = Vec::new();
    let mut first: Option<String> = None;
    for name in names {
        let (bytes, revision) = binary(machine, &folder, name)?;
        same_commit(first.get_or_insert_with(|| revision.clone()), &revision, &folder.join(name))?;
        binaries.push(bytes);
    }
    let revision = first.unwrap_or_default();
    Ok(Some((binaries, Source { time: time_of(&revision)?, revision })))
}

fn same_commit(first: &str, revision: &str, path: &Path) -> Result<()> {
    ensure!(
        first == revision,
        "{} is of {revision}, others are of {first}: build all of one commit",
        path.display()
    );
    Ok(())
}

/// A binary that `xtask dist` left, and the revision that it was built of.
fn binary(machine: Machine, folder: &Path, name: &str) -> Result<(Vec<u8>, String)> {
    let read = |file: String| {
        let path = folder.join(file);
        let how = format!("`cargo xtask dist --target {} {name}` makes it", machine.musl());
        fs::read(&path).with_context(|| format!("{}: {how}", path.display()))
    };
    let revision = String::from_utf8(read(format!("{name}.revision"))?).context("a revision")?;
    Ok((read(name.to_owned())?, revision.trim().to_owned()))
}

/// When a commit was made, or what `SOURCE_DATE_EPOCH` says
/// (<https://reproducible-builds.org/specs/source-date-epoch/>), in seconds since 1970.
fn time_of(revision: &str) -> Result<u64> {
    let text = if let Ok(text) = std::env::var("SOURCE_DATE_EPOCH") {
        text
    } else {
        let commit = revision.trim_end_matches("-dirty");
        let show = ["-c", "safe.directory=*", "show", "--no-patch", "--format=%ct", commit];
        let shown = repo::output(Command::new("git").args(show).current_dir(repo::root()))?;
        String::from_utf8(shown).context("git")?
    };
    text.trim().parse().with_context(|| format!("{text:?} is no time in seconds"))
}

/// Write a file, and its sha256 sum beside it.
pub(crate) fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = folder.join(name);
    fs::write(&path, bytes).with_context(|| path.display().to_string())?;
    let sum = repo::output(Command::new("sha256sum").arg(name).current_dir(folder))?;
    let sum_file = folder.join(format!("{name}.sha256"));
    fs::write(&sum_file, sum).with_context(|| sum_file.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_needs_all_its_binaries() {
        let source = Source { revision: "r".to_owned(), time: 0 };
        assert!(NODE.image("amd64", &[vec![1], vec![2]], &[], &source).is_err());
        let image = NODE.image("amd64", &[vec![1], vec![2], vec![3]], &[], &source).unwrap();
        assert_eq!(image.architecture(), "amd64");
        assert!(image.size() < LIMIT);
    }

    #[test]
    fn a_time_is_of_a_commit() {
        let revision = repo::revision().unwrap();
        assert!(revision.len() >= 40, "{revision}");
        assert!(time_of(&revision).unwrap() > 1_700_000_000);
        assert!(time_of("no-such-commit").is_err());
    }
}
