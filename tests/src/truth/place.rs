//! Where rules stand: at which hook, in a chain of which kind.

use millrace_core::ruleset::Hook;

use crate::fates::Dice;

/// The chain that rules at a hook jump to.
pub(super) fn called_at(hook: Hook) -> String {
    format!("F-{}", hook.base_chain())
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
