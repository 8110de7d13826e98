//! What istio-iptables writes to `DRY_RUN_FILE_PATH`: every command it would have run, with a
//! restore's input in place of the restore.

use crate::iptables::render_restore;
use crate::ruleset::Ruleset;

/// The commands of a dry run that applies `ruleset`, one a line.
pub fn dry_run_log(ruleset: &Ruleset) -> String {
    let mut log = "iptables-save\nip6tables-save\n".to_owned();
    for family in ruleset.families() {
        log.push_str(&render_restore(ruleset, family));
    }
    log.push_str("iptables-save\n");
    if ruleset.v6.is_some() {
        log.push_str("ip6tables-save\n");
    }
    log
}
