//! Where rules stand: at which hook, in a chain of which kind.

use crate::fates::Dice;

/// Where a rule stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// In front of routing.
    Prerouting,
    /// For this host.
    Input,
    /// For somebody else.
    Forward,
    /// From this host.
    Output,
    /// Behind routing.
    Postrouting,
}

impl Hook {
    /// All of them.
    pub(super) const ALL: [Self; 5] =
        [Self::Prerouting, Self::Input, Self::Forward, Self::Output, Self::Postrouting];

    pub(super) const fn iptables(self) -> &'static str {
        match self {
            Self::Prerouting => "PREROUTING",
            Self::Input => "INPUT",
            Self::Forward => "FORWARD",
            Self::Output => "OUTPUT",
            Self::Postrouting => "POSTROUTING",
        }
    }

    pub(super) fn nft(self) -> String {
        self.iptables().to_ascii_lowercase()
    }

    /// The chain that rules at this hook jump to.
    pub(super) fn chain(self) -> String {
        format!("F-{}", self.nft())
    }

    pub(super) const fn goes_out(self) -> bool {
        matches!(self, Self::Forward | Self::Output | Self::Postrouting)
    }
}

/// What a chain is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// In front of connection tracking.
    Raw,
    /// Marks, and transparent sockets.
    Mangle,
    /// Translation.
    Nat,
    /// Letting past or not.
    Filter,
}

impl Kind {
    /// The hooks that iptables has it at.
    pub(super) const fn hooks(self) -> &'static [Hook] {
        match self {
            Self::Raw => &[Hook::Prerouting, Hook::Output],
            Self::Mangle => &Hook::ALL,
            Self::Nat => &[Hook::Prerouting, Hook::Output, Hook::Postrouting, Hook::Input],
            Self::Filter => &[Hook::Input, Hook::Forward, Hook::Output],
        }
    }

    pub(super) const fn table(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Mangle => "mangle",
            Self::Nat => "nat",
            Self::Filter => "filter",
        }
    }

    /// A place for a rule.
    pub(super) fn place(dice: &mut Dice) -> (Self, Hook) {
        let kind = dice.pick(&[
            Self::Raw,
            Self::Mangle,
            Self::Mangle,
            Self::Nat,
            Self::Nat,
            Self::Nat,
            Self::Filter,
            Self::Filter,
            Self::Filter,
        ]);
        (kind, dice.pick(kind.hooks()))
    }
}
