//! What success prints (CNI specification, section 5).

use serde_json::json;
use serde_json::value::RawValue;

use super::error::{CniError, Code};
use super::object::Object;
use super::version::Version;

/// The result of the plugins before this one, passed on: nothing in it is changed but its version.
///
/// # Errors
/// When it is no object.
pub fn pass_on(previous: &RawValue, version: Version) -> Result<String, CniError> {
    let failed = |error: serde_json::Error| {
        CniError::new(Code::Decode, format!("prevResult is no result of a CNI plugin: {error}"))
    };
    let mut result: Object = serde_json::from_str(previous.get()).map_err(failed)?;
    result.set_text("cniVersion", version.as_str());
    serde_json::to_string(&result).map_err(failed)
}

/// The result where no plugin was before this one.
pub fn empty_result(version: Version) -> String {
    json!({ "cniVersion": version.as_str() }).to_string()
}

/// The answer to VERSION; `asked` is the version in the request, if there is one.
pub fn version_reply(asked: Option<&str>) -> String {
    let supported = Version::ALL.map(Version::as_str);
    let asked = asked.unwrap_or(Version::NEWEST.as_str());
    json!({ "cniVersion": asked, "supportedVersions": supported }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(text: &str, version: Version) -> String {
        pass_on(serde_json::from_str(text).unwrap(), version).unwrap()
    }

    #[test]
    fn nothing_but_the_version_changes() {
        let text = r#"{"cniVersion":"0.4.0","dns":{},"interfaces":[{"name":"eth0","mtu":1500,"socketPath":"/x","sandbox":"/run/netns/a"}],"ips":[{"address":"10.78.0.2/24","gateway":"10.78.0.1","interface":2,"version":"4"}],"routes":[{"dst":"0.0.0.0/0","priority":9007199254740993}]}"#;
        assert_eq!(passed(text, Version::V040), text);
        assert_eq!(passed(text, Version::V100), text.replace("0.4.0", "1.0.0"));
    }

    #[test]
    fn what_is_no_result_is_refused() {
        let raw: &RawValue = serde_json::from_str("[1]").unwrap();
        assert_eq!(pass_on(raw, Version::V100).unwrap_err().code, Code::Decode);
    }
}
