//! Addresses that random rules name.

use crate::topology::Family;

/// Networks that rules ask for.
pub(super) fn networks(family: Family) -> &'static [&'static str] {
    match family {
        Family::V4 => &[
            "10.70.0.0/24",
            "10.71.0.0/16",
            "10.72.0.10/32",
            "10.80.0.0/24",
            "10.70.0.2/32",
            "127.0.0.0/8",
            "127.0.0.1/32",
            "10.64.0.0/10",
            "0.0.0.0/1",
        ],
        Family::V6 => &[
            "fd70::/64",
            "fd71::/16",
            "fd72::10/128",
            "fd80::/64",
            "fd70::2/128",
            "::1/128",
            "fd00::/8",
            "::/1",
        ],
    }
}

/// Where translation can lead to.
pub(super) fn targets(family: Family) -> &'static [&'static str] {
    match family {
        Family::V4 => {
            &["10.70.0.2", "10.80.0.2", "127.0.0.1", "10.71.0.10", "10.72.0.10", "10.80.0.1"]
        }
        Family::V6 => &["fd70::2", "fd80::2", "::1", "fd71::10", "fd72::10", "fd80::1"],
    }
}

/// Sources that the neighbours can answer to.
pub(super) fn sources(family: Family) -> &'static [&'static str] {
    match family {
        Family::V4 => &["10.70.0.2", "10.80.0.2", "10.77.0.9"],
        Family::V6 => &["fd70::2", "fd80::2", "fd77::9"],
    }
}
