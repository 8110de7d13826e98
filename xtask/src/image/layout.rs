//! Container images in the forms that tools take: an OCI image layout (image-spec 1.1) with an index
//! over several machines, and docker's archive of one.
//!
//! The objects are written by hand: the maps of the crate `oci-spec` have no order, so the same image
//! would have other bytes, and another digest, each time.

use anyhow::{Context as _, Result, bail};
use miniz_oxide::deflate::compress_to_vec;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::archive::{Entry, pack};

/// How an image is started, and what is said of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Labels of its configuration, which are annotations of its manifest and of the index as well.
    pub labels: Vec<(String, String)>,
    /// The program with its first words.
    pub entrypoint: Vec<String>,
    /// The words behind it where nobody gives any.
    pub arguments: Vec<String>,
    /// Folders where programs are looked for, with colons between.
    pub path: String,
    /// User and group, as numbers with a colon between.
    pub user: String,
    /// Seconds since 1970.
    pub time: u64,
}

/// An image for one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    architecture: String,
    annotations: Value,
    time: u64,
    layer: Vec<u8>,
    packed: Vec<u8>,
    config: Vec<u8>,
}

impl Image {
    /// An image of one layer with these files.
    ///
    /// # Errors
    /// When a file's path is wrong.
    pub fn new(architecture: &str, files: &[Entry], settings: &Settings) -> Result<Self> {
        let layer = pack(files, settings.time)?;
        let packed = gzip(&layer);
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(settings.time);
        let created = humantime::format_rfc3339_seconds(time).to_string();
        let labels = settings.labels.iter();
        let labels: Map<_, _> = labels.map(|(k, v)| (k.clone(), json!(v))).collect();
        let config = json!({
            "created": created,
            "architecture": architecture,
            "os": "linux",
            "config": {
                "User": settings.user,
                "Env": [format!("PATH={}", settings.path)],
                "Entrypoint": settings.entrypoint,
                "Cmd": settings.arguments,
                "WorkingDir": "/",
                "Labels": labels,
            },
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
            "history": [{ "created": created, "created_by": "cargo xtask image" }],
        });
        Ok(Self {
            architecture: architecture.to_owned(),
            annotations: Value::Object(labels),
            time: settings.time,
            layer,
            packed,
            config: config.to_string().into_bytes(),
        })
    }

    /// As many bytes as a node fetches: the packed layer and the configuration.
    pub fn size(&self) -> usize {
        self.packed.len() + self.config.len()
    }

    /// The machine that it is for.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// docker's archive of it, for `docker load`, `podman load` and `ctr images import`.
    ///
    /// # Errors
    /// When a name is too long for the archive.
    pub fn docker_archive(&self, reference: &str) -> Result<Vec<u8>> {
        let config = format!("{}.json", sha256(&self.config));
        let layer = format!("{}/layer.tar", sha256(&self.layer));
        let manifest = json!([{ "Config": config, "RepoTags": [reference], "Layers": [layer] }]);
        let entries = [
            Entry::file(&config, self.config.as_slice()),
            Entry::file(&layer, self.layer.as_slice()),
            Entry::file("manifest.json", manifest.to_string()),
        ];
        pack(&entries, self.time)
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The archive of an OCI layout with these images, each for another machine, behind one name.
///
/// # Errors
/// When there are none, or two for one machine.
pub fn oci_archive(images: &[Image], reference: &str) -> Result<Vec<u8>> {
    let first = images.first().context("an index of no images")?;
    let mut blobs = Vec::new();
    let mut manifests = Vec::new();
    for image in images {
        if images.iter().filter(|other| other.architecture == image.architecture).count() > 1 {
            bail!("two images for {}", image.architecture);
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &image.config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &image.packed)],
            "annotations": image.annotations,
        });
        let manifest = manifest.to_string().into_bytes();
        let mut entry = descriptor(MANIFEST, &manifest);
        entry["platform"] = json!({ "architecture": image.architecture, "os": "linux" });
        manifests.push(entry);
        blobs.extend([image.packed.clone(), image.config.clone(), manifest]);
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": manifests,
        "annotations": first.annotations,
    });
    let index = index.to_string().into_bytes();
    let mut entry = descriptor(INDEX, &index);
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": reference });
    blobs.push(index);
    let top = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] });
    let mut entries: Vec<_> =
        blobs.into_iter().map(|blob| Entry::file(&blob_path(&blob), blob)).collect();
    // What two machines have in common is there once.
    entries.sort_by(|one, other| one.path.cmp(&other.path));
    entries.dedup();
    entries.push(Entry::file("oci-layout", json!({ "imageLayoutVersion": "1.0.0" }).to_string()));
    entries.push(Entry::file("index.json", top.to_string()));
    pack(&entries, first.time)
}

