//! What a run goes on with after a refusal.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use super::*;
use crate::effect::EffectError;
use crate::exec::ExecError;

#[test]
fn legacy_is_tried_after_programs_that_nobody_asked_for() {
    let failed = || ExecError::Failed {
        command: "iptables-nft-restore".to_owned(),
        status: ExitStatus::from_raw(1 << 8),
        stderr: "CHAIN_ADD failed (No such file or directory): chain PREROUTING".to_owned(),
    };
    let lacking = EffectError::Lacking {
        command: "iptables-nft-restore".to_owned(),
        said: "no luck".to_owned(),
        lacks: "a chain".to_owned(),
    };
    for why in [failed().into(), lacking] {
        assert!(is_last_resort(Some(Method::NFT_PROGRAMS), Preference::Auto, &why));
        assert!(is_last_resort(Some(Method::NFT_PROGRAMS), Preference::Iptables, &why));
        assert!(!is_last_resort(
            Some(Method::NFT_PROGRAMS),
            Preference::Binaries(Variant::Nft),
            &why
        ));
        assert!(!is_last_resort(Some(Method::LEGACY_PROGRAMS), Preference::Auto, &why));
    }
    let late = ExecError::TooMuch { command: String::new(), most: 1 };
    assert!(!is_last_resort(Some(Method::NFT_PROGRAMS), Preference::Auto, &late.into()));
}
