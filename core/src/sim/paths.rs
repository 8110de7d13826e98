//! Routes with several paths, over which the kernel spreads connections: which of them one takes can't be
//! told, so each is walked, and what all of them come to is the answer.

use super::fate::{Fate, Outcome};
use super::partition::unclear;
use super::walk::Answer;
use super::way::MULTIPATH;

/// So often a connection is routed by several paths, and so many ways are walked, before it can't be told
/// any more.
const MOST_FORKS: usize = 4;
const MOST_WAYS: usize = 256;

/// Which path is taken, one lookup after the other: the kernel chooses anew for each, since the addresses
/// that it hashes may be others (`fib_multipath_hash()` in `net/ipv4/route.c`).
#[derive(Clone, Copy, Debug)]
pub(super) struct Paths {
    chosen: [usize; MOST_FORKS],
    /// How many there were to choose from.
    of: [usize; MOST_FORKS],
    taken: usize,
}

impl Paths {
    /// The first one of each.
    pub(super) const FIRST: Self = Self { chosen: [0; MOST_FORKS], of: [0; MOST_FORKS], taken: 0 };

    /// The next one, of so many; none where that was too often.
    pub(super) fn next(&mut self, of: usize) -> Option<usize> {
        let chosen = self.chosen.get(self.taken)?;
        self.of[self.taken] = of;
        self.taken += 1;
        Some(*chosen % of.max(1))
    }

    /// The way that is walked after this one; none when each was.
    fn after(self) -> Option<Self> {
        let last = (0..self.taken).rfind(|at| self.chosen[*at] + 1 < self.of[*at])?;
        let mut chosen = [0; MOST_FORKS];
        chosen[..last].copy_from_slice(&self.chosen[..last]);
        chosen[last] = self.chosen[last] + 1;
        Some(Self { chosen, ..Self::FIRST })
    }
}

/// Walk each way once, as `walk` does from the paths that it is given to those that it has taken; fewer if
/// one is not to be gone on from. None where there are too many.
pub(super) fn each<T>(mut walk: impl FnMut(Paths) -> (T, Option<Paths>)) -> Option<Vec<T>> {
    let mut found = Vec::new();
    let mut next = Some(Paths::FIRST);
    while let Some(paths) = next {
        if found.len() == MOST_WAYS {
            return None;
        }
        let (one, taken) = walk(paths);
        found.push(one);
        next = taken.and_then(Paths::after);
    }
    Some(found)
}

/// What is true of each way: the same end, or one that differs by the interface alone.
pub(super) fn joined<'a, I: IntoIterator<Item = &'a Answer>>(ways: I) -> Answer {
    let mut ways = ways.into_iter();
    let Some(first) = ways.next() else { return unclear(MULTIPATH) };
    let mut all = first.clone();
    for way in ways {
        if way.decided != all.decided || way.effects != all.effects {
            return unclear(MULTIPATH);
        }
        match (&mut all.outcome, &way.outcome) {
            (one, other) if one == other => {}
            (
                Outcome::Passed { interface, masked },
                Outcome::Passed { interface: other, masked: also },
            ) if masked == also => add(interface, other),
            _ => return unclear(MULTIPATH),
        }
        if let (Fate::Passed { interface, .. }, Fate::Passed { interface: other, .. }) =
            (&mut all.fate, &way.fate)
        {
            add(interface, other);
        }
        if way.fate.source() != all.fate.source() {
            all.fate.forget_source();
        }
    }
    all
}

/// What stands between the names of interfaces of which one is taken: no name has a space in it.
const OR: &str = " or ";

fn add(names: &mut String, name: &str) {
    if !names.split(OR).any(|known| known == name) {
        names.push_str(OR);
        names.push_str(name);
    }
}