/// A gzip file (RFC 1952) without a name and a time.
pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    // Method 8 is deflate; of an unknown system.
    let mut file = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    file.extend(compress_to_vec(bytes, 6));
    file.extend(crc32(bytes).to_le_bytes());
    let length = bytes.len() as u64 & u64::from(u32::MAX);
    file.extend_from_slice(&length.to_le_bytes()[..4]);
    file
}

/// The checksum of gzip files (RFC 1952, section 8).
fn crc32(bytes: &[u8]) -> u32 {
    let mut table = [0_u32; 256];
    for (entry, index) in table.iter_mut().zip(0_u32..) {
        *entry =
            (0..8).fold(index, |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 });
    }
    let last = |crc: u32, byte: &u8| {
        let [low, ..] = crc.to_le_bytes();
        (crc >> 8) ^ table[usize::from(low ^ byte)]
    };
    !bytes.iter().fold(u32::MAX, last)
}

fn descriptor(kind: &str, blob: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": digest(blob), "size": blob.len() })
}

fn blob_path(blob: &[u8]) -> String {
    format!("blobs/sha256/{}", sha256(blob))
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", sha256(bytes))
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Bytes in hexadecimal digits, as sums are written.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read as _;

    use super::*;

    fn mk_image(architecture: &str, program: &[u8]) -> Image {
        let files =
            [Entry::program("bin/millrace", program), Entry::link("bin/pilot-agent", "millrace")];
        let label = |name: &str| (format!("org.opencontainers.image.{name}"), name.to_owned());
        let settings = Settings {
            labels: ["title", "version", "revision", "licenses"].map(label).to_vec(),
            entrypoint: vec!["/bin/pilot-agent".to_owned()],
            arguments: Vec::new(),
            path: "/bin".to_owned(),
            user: "0:0".to_owned(),
            time: 1_700_000_000,
        };
        Image::new(architecture, &files, &settings).unwrap()
    }

    fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        for entry in tar::Archive::new(archive).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            found.insert(entry.path().unwrap().display().to_string(), bytes);
        }
        found
    }

    /// The blob that a descriptor names, whose size and digest are right.
    fn blob<'a>(files: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
        let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let blob = &files[&format!("blobs/sha256/{digest}")];
        assert_eq!(blob.len() as u64, descriptor["size"].as_u64().unwrap());
        assert_eq!(sha256(blob), digest);
        blob
    }

    /// By another program than what is tested.
    fn gunzip(packed: &[u8], into: &mut Vec<u8>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), packed).unwrap();
        let unpacked = std::fs::File::open(file.path()).unwrap();
        let mut command = std::process::Command::new("gzip");
        let output = command.args(["-d", "-c"]).stdin(unpacked).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        *into = output.stdout;
    }

    #[test]
    fn a_checksum_is_that_of_the_standard() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b""), 0);
    }

    #[test]
    fn a_layout_leads_from_its_name_to_the_files_of_each_machine() {
        let images = [mk_image("amd64", b"one"), mk_image("arm64", b"two")];
        let files = files(&oci_archive(&images, "localhost/a:1").unwrap());
        let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        assert_eq!(json(&files["oci-layout"])["imageLayoutVersion"], "1.0.0");
        let top = json(&files["index.json"]);
        let name = &top["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"];
        assert_eq!(name, "localhost/a:1");
        let index = json(blob(&files, &top["manifests"][0]));
        for (at, (architecture, program)) in [("amd64", "one"), ("arm64", "two")].iter().enumerate()
        {
            let entry = &index["manifests"][at];
            assert_eq!(entry["platform"]["architecture"], *architecture);
            let manifest = json(blob(&files, entry));
            let config = json(blob(&files, &manifest["config"]));
            assert_eq!(config["architecture"], *architecture);
            assert_eq!(config["created"], "2023-11-14T22:13:20Z");
            assert_eq!(config["config"]["User"], "0:0");
            let packed = blob(&files, &manifest["layers"][0]);
            let mut layer = Vec::new();
            gunzip(packed, &mut layer);
            assert_eq!(config["rootfs"]["diff_ids"], json!([digest(&layer)]));
            assert_eq!(self::files(&layer)["bin/millrace"], program.as_bytes());
        }
    }

    #[test]
    fn the_same_image_has_the_same_bytes() {
        let (one, other) = (mk_image("amd64", b"one"), mk_image("amd64", b"one"));
        assert_eq!(one.docker_archive("a:1").unwrap(), other.docker_archive("a:1").unwrap());
        assert_eq!(oci_archive(&[one], "a:1").unwrap(), oci_archive(&[other], "a:1").unwrap());
    }

    #[test]
    fn an_index_has_one_image_for_a_machine() {
        assert!(oci_archive(&[], "a:1").is_err());
        let two = [mk_image("amd64", b"one"), mk_image("amd64", b"two")];
        assert!(oci_archive(&two, "a:1").unwrap_err().to_string().contains("amd64"));
    }
}
