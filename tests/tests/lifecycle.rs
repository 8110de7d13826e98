//! From nothing to captured and back, beside rules of others.

use millrace_tests::{Families, Pod};

const MILLRACE: &str = env!("CARGO_BIN_EXE_millrace-under-test");

/// Verify that a pod goes from not captured to captured and back, and that each step done twice
/// changes nothing the second time.
#[test]
fn a_pod_is_captured_and_let_go() {
    for variant in ["nft", "legacy"] {
        let pod = Pod::new(Families::Dual);
        let before = (pod.pod.rules(false).len(), pod.pod.routing());
        let apply = ["apply", "--iptables", variant, "--mode", "tproxy", "--dns", "all"];
        pod.pod.run(MILLRACE, &["status"]).exits(3);
        pod.pod.run(MILLRACE, &apply).exits(0);
        pod.pod.run(MILLRACE, &["status"]).exits(0);
        let rules = pod.pod.rules(true);
        let again = pod.pod.run(MILLRACE, &apply).ok();
        assert!(again.contains("no change"), "{again}");
        assert_eq!(pod.pod.rules(true), rules);
        pod.pod.run(MILLRACE, &["cleanup"]).exits(0);
        pod.pod.run(MILLRACE, &["status"]).exits(3);
        assert!(!pod.pod.rules(false).contains("MILLRACE"));
        assert_eq!(pod.pod.routing(), before.1);
        let again = pod.pod.run(MILLRACE, &["cleanup"]).ok();
        assert!(again.contains("nothing to do"), "{again}");
    }
}
