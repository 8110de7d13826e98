//! Flags of TCP as nft's JSON has them.

use serde_json::Value;

use super::super::super::flags::Flags;

/// Whether a field of a header is that of TCP's flags.
pub(super) fn is_tcp_flags(payload: &Value) -> bool {
    payload.get("protocol").is_some_and(|p| p == "tcp")
        && payload.get("field").is_some_and(|f| f == "flags")
}

/// Flags of TCP by their names, or as a number.
pub(super) fn tcp_flags(value: &Value) -> Option<u8> {
    if let Some(number) = value.as_u64() {
        return u8::try_from(number).ok();
    }
    names(value)?.into_iter().try_fold(0, |all, name| Some(all | Flags::bit(name)?))
}

/// Names of flags, as a list or as what `|` joins.
pub(super) fn names(value: &Value) -> Option<Vec<&str>> {
    if let Some(name) = value.as_str() {
        return Some(vec![name]);
    }
    let list = value.as_array().or_else(|| value.get("|")?.as_array())?;
    Some(list.iter().map(names).collect::<Option<Vec<_>>>()?.concat())
}
