//! From settings that were read back to the policy they are.

use std::collections::BTreeMap;

use super::Inferred;
use crate::dialect::{ConfigErrors, Dialect, Reading, native};
use crate::facts::HostFacts;
use crate::policy::CapturePolicy;
use crate::source::Source;

/// The policy of settings that were read back; every part says which flag of the dialect whose
/// rules these are would have set it.
///
/// # Errors
/// What was read back makes no policy: the rules are not whole.
pub fn policy(found: &Inferred, dialect: &Dialect) -> Result<CapturePolicy, ConfigErrors> {
    let mut flags: BTreeMap<&'static str, String> = found.settings.clone();
    flags.insert("ipv6", if found.ipv6 { "on" } else { "off" }.to_owned());
    if !found.dns_servers.is_empty() {
        let servers: Vec<String> = found.dns_servers.iter().map(ToString::to_string).collect();
        flags.insert("dns-servers", servers.join(","));
    }
    let set: Vec<(String, String)> =
        flags.into_iter().map(|(flag, value)| (flag.to_owned(), value)).collect();
    let raw = native::Raw::new(BTreeMap::new(), set);
    let mut policy = native::resolve(&raw, &HostFacts::default(), false)?;
    if let Some(matching) = found.matching {
        policy.proxy.matching = matching;
    }
    policy.each_source(&mut |source| {
        if let (Source::Flag(flag), Reading::Common(source_of)) = (&*source, dialect.reading) {
            *source = source_of(flag);
        }
    });
    Ok(policy)
}
