//! What a shipped binary is made of, as a CycloneDX bill of materials (<https://cyclonedx.org/docs/1.6/json/>): the
//! crates that are linked into it, with their versions, licences and where they are from. Its bytes follow from the
//! lock file, the target and the binary.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::repo;

/// The bill of materials of a binary's package for a target. `sha256` is of the binary, in hexadecimal.
///
/// # Errors
/// When cargo can't tell of the crates, or what it tells is not what its documentation says.
pub fn of(package: &str, target: &str, sha256: &str) -> Result<String> {
    let args = ["metadata", "--format-version", "1", "--locked", "--filter-platform", target];
    let told = repo::output(Command::new("cargo").args(args).current_dir(repo::root()))?;
    let metadata: Value = serde_json::from_slice(&told).context("what cargo metadata prints")?;
    // Metadata has the features of all members together; a binary is built with those of its own.
    let edges = ["--edges", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}"];
    let args =
        [&["tree", "--locked", "--package", package, "--target", target][..], &edges].concat();
    let told = repo::output(Command::new("cargo").args(args).current_dir(repo::root()))?;
    let text = String::from_utf8(told).context("what cargo tree prints")?;
    let text = serde_json::to_string_pretty(&bill(&metadata, package, &of_tree(&text), sha256)?)?;
    Ok(text + "\n")
}

/// The crates that `cargo tree` tells of: name and version.
fn of_tree(text: &str) -> BTreeSet<(String, String)> {
    let one = |line: &str| {
        let mut words = line.split_whitespace();
        let (name, version) = (words.next()?, words.next()?);
        Some((name.to_owned(), version.strip_prefix('v').unwrap_or(version).to_owned()))
    };
    text.lines().filter_map(one).collect()
}

/// A crate that is linked in.
struct Linked<'m> {
    package: &'m Value,
    /// The ids of those that it needs.
    needs: BTreeSet<&'m str>,
}

fn text<'v>(value: &'v Value, key: &str) -> Result<&'v str> {
    value.get(key).and_then(Value::as_str).with_context(|| format!("no {key} in cargo's metadata"))
}

fn list<'v>(value: &'v Value, key: &str) -> impl Iterator<Item = &'v Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn bill(
    metadata: &Value,
    package: &str,
    built: &BTreeSet<(String, String)>,
    sha256: &str,
) -> Result<Value> {
    let mut linked = linked(metadata, package)?;
    for one in linked.values() {
        text(one.package, "version")?;
    }
    linked.retain(|_, one| {
        let of = |key: &str| one.package[key].as_str().unwrap_or_default().to_owned();
        built.contains(&(of("name"), of("version")))
    });
    let root = linked.values().find(|one| one.package["name"] == package);
    let root = root.with_context(|| format!("no package {package}"))?.package;
    let component = |package: &Value| -> Result<Value> {
        let (name, version) = (text(package, "name")?, text(package, "version")?);
        let mut one = json!({
            "type": "library",
            "bom-ref": purl(package)?,
            "name": name,
            "version": version,
            "purl": purl(package)?,
        });
        if let Some(license) = package["license"].as_str() {
            // Cargo took a slash for OR before SPDX had a say.
            one["licenses"] =
                json!([{"expression": license.replace(" / ", "/").replace('/', " OR ")}]);
        }
        if let Some(repository) = package["repository"].as_str() {
            one["externalReferences"] = json!([{"type": "vcs", "url": repository}]);
        }
        Ok(one)
    };
    let mut of_binary = component(root)?;
    of_binary["type"] = json!("application");
    of_binary["hashes"] = json!([{"alg": "SHA-256", "content": sha256}]);
    let others = linked.values().filter(|one| !std::ptr::eq(one.package, root));
    let mut components = others.map(|one| component(one.package)).collect::<Result<Vec<_>>>()?;
    components.sort_by_key(|one| one["bom-ref"].to_string());
    let mut dependencies = Vec::new();
    for one in linked.values() {
        let needs = one.needs.iter().filter_map(|id| linked.get(id));
        let mut needs = needs.map(|needed| purl(needed.package)).collect::<Result<Vec<_>>>()?;
        needs.sort();
        dependencies.push(json!({"ref": purl(one.package)?, "dependsOn": needs}));
    }
    dependencies.sort_by_key(|one| one["ref"].to_string());
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": of_binary},
        "components": components,
        "dependencies": dependencies,
    }))
}

