//! Comments of rules.

use std::fmt;
use std::str::FromStr;

/// What a rule says of itself (`-m comment`), which no packet is held against: 1 to 255 printable
/// characters of ASCII (kernel `include/uapi/linux/netfilter/xt_comment.h`, v6.18).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Comment(String);

/// The bytes of a comment that the kernel keeps, without the last one, which is 0.
const MOST: usize = 255;

/// Text that is no comment of Millrace's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} can't be a rule's comment: it takes 1 to {MOST} printable characters of ASCII")]
pub struct BadComment(pub String);

impl Comment {
    /// Without quotes or backslashes around it, 1 to 255 bytes; see [`Comment::quoted`].
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text in quotes, as `iptables-save` writes it and `iptables-restore` reads it: with a backslash
    /// in front of quotes and backslashes.
    pub fn quoted(&self) -> String {
        let escaped = self.0.chars().flat_map(|c| {
            let special = matches!(c, '"' | '\'' | '\\');
            special.then_some('\\').into_iter().chain([c])
        });
        std::iter::once('"').chain(escaped).chain(['"']).collect()
    }
}

impl FromStr for Comment {
    type Err = BadComment;

    fn from_str(text: &str) -> Result<Self, BadComment> {
        let plain = |b: u8| b.is_ascii_graphic() || b == b' ';
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
