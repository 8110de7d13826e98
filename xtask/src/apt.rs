//! Packages of any release of Debian, from where this machine has its own, without a trace in its
//! own package manager.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::repo::{self, child};

/// How old a list of packages may be.
const FRESH: Duration = Duration::from_hours(24);
/// Every release that is asked about.
const RELEASES: [&str; 5] = ["bullseye", "bookworm", "trixie", "trixie-backports", "sid"];
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// apt, with a state of its own.
pub(crate) struct Apt {
    folder: PathBuf,
    /// Where Debian is.
    pub(crate) mirror: String,
    /// The release that this machine has.
    pub(crate) here: String,
    /// The architecture of the packages, as Debian names it; none for this machine's own.
    architecture: Option<&'static str>,
    is_fresh: bool,
}

/// A package in one version.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Package {
    /// Its name.
    pub(crate) name: String,
    /// Its version; none for the newest.
    pub(crate) version: Option<String>,
}

impl Package {
    /// As apt names it.
    pub(crate) fn spec(&self) -> String {
        let Self { name, version } = self;
        version.as_ref().map_or_else(|| name.clone(), |version| format!("{name}={version}"))
    }
}

impl Apt {
    /// Its state is in a folder; nothing is fetched before it is asked for.
    pub(crate) fn new(place: &Path) -> Result<Self> {
        Self::make(place.join("apt"), None)
    }

    /// The same for the packages of an architecture, whatever this machine's own is.
    pub(crate) fn of(architecture: &'static str, place: &Path) -> Result<Self> {
        Self::make(place.join(format!("apt-{architecture}")), Some(architecture))
    }

    fn make(folder: PathBuf, architecture: Option<&'static str>) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial"] {
            let part = folder.join(part);
            fs::create_dir_all(&part).with_context(|| part.display().to_string())?;
        }
        let release = fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
        let here = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
        let here = here.context("/etc/os-release names no VERSION_CODENAME; is this Debian?")?;
        let mut command = Command::new("apt-get");
        command.args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]);
        let mirrors = repo::output(command.arg(format!("Codename: {here}")))?;
        let mirrors = String::from_utf8_lossy(&mirrors).into_owned();
        let mirror = mirrors.lines().next();
        let mirror = mirror.with_context(|| format!("apt knows no mirror of Debian's {here}"))?;
        Ok(Self {
            folder,
            mirror: mirror.to_owned(),
            here: here.to_owned(),
            architecture,
            is_fresh: false,
        })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = child(program);
        let folder = self.folder.display();
        for (key, value) in [
            ("Dir::Etc::SourceList", format!("{folder}/sources.list")),
            ("Dir::Etc::SourceParts", "/dev/null".to_owned()),
            ("Dir::State::Lists", format!("{folder}/lists")),
            ("Dir::State::Status", "/dev/null".to_owned()),
            ("Dir::Cache", format!("{folder}/cache")),
            // Reading the lists anew for each question takes seconds; some machines are set so.
            ("Dir::Cache::pkgcache", "pkgcache.bin".to_owned()),
            ("Dir::Cache::srcpkgcache", "srcpkgcache.bin".to_owned()),
            ("Acquire::Languages", "none".to_owned()),
            ("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false".to_owned()),
            ("Acquire::Retries", "2".to_owned()),
            ("APT::Sandbox::User", "root".to_owned()),
        ] {
            command.arg("-o").arg(format!("{key}={value}"));
        }
        if let Some(architecture) = self.architecture {
            command.arg("-o").arg(format!("APT::Architecture={architecture}"));
            command.arg("-o").arg(format!("APT::Architectures={architecture}"));
        }
        command.arg("-q");
        command
    }

    /// Bring the lists of packages, if they are not of today.
    fn refresh(&mut self) -> Result<()> {
        let stamp = self.folder.join("fetched");
        let age = fs::metadata(&stamp).and_then(|data| data.modified()).ok();
        let age = age.and_then(|when| when.elapsed().ok());
        self.is_fresh |= age.is_some_and(|age| age < FRESH);
        if self.is_fresh {
            return Ok(());
        }
        let mirror = &self.mirror;
        let source = |release| format!("deb [signed-by={KEYS}] {mirror} {release} main\n");
        let sources: String = RELEASES.map(source).concat();
        fs::write(self.folder.join("sources.list"), sources).context("apt's sources")?;
        repo::run(self.command("apt-get").arg("update").stdout(Stdio::null()))?;
        fs::write(&stamp, "").context("a time stamp")?;
        self.is_fresh = true;
        Ok(())
    }

    /// The newest version of a package in one of these releases.
    pub(crate) fn newest(&mut self, name: &str, releases: &[&str]) -> Result<Package> {
        self.refresh()?;
        let known = repo::output(self.command("apt-cache").args(["madison", name]))?;
        let known = String::from_utf8_lossy(&known).into_owned();
        let mut newest: Option<&str> = None;
        for version in versions(&known, releases) {
            if newest.is_none_or(|known| is_newer(version, known)) {
                newest = Some(version);
            }
        }
        let version = newest.with_context(|| format!("no {name} in {}", releases.join(", ")))?;
        Ok(Package { name: name.to_owned(), version: Some(version.to_owned()) })
    }

    /// What a package depends on, of the packages whose names begin so.
    pub(crate) fn depends(&self, package: &Package, prefixes: &[&str]) -> Result<Vec<Package>> {
        let shown = repo::output(self.command("apt-cache").arg("show").arg(package.spec()))?;
        let shown = String::from_utf8_lossy(&shown).into_owned();
        let line = shown.lines().find_map(|line| line.strip_prefix("Depends: "));
        let line = line.with_context(|| format!("{} depends on nothing", package.spec()))?;
        let all = dependencies(line);
        let wanted = |one: &Package| prefixes.iter().any(|prefix| one.name.starts_with(prefix));
        Ok(all.into_iter().filter(wanted).collect())
    }

    /// Unpack packages into a folder.
    pub(crate) fn unpack(&self, packages: &[Package], into: &Path) -> Result<()> {
        let debs = self.folder.join("debs");
        drop(fs::remove_dir_all(&debs));
        fs::create_dir_all(&debs).with_context(|| debs.display().to_string())?;
        let mut command = self.command("apt-get");
        command.arg("download").args(packages.iter().map(Package::spec)).current_dir(&debs);
        repo::run(command.stdout(Stdio::null()))?;
        let mut unpacked = 0;
        for deb in fs::read_dir(&debs).with_context(|| debs.display().to_string())? {
            let deb = deb.context("a package")?.path();
            repo::output(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(into))?;
            unpacked += 1;
        }
        ensure!(unpacked == packages.len(), "apt-get fetched {unpacked} of {packages:?}");
        fs::remove_dir_all(&debs).with_context(|| debs.display().to_string())
    }
}