/// The package and all that it needs at run time, by their ids: neither what builds nor what tests it, and no macros,
/// which the compiler alone runs.
fn linked<'m>(metadata: &'m Value, package: &str) -> Result<BTreeMap<&'m str, Linked<'m>>> {
    let packages: BTreeMap<&str, &Value> =
        list(metadata, "packages").map(|p| Ok((text(p, "id")?, p))).collect::<Result<_>>()?;
    let nodes: BTreeMap<&str, &Value> = list(&metadata["resolve"], "nodes")
        .map(|node| Ok((text(node, "id")?, node)))
        .collect::<Result<_>>()?;
    let is_macro = |package: &Value| {
        list(package, "targets").any(|target| list(target, "kind").any(|kind| kind == "proc-macro"))
    };
    let root = packages.iter().find(|(_, one)| one["name"] == package).map(|(id, _)| *id);
    let mut left = vec![root.with_context(|| format!("no package {package}"))?];
    let mut found = BTreeMap::new();
    while let Some(id) = left.pop() {
        if found.contains_key(id) {
            continue;
        }
        let of_it = nodes.get(id).context("a crate that cargo has not resolved")?;
        let at_run_time = |dep: &&Value| list(dep, "dep_kinds").any(|kind| kind["kind"].is_null());
        let needs = list(of_it, "deps").filter(at_run_time).map(|dep| text(dep, "pkg"));
        let needs: BTreeSet<&str> = needs.collect::<Result<_>>()?;
        let needs: BTreeSet<&str> =
            needs.into_iter().filter(|id| packages.get(id).is_some_and(|p| !is_macro(p))).collect();
        left.extend(&needs);
        let package = packages.get(id).context("a crate that cargo does not describe")?;
        found.insert(id, Linked { package, needs });
    }
    Ok(found)
}

/// What a crate is called everywhere (<https://github.com/package-url/purl-spec>).
fn purl(package: &Value) -> Result<String> {
    Ok(format!("pkg:cargo/{}@{}", text(package, "name")?, text(package, "version")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, kind: &str) -> Value {
        json!({
            "id": format!("{name}-id"), "name": name, "version": "1.2.3", "license": "MIT/Apache-2.0",
            "repository": "https://example.com", "targets": [{"kind": [kind]}],
        })
    }

    fn node(name: &str, deps: &[(&str, Value)]) -> Value {
        let deps: Vec<Value> = deps
            .iter()
            .map(|(dep, kind)| json!({"pkg": format!("{dep}-id"), "dep_kinds": [{"kind": kind}]}))
            .collect();
        json!({"id": format!("{name}-id"), "deps": deps})
    }

    /// Verify that what is linked in is listed, with what it needs, and neither macros nor what builds or tests.
    #[test]
    fn what_is_linked_in_is_listed() {
        let kinds = [("a", "bin"), ("b", "lib"), ("c", "lib"), ("m", "proc-macro"), ("t", "lib")];
        let packages: Vec<Value> = kinds.iter().map(|(name, kind)| package(name, kind)).collect();
        let of_a = [("b", Value::Null), ("m", Value::Null), ("t", json!("dev"))];
        let nodes = [
            node("a", &of_a),
            node("b", &[("c", Value::Null), ("t", json!("build"))]),
            node("c", &[]),
            node("m", &[]),
            node("t", &[]),
        ];
        let metadata = json!({"packages": packages, "resolve": {"nodes": nodes}});
        let built = of_tree("a v1.2.3 (/path)\nb v1.2.3\nc v1.2.3 (*)\n");
        let bill = bill(&metadata, "a", &built, "00ff").unwrap();
        let names: Vec<&str> =
            list(&bill, "components").map(|one| one["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["b", "c"]);
        assert_eq!(bill["components"][0]["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(bill["metadata"]["component"]["hashes"][0]["content"], "00ff");
        let needs = &bill["dependencies"][0];
        assert_eq!(*needs, json!({"ref": "pkg:cargo/a@1.2.3", "dependsOn": ["pkg:cargo/b@1.2.3"]}));
        assert!(super::bill(&metadata, "z", &built, "").is_err());
        // What another member's features bring in is not in this binary.
        let without = of_tree("a v1.2.3\nb v1.2.3\n");
        let bill = super::bill(&metadata, "a", &without, "").unwrap();
        assert_eq!(list(&bill, "components").count(), 1);
    }
}
