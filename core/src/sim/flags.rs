//! The flags of TCP's header, as far as the way of a connection tells them.

/// Flags of TCP: those that are known, and those of them that are set. Those of ECN follow from settings
/// of both sides, and are not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flags {
    known: u8,
    set: u8,
}

impl Flags {
    /// Names, from the lowest bit on.
    const NAMES: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
    /// All but those of ECN.
    pub(super) const ALL: u8 = 0x3f;

    pub(super) const NONE_KNOWN: Self = Self { known: 0, set: 0 };
    pub(super) const SYN: Self = Self { known: Self::ALL, set: 0x02 };
    pub(super) const SYN_ACK: Self = Self { known: Self::ALL, set: 0x12 };
    /// What refuses a first packet.
    pub(super) const RESET: Self = Self { known: Self::ALL, set: 0x14 };
    /// What comes behind the handshake; whether it has data, or ends the connection, is not known.
    pub(super) const LATER: Self = Self { known: 0x36, set: 0x10 };

    /// Whether of some flags exactly these are set; none where that is not known.
    pub(super) const fn are(self, mask: u8, value: u8) -> Option<bool> {
        if value & !mask != 0 || (self.set ^ value) & mask & self.known != 0 {
            Some(false)
        } else if mask & !self.known == 0 {
            Some(true)
        } else {
            None
        }
    }

    /// The bit of a flag, by its name in any case.
    pub(super) fn bit(name: &str) -> Option<u8> {
        let at = Self::NAMES.iter().position(|known| known.eq_ignore_ascii_case(name))?;
        Some(1 << at)
    }

    /// Flags by their names with commas between them, as `xt_tcp` of iptables has them.
    pub(super) fn listed(text: &str) -> Option<u8> {
        match text {
            "ALL" => Some(Self::ALL),
            "NONE" => Some(0),
            _ => text.split(',').try_fold(0, |all, name| Some(all | Self::bit(name)?)),
        }
    }

    /// The names of flags.
    pub(super) fn names(flags: u8) -> String {
        let names = Self::NAMES.iter().enumerate().filter(|(at, _)| flags & (1 << at) != 0);
        let names: Vec<&str> = names.map(|(_, name)| *name).collect();
        if names.is_empty() { "NONE".to_owned() } else { names.join(",") }
    }
}