/// The versions that `apt-cache madison` tells of in these releases.
fn versions<'a>(madison: &'a str, releases: &[&str]) -> Vec<&'a str> {
    let version = |line: &'a str| {
        let mut fields = line.split('|').map(str::trim);
        let (version, origin) = (fields.nth(1)?, fields.next()?);
        let suite = origin.split_whitespace().nth(1)?.split('/').next()?;
        releases.contains(&suite).then_some(version)
    };
    madison.lines().filter_map(version).collect()
}

/// Names and exact versions in a list of dependencies; of alternatives the first.
fn dependencies(line: &str) -> Vec<Package> {
    let one = |words: &str| {
        let first = words.split('|').next()?.trim();
        let (name, rest) = first.split_once(' ').unwrap_or((first, ""));
        let version = rest.strip_prefix("(= ").and_then(|rest| rest.strip_suffix(')'));
        Some(Package { name: name.to_owned(), version: version.map(str::to_owned) })
    };
    line.split(',').filter_map(one).collect()
}

fn is_newer(version: &str, than: &str) -> bool {
    let words = ["--compare-versions", version, "gt", than];
    Command::new("dpkg").args(words).status().is_ok_and(|status| status.success())
}

/// An error of a program that speaks for itself, with where to look.
pub(crate) fn bounded(program: &mut Command, log: &Path) -> Result<()> {
    let line = repo::command_line(program);
    repo::say(&format!("+ {line}"));
    let file = fs::File::create(log).with_context(|| log.display().to_string())?;
    let both = file.try_clone().context("a log")?;
    let status = program.stdin(Stdio::null()).stdout(file).stderr(both).status();
    let status = status.with_context(|| format!("can't start `{line}`"))?;
    if !status.success() {
        let said = fs::read_to_string(log).unwrap_or_default();
        let last: Vec<&str> = said.lines().rev().take(10).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        bail!("`{line}` failed: {status}\n{}", last.join("\n"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_of_releases_are_found() {
        let said = "linux-image-amd64 | 7.3.4-1~bpo13+1 | http://mirror/debian trixie-backports/main amd64 Packages\n\
                    linux-image-amd64 |   7.2.13-1 | http://mirror/debian sid/main amd64 Packages\n\
                    linux-image-amd64 | 6.1.176-1 | http://mirror/debian bookworm/main amd64 Packages\n";
        assert_eq!(versions(said, &["trixie-backports", "sid"]), ["7.3.4-1~bpo13+1", "7.2.13-1"]);
        assert_eq!(versions(said, &["bookworm"]), ["6.1.176-1"]);
        assert_eq!(versions(said, &["trixie"]), [""; 0]);
    }

    #[test]
    fn dependencies_are_read() {
        let all =
            dependencies("dracut | initramfs-tools (>= 0.120), linux-modules-7 (= 7-1), kmod");
        let names: Vec<&str> = all.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["dracut", "linux-modules-7", "kmod"]);
        assert_eq!(all[1].version.as_deref(), Some("7-1"));
        assert_eq!(all[1].spec(), "linux-modules-7=7-1");
        assert_eq!(all[2].spec(), "kmod");
    }

    #[test]
    fn a_program_that_fails_is_told_by_its_last_words() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        let words = "seq 20; exit 3";
        let error = bounded(command.args(["-c", words]), &folder.path().join("log")).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("exit status: 3") && text.contains("\n11\n"), "{text}");
        assert!(!text.contains("\n10\n"), "{text}");
    }
}
