//! Errors as the runtime is told of them (CNI specification, section 5, «Error»).

use serde::Serialize;

/// What kind of error is reported; docs/cni.md says what to do about each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The version of the configuration is not spoken here.
    IncompatibleVersion,
    /// A variable of the runtime is missing or bad.
    BadEnvironment,
    /// Standard input, a file or a namespace can't be read.
    Io,
    /// The configuration is no JSON of the right shape.
    Decode,
    /// The configuration's values are wrong.
    BadConfig,
    /// Something that was needed did not answer in time; the runtime tries again.
    TryAgain,
    /// Nothing can be captured now.
    NotAvailable,
    /// Nothing can be captured now, and pods that are captured can't be looked after.
    LimitedConnectivity,
    /// The rules could not be written; the pod's namespace is as it was.
    NotCaptured,
    /// CHECK: the rules are missing or differ.
    Drifted,
    /// The pod's annotations are wrong.
    BadAnnotation,
    /// A fault of the plugin itself.
    Internal,
    /// The pod carries the proxies of two meshes.
    TwoMeshes,
}

impl Code {
    /// Each of them once, by ascending number.
    pub const ALL: [Self; 13] = [
        Self::IncompatibleVersion,
        Self::BadEnvironment,
        Self::Io,
        Self::Decode,
        Self::BadConfig,
        Self::TryAgain,
        Self::NotAvailable,
        Self::LimitedConnectivity,
        Self::NotCaptured,
        Self::Drifted,
        Self::BadAnnotation,
        Self::Internal,
        Self::TwoMeshes,
    ];

    /// The number: below 100 those of the specification, from 100 on our own.
    pub const fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::BadEnvironment => 4,
            Self::Io => 5,
            Self::Decode => 6,
            Self::BadConfig => 7,
            Self::TryAgain => 11,
            Self::NotAvailable => 50,
            Self::LimitedConnectivity => 51,
            Self::NotCaptured => 100,
            Self::Drifted => 101,
            Self::BadAnnotation => 102,
            Self::Internal => 103,
            Self::TwoMeshes => 104,
        }
    }
}

/// An error for the runtime. The message is what `kubectl describe pod` shows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{msg}")]
pub struct CniError {
    /// What kind of error it is.
    pub code: Code,
    /// What went wrong and what to do, in a line.
    pub msg: String,
    /// More about it; may be empty.
    pub details: String,
}

#[derive(Serialize)]
struct Reply<'a> {
    #[serde(rename = "cniVersion")]
    cni_version: &'a str,
    code: u32,
    msg: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    details: &'a str,
}

impl CniError {
    /// An error without details.
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// The same error with more about it.
    #[must_use]
    pub fn with_details(self, details: impl Into<String>) -> Self {
        Self { details: details.into(), ..self }
    }

    /// The same error with whom it is about in front of its message.
    #[must_use]
    pub fn about(self, whom: &str) -> Self {
        Self { msg: format!("{whom}: {}", self.msg), ..self }
    }

    /// The JSON object for standard output. `version` is the one of the configuration, as far as
    /// it is known.
    pub fn to_json(&self, version: &str) -> String {
        let code = self.code.number();
        let reply = Reply { cni_version: version, code, msg: &self.msg, details: &self.details };
        // A struct of texts and a number has a form in JSON.
        serde_json::to_string(&reply).unwrap_or_default()
    }
}
