//! `xtask build-ebpf`: the eBPF object, made of `ebpf/` and `ebpf-common/` by Debian's compiler.
//!
//! The object is committed, so that a plain `cargo build` needs none of this. Another version of
//! the compiler would make another object, so the version is pinned.

use std::env;
use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Arg, ArgAction, ArgMatches};

use crate::repo;

/// What Debian's rustc-web must be.
const RUSTC: &str = "rustc 1.96.0 ";
/// Its folder of programs, where no other toolchain is.
const PROGRAMS: &str = "/usr/bin";
/// Strips what is only for debuggers, and leaves types and lines (BTF).
const STRIP: [&str; 4] = [
    "/usr/lib/llvm-22/bin/llvm-objcopy",
    "--strip-debug",
    // Where BTF points is in it already; loaders read no relocations of it.
    "--remove-section=.rel.BTF",
    "--remove-section=.rel.BTF.ext",
];
/// The object, and the hash of what it is made of.
const OBJECT: &str = "host/src/ebpf/millrace.bpf.o";
const HASH: &str = "host/src/ebpf/millrace.bpf.sha256";
/// The sources.
const SOURCES: [&str; 2] = ["ebpf", "ebpf-common"];
/// Where the sources are copied to be built, and what they need there: which symbols the compiler makes,
/// and so in which order and what it inlines, depends on the path of a package.
const PLACE: &str = "/tmp/millrace-ebpf";
const MANIFEST: &str = "Cargo.toml";
/// Between flags of the compiler in one variable.
const SEPARATOR: &str = "\u{1f}";

/// The command line of `xtask build-ebpf`.
pub fn command() -> clap::Command {
    clap::Command::new("build-ebpf")
        .about("Build the eBPF object with Debian's rustc-web, rust-web-src and llvm-22-dev, and bpf-linker")
        .arg(
            Arg::new("check")
                .long("check")
                .help("Compare it with the committed one, byte for byte, and change nothing")
                .action(ArgAction::SetTrue),
        )
}

/// Builds the object, and writes or compares it.
///
/// # Errors
/// When the toolchain is not there or not this one, the build fails, or the object differs.
pub fn run(args: &ArgMatches) -> Result<()> {
    let root = repo::root();
    let built = build(&root)?;
    let hash = sources_hash(&root)?;
    let (object, hash_file) = (root.join(OBJECT), root.join(HASH));
    if args.get_flag("check") {
        let committed = fs::read(&object).with_context(|| OBJECT.to_owned())?;
        ensure!(
            committed == built,
            "{OBJECT} is not what its sources make: run `cargo xtask build-ebpf`, and commit it"
        );
        let committed = fs::read_to_string(&hash_file).with_context(|| HASH.to_owned())?;
        ensure!(committed.trim() == hash, "{HASH} is not that of the sources");
        repo::say(&format!("build-ebpf: {OBJECT} is what its sources make"));
        return Ok(());
    }
    fs::write(&object, &built).with_context(|| OBJECT.to_owned())?;
    fs::write(&hash_file, format!("{hash}\n")).with_context(|| HASH.to_owned())?;
    repo::say(&format!("build-ebpf: wrote {OBJECT}, {} bytes", built.len()));
    Ok(())
}

/// The hash of every source file's path and contents (SHA-256), in the order of the paths.
///
/// # Errors
/// When one can't be read, or there is no sha256sum.
pub fn sources_hash(root: &Path) -> Result<String> {
    let mut files = Vec::new();
    for folder in SOURCES {
        collect(&root.join(folder), &mut files)?;
    }
    files.sort();
    let mut all = Vec::new();
    for file in files {
        let name = file.strip_prefix(root).unwrap_or(&file).display().to_string();
        let bytes = fs::read(&file).with_context(|| name.clone())?;
        all.extend(format!("{name} {}\n", bytes.len()).bytes());
        all.extend(bytes);
    }
    sha256(&all)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                collect(&path, files)?;
            }
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// By coreutils: there is no other need of a library for it.
fn sha256(bytes: &[u8]) -> Result<String> {
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("sha256sum")?;
    let mut stdin = child.stdin.take().context("a pipe was asked for")?;
    std::io::Write::write_all(&mut stdin, bytes).context("sha256sum")?;
    drop(stdin);
    let mut said = String::new();
    let mut stdout = child.stdout.take().context("a pipe was asked for")?;
    stdout.read_to_string(&mut said).context("sha256sum")?;
    ensure!(child.wait()?.success(), "sha256sum failed");
    let hash = said.split(' ').next().unwrap_or_default();
    Ok(hash.to_owned())
}

