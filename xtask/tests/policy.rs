//! The repository keeps its own rules. That each rule can be broken is shown by the unit tests
//! beside the checkers in `src/policy/`.

use serde_json::Value;
use xtask::policy::{self, SourceFile, Violation};

fn files() -> Vec<SourceFile> {
    policy::source_files().expect("git lists the files")
}

fn metadata() -> Value {
    policy::metadata().expect("cargo knows the members")
}

fn assert_none(found: &[Violation]) {
    let list: Vec<_> = found.iter().map(ToString::to_string).collect();
    assert!(found.is_empty(), "{} violations:\n{}", found.len(), list.join("\n"));
}

fn assert_kept(rule: fn(&SourceFile) -> Option<Violation>) {
    let files = files();
    let sources = files.iter().filter(|file| file.is_rust()).count();
    assert!(sources > 20, "only {sources} Rust files were found");
    assert_none(&files.iter().filter_map(rule).collect::<Vec<_>>());
}

/// Verify that the core depends on nothing that does input or output.
#[test]
fn the_core_is_pure() {
    assert_none(&policy::pure_core(&metadata()));
}

/// Verify that dependencies between members point one way.
#[test]
fn workspace_edges_point_one_way() {
    assert_none(&policy::workspace_edges(&metadata()));
}

/// Verify that no member is left out of the workspace's lints.
#[test]
fn every_member_takes_the_lints() {
    let files = files();
    assert_none(&policy::opted_in_lints(&metadata(), &files));
}

/// Verify that every Rust file says what it is for.
#[test]
fn every_file_has_a_documented_head() {
    assert_kept(policy::documented_head);
}

/// Verify that no Rust file is too long to be read.
#[test]
fn no_file_is_too_long() {
    assert_kept(policy::length);
}

/// Verify that `unsafe` stands only in `sys_*.rs`.
#[test]
fn unsafe_is_confined() {
    assert_kept(policy::unsafe_code);
}

/// Verify that the core names no mesh outside its dialects.
#[test]
fn the_core_is_mesh_neutral() {
    assert_kept(policy::neutral_core);
}

/// Verify that no file mentions a path of the machine it was written on.
#[test]
fn no_path_of_one_machine_is_mentioned() {
    assert_kept(policy::local_paths);
}

/// Verify that modules use only modules of lower layers.
#[test]
fn layers_point_one_way() {
    assert_kept(policy::layers);
}

/// Verify that the glossary has each term once, and names places that are there.
#[test]
fn the_glossary_is_whole() {
    assert_none(&policy::glossary(&files()));
}

/// Verify that public names keep to the glossary.
#[test]
fn public_names_are_those_of_the_glossary() {
    assert_kept(policy::public_names);
}
