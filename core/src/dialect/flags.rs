//! Flags and variables of a mesh's tool, in tables: the command line, its help, the environment and the
//! documentation are made from them.

use crate::source::Source;

/// What a flag's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text; the last one given counts.
    Text,
    /// A comma list; several flags add up.
    List,
    /// Texts with commas of their own; several flags add up, with [`BETWEEN`] between them.
    Texts,
    /// `true` or `false` as Go's `strconv.ParseBool` takes them; a flag without value is true.
    Bool,
    /// A whole number in decimal digits; its range is the flag's.
    Number,
    /// A duration as Go's `time.ParseDuration` takes it.
    Duration,
}

/// What stands between the texts of a list whose texts have commas of their own.
pub const BETWEEN: char = ';';

/// A flag of a mesh's tool, with what sets the same elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct FlagDef {
    /// The name behind `--`.
    pub long: &'static str,
    /// The letter behind `-`; none where it has no short form.
    pub short: Option<char>,
    /// How its value is read, and what several of them mean.
    pub kind: Kind,
    /// The value when nobody sets it.
    pub default: &'static str,
    /// The variables that set it; a later one overrides an earlier one, the flag overrides all.
    pub env: &'static [&'static str],
    /// The key of the tool's configuration file that sets it, dotted.
    pub key: Option<&'static str>,
    /// One line for `--help`, without the default.
    pub help: &'static str,
    /// Whether it is Millrace's own and the mesh's tool doesn't have it.
    pub own: bool,
}

impl FlagDef {
    /// Both forms as the help has them: `-b/--istio-inbound-ports`, or the long one alone.
    pub fn display(&self) -> String {
        match self.short {
            Some(short) => format!("-{short}/--{}", self.long),
            None => format!("--{}", self.long),
        }
    }

    /// Where a value that was read back came from: nobody has to set what is the default.
    pub fn source(&self, value: &str) -> Source {
        match value {
            value if value == self.default => Source::Default(self.display()),
            _ => Source::Flag(self.display()),
        }
    }
}

/// A flag of the mesh's tool.
pub(super) const fn flag(
    long: &'static str,
    short: Option<char>,
    kind: Kind,
    default: &'static str,
    env: &'static [&'static str],
    help: &'static str,
) -> FlagDef {
    FlagDef { long, short, kind, default, env, key: None, help, own: false }
}

/// A flag of Millrace beside them.
pub(super) const fn own(
    long: &'static str,
    kind: Kind,
    default: &'static str,
    env: &'static [&'static str],
    help: &'static str,
) -> FlagDef {
    FlagDef { long, short: None, kind, default, env, key: None, help, own: true }
}

/// Everything that can be said to a tool.
pub trait Words {
    /// Every flag that the tool has, Millrace's own among them.
    const FLAGS: &'static [FlagDef];
    /// Variables without a flag: name, default, meaning.
    const VARIABLES: &'static [(&'static str, &'static str, &'static str)];

    /// The flag whose name behind `--` this is; none where the tool has no such flag.
    fn find(long: &str) -> Option<&'static FlagDef> {
        Self::FLAGS.iter().find(|flag| flag.long == long)
    }

    /// Whether anything is set by the variable of this name.
    fn is_variable(name: &str) -> bool {
        Self::FLAGS.iter().any(|flag| flag.env.contains(&name))
            || Self::VARIABLES.iter().any(|(variable, ..)| *variable == name)
    }
}

/// A table of flags, one of `"name" / 'letter' ["variable", "key"]: Kind = "default", "help";` each; `own`
/// in front marks Millrace's.
macro_rules! flags {
    (@short) => { None };
    (@short $short:literal) => { Some($short) };
    (@key) => { None };
    (@key $key:literal) => { Some($key) };
    (@own) => { false };
    (@own own) => { true };
    ($(
        $($own:ident)? $long:literal $(/ $short:literal)? $([$env:literal $(, $key:literal)?])?:
            $kind:ident = $default:literal, $help:literal;
    )*) => {
        &[$($crate::dialect::flags::FlagDef {
            long: $long,
            short: $crate::dialect::flags::flags!(@short $($short)?),
            kind: $crate::dialect::flags::Kind::$kind,
            default: $default,
            env: &[$($env)?],
            key: $crate::dialect::flags::flags!(@key $($($key)?)?),
            help: $help,
            own: $crate::dialect::flags::flags!(@own $($own)?),
        }),*]
    };
}
pub(super) use flags;