/// Builds the object in a folder that nothing else uses.
fn build(root: &Path) -> Result<Vec<u8>> {
    let rustc = Path::new(PROGRAMS).join("rustc");
    let said = repo::output(Command::new(&rustc).arg("--version")).with_context(|| {
        "Debian's compiler is not there: scripts/setup ci installs rustc-web, cargo-web, rust-web-src and llvm-22-dev"
    })?;
    let said = String::from_utf8_lossy(&said).into_owned();
    if !said.starts_with(RUSTC) {
        bail!("{} is {}, and the object is made by {RUSTC}", rustc.display(), said.trim());
    }
    let target = root.join("target/ebpf");
    let place = Path::new(PLACE);
    let _copied = Copied::new(root, place)?;
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    let cargo_home = cargo_home.or(home).context("neither CARGO_HOME nor HOME is set")?;
    let flags = [
        "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // The object must not tell where it was built.
        format!("--remap-path-prefix={}=/millrace", place.display()),
        format!("--remap-path-prefix={}=/cargo", cargo_home.display()),
    ];
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = [PathBuf::from(PROGRAMS)].into_iter().chain(env::split_paths(&path));
    let folders = folders.chain([cargo_home.join("bin")]);
    let mut command = Command::new(Path::new(PROGRAMS).join("cargo"));
    command
        .current_dir(place.join("ebpf"))
        .args(["build", "--release", "--locked", "--target", "bpfel-unknown-none"])
        .args(["-Z", "build-std=core"])
        .env("PATH", env::join_paths(folders)?)
        .env("RUSTC", &rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join(SEPARATOR))
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO_INCREMENTAL");
    repo::run(&mut command)?;
    let made = target.join("bpfel-unknown-none/release/millrace-bpf");
    let stripped = tempfile::NamedTempFile::new().context("a temporary file")?;
    fs::copy(&made, stripped.path()).with_context(|| made.display().to_string())?;
    let [program, options @ ..] = STRIP;
    repo::run(Command::new(program).args(options).arg(stripped.path()))?;
    fs::read(stripped.path()).context("the stripped object")
}

/// The sources at a place that is the same on every machine and nobody else uses meanwhile; they are gone
/// with this.
struct Copied(File);

impl Copied {
    fn new(root: &Path, place: &Path) -> Result<Self> {
        let shown = || place.display().to_string();
        match fs::create_dir(place) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(error).with_context(shown);
            }
            _ => {}
        }
        // Anybody may make a folder, or a link, with a name that is known.
        let found = fs::symlink_metadata(place).with_context(shown)?;
        let own = fs::metadata("/proc/self").context("/proc/self")?.uid();
        ensure!(found.is_dir() && found.uid() == own, "{} is somebody else's", shown());
        let copied = Self(File::open(place).with_context(shown)?);
        copied.0.lock().with_context(|| format!("waiting for {}", shown()))?;
        clear(place)?;
        let mut files = vec![root.join(MANIFEST)];
        for folder in SOURCES {
            collect(&root.join(folder), &mut files)?;
        }
        for file in files {
            let to = place.join(file.strip_prefix(root)?);
            let folder = to.parent().unwrap_or(place);
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
            fs::copy(&file, &to).with_context(|| file.display().to_string())?;
        }
        Ok(copied)
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        // The folder stays, since it is the lock; it is cleared again by the next run.
        let _cleared = clear(Path::new(PLACE));
    }
}

fn clear(place: &Path) -> Result<()> {
    for entry in fs::read_dir(place).with_context(|| place.display().to_string())? {
        let path = entry?.path();
        let removed =
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(|| path.display().to_string())?;
    }
    Ok(())
}
