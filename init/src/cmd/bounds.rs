//! How much there may be in files of others, so that no answer takes more memory than a host can spare: what
//! a text becomes is many times larger, and how many times depends on what is in it.

use anyhow::{Result, ensure};

/// The most that is read of saved rules, in bytes.
pub(super) const MOST: usize = 64 * 1024 * 1024;
/// The most rules and chains of iptables that are read of a file.
const MOST_LINES: usize = 200_000;
/// The longest of them, in bytes: `iptables-restore` takes 10 kB.
const LONGEST: usize = 64 * 1024;
/// The most objects of JSON, each of which takes 700 bytes, and the most of what stands in their lists.
const MOST_OBJECTS: usize = 600_000;
const MOST_VALUES: usize = 6_000_000;

/// Refuse JSON that holds too much. What stands in quotes counts as well.
pub(super) fn json(text: &str) -> Result<()> {
    let count = |wanted: &[u8]| text.bytes().filter(|byte| wanted.contains(byte)).count();
    ensure!(
        count(b"{") <= MOST_OBJECTS,
        "it has more than {MOST_OBJECTS} objects of JSON, which is the most that is read"
    );
    ensure!(
        count(b",[") <= MOST_VALUES,
        "it has more than {MOST_VALUES} values in lists of JSON, which is the most that is read"
    );
    Ok(())
}

/// Refuse a dump of iptables that has too many rules, or one that is too long.
pub(super) fn lines(text: &str) -> Result<()> {
    let mut counted = 0;
    for line in text.lines() {
        if !line.starts_with('#') {
            counted += 1;
        }
        ensure!(
            counted <= MOST_LINES,
            "it has more than {MOST_LINES} rules and chains, which is the most that is read"
        );
        ensure!(
            line.len() <= LONGEST,
            "it has a line of more than {LONGEST} bytes, which is the most that is read"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_too_much_is_refused_by_its_name() {
        let said = |found: Result<()>| found.unwrap_err().to_string();
        assert!(json(&"{}".repeat(MOST_OBJECTS)).is_ok());
        assert!(said(json(&"{}".repeat(MOST_OBJECTS + 1))).contains("600000 objects"));
        assert!(said(json(&"[".repeat(MOST_VALUES + 1))).contains("6000000 values"));
        let rule = "-A OUTPUT -j DROP\n";
        assert!(lines(&rule.repeat(MOST_LINES)).is_ok());
        assert!(said(lines(&rule.repeat(MOST_LINES + 1))).contains("200000 rules"));
        assert!(said(lines(&"a".repeat(LONGEST + 1))).contains("65536 bytes"));
    }
}
