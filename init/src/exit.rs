//! Exit codes: what each means is part of the interface.

use std::process::ExitCode;

/// What a command ended with; [`Exit::code`] gives the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done, or nothing to do; `status`: captured.
    Ok,
    /// A bad configuration, or something failed and the previous rules were restored.
    Failed,
    /// Own commands: the command line can't be read.
    Usage,
    /// `diff`: traffic is treated differently.
    Differs,
    /// `diff`: it failed, with the exit status that diff(1) has for trouble.
    Trouble,
    /// `status`: not captured; `lint`: warnings.
    NotCaptured,
    /// The xtables lock, or another run of Millrace, was in the way until the time was up.
    Busy,
    /// `status`: rules are there, but not whole, or not those of the configuration; `lint`:
    /// errors.
    Drifted,
    /// `istio-iptables --run-validation`, `verify`: connections are not captured as they should be.
    NotValid,
    /// `istio-iptables`: the command line can't be read.
    BadFlag,
}

impl Exit {
    /// The process's exit status, which some of these share.
    pub const fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed | Self::Differs => 1,
            Self::Usage | Self::Trouble => 2,
            Self::NotCaptured => 3,
            Self::Busy => 4,
            Self::Drifted => 5,
            Self::NotValid => 126,
            Self::BadFlag => 255,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
