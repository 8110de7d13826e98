//! Comments of rules.

use std::fmt;
use std::str::FromStr;

/// What a rule says of itself (`-m comment`), which no packet is held against: 1 to 255 printable
/// characters of ASCII, without quotes and backslashes, which programs of iptables write in more
/// than one way (kernel `include/uapi/linux/netfilter/xt_comment.h`, v6.18).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Comment(String);

/// The bytes of a comment that the kernel keeps, without the last one, which is 0.
const MOST: usize = 255;

/// Text that is no comment of Millrace's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} can't be a rule's comment: it takes 1 to {MOST} printable characters without quotes and \
     backslashes"
)]
pub struct BadComment(pub String);

impl Comment {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Comment {
    type Err = BadComment;

    fn from_str(text: &str) -> Result<Self, BadComment> {
        let plain =
            |b: u8| (b.is_ascii_graphic() || b == b' ') && !matches!(b, b'"' | b'\'' | b'\\');
        if text.is_empty() || text.len() > MOST || !text.bytes().all(plain) {
            return Err(BadComment(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Comment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
