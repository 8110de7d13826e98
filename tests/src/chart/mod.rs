//! The chart and the kustomization in `deploy/`, rendered by their own engines: Helm's, which is a
//! library of Go behind a module of Python, and that of kubectl. `scripts/setup` installs both.

mod known;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Map, Value, json};

pub use known::known;

const KUBECTL: &str = "/usr/local/lib/millrace-tests/kubectl/usr/bin/kubectl";

/// What Helm answered: rendered files by their path, or why there are none.
pub type Rendered = std::result::Result<BTreeMap<String, String>, String>;

/// A finding of `helm lint`; 2 is a warning, 3 an error.
#[derive(Debug, Deserialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: u8,
    /// Where it is.
    pub path: String,
    /// What it is.
    pub error: String,
}

#[derive(Debug, Deserialize)]
struct Lint {
    messages: Vec<Finding>,
}

#[derive(Debug, Deserialize)]
struct Answer {
    files: Option<BTreeMap<String, String>>,
    lint: Option<Lint>,
    error: Option<String>,
}

/// A file or folder of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn ask(requests: &[Value]) -> Result<Vec<Answer>> {
    let script = repository("tests/src/chart/render.py");
    let mut python = Command::new("/usr/bin/python3")
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("python3 is not installed: scripts/setup does that")?;
    let mut input = python.stdin.take().context("standard input")?;
    // It reads all before it writes.
    input.write_all(serde_json::to_string(requests)?.as_bytes())?;
    drop(input);
    let output = python.wait_with_output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answers: Vec<Answer> = serde_json::from_slice(&output.stdout)?;
    ensure!(answers.len() == requests.len(), "not all requests are answered");
    Ok(answers)
}

/// Render the chart with each of these values, in one process.
///
/// # Errors
/// When Helm's engine can't be run. That a chart can't be rendered is an answer.
pub fn render(values: &[Value]) -> Result<Vec<Rendered>> {
    let chart = repository("deploy/chart");
    let requests: Vec<_> =
        values.iter().map(|values| json!({ "chart": chart, "values": values })).collect();
    ask(&requests)?.into_iter().map(rendered).collect()
}

/// Pack the chart into this folder, and render the archive.
///
/// # Errors
/// When Helm's engine can't be run.
pub fn render_packed(folder: &Path, values: &Value) -> Result<Rendered> {
    let chart = repository("deploy/chart");
    let answers = ask(&[json!({ "chart": chart, "values": values, "package": folder })])?;
    rendered(answers.into_iter().next().context("an answer")?)
}

/// What `helm lint --strict` finds, with each of these values.
///
/// # Errors
/// When Helm's engine can't be run, or can't lint.
pub fn lint(values: &[Value]) -> Result<Vec<Vec<Finding>>> {
    let chart = repository("deploy/chart");
    let request = |values| json!({ "chart": chart, "values": values, "lint": true });
    let requests: Vec<_> = values.iter().map(request).collect();
    let findings = |answer: Answer| {
        let lint = answer.lint.with_context(|| format!("lint: {:?}", answer.error))?;
        Ok(lint.messages)
    };
    ask(&requests)?.into_iter().map(findings).collect()
}

fn rendered(answer: Answer) -> Result<Rendered> {
    match (answer.files, answer.error) {
        (Some(files), None) => {
            let full = |(_, text): &(String, String)| !text.trim().is_empty();
            Ok(Ok(files.into_iter().filter(full).collect()))
        }
        (None, Some(error)) => Ok(Err(error)),
        other => bail!("{other:?}"),
    }
}

/// All of one rendering in a file, as `helm template` prints it; what is for a reader alone is left out.
pub fn text(files: &BTreeMap<String, String>) -> String {
    let mut all = String::new();
    for (name, text) in files.iter().filter(|(name, _)| !name.ends_with("NOTES.txt")) {
        all.push_str(&format!("---\n# Source: {name}\n{}\n", text.trim()));
    }
    all
}

/// The objects of a YAML stream.
///
/// # Errors
/// When it is no YAML.
pub fn objects(text: &str) -> Result<Vec<Value>> {
    let objects: Vec<Value> = serde_saphyr::from_multiple(text)?;
    Ok(objects.into_iter().filter(|object| !object.is_null()).collect())
}

/// What `kubectl kustomize` makes of a folder of the repository.
///
/// # Errors
/// When it makes nothing, or warns.
pub fn kustomize(folder: &str) -> Result<String> {
    let output = Command::new(KUBECTL)
        .arg("kustomize")
        .arg(repository(folder))
        .output()
        .context("kubectl is not installed: scripts/setup does that")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.is_empty(), "{folder}: {said}");
    Ok(String::from_utf8(output.stdout)?)
}

/// The object of this kind; the first of several.
///
/// # Errors
/// When there is none.
pub fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Result<&'a Value> {
    objects.iter().find(|object| object["kind"] == kind).with_context(|| format!("no {kind}"))
}

/// A value with this one at a path with dots between its names.
pub fn at_path(path: &str, value: Value) -> Value {
    path.rsplit('.').fold(value, |inner, name| {
        let mut outer = Map::new();
        outer.insert(name.to_owned(), inner);
        Value::Object(outer)
    })
}

/// Values over values, as Helm lays them: maps member by member.
pub fn merge(below: &mut Value, over: &Value) {
    match (below, over) {
        (Value::Object(below), Value::Object(over)) => {
            for (name, value) in over {
                merge(below.entry(name).or_insert(Value::Null), value);
            }
        }
        (below, over) => *below = over.clone(),
    }
}
