//! What can't be read as YAML, in words for who wrote it.

use serde_saphyr::{Error, UserMessageFormatter};

/// What is wrong, and where, with the lines around.
pub(crate) fn said(error: &Error) -> String {
    error.render_with_formatter(&UserMessageFormatter)
}
