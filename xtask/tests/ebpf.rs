//! The committed eBPF object is made of the sources that are here.

use xtask::{build_ebpf, repo};

#[test]
fn the_object_is_not_older_than_its_sources() {
    let root = repo::root();
    let committed =
        std::fs::read_to_string(root.join("host/src/ebpf/millrace.bpf.sha256")).unwrap();
    assert_eq!(
        committed.trim(),
        build_ebpf::sources_hash(&root).unwrap(),
        "the eBPF sources have changed: run `cargo xtask build-ebpf`"
    );
}
