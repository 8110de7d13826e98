//! Medians and other quantiles of samples.

use std::time::Duration;

use serde_json::{Value, json};

use super::measure::Sample;

/// The middle and the upper end of a set of durations.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Spread {
    /// Half of the samples are not above it.
    pub median: Duration,
    /// Nine tenths of the samples are not above it.
    pub p90: Duration,
}

impl Spread {
    /// Of at least one duration.
    pub fn of(mut durations: Vec<Duration>) -> Option<Self> {
        durations.sort_unstable();
        Some(Self { median: quantile(&durations, 50)?, p90: quantile(&durations, 90)? })
    }

    /// In milliseconds.
    pub fn to_json(self) -> Value {
        json!({ "median": millis(self.median), "p90": millis(self.p90) })
    }
}

/// Wall and CPU time of a set of samples.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Cost {
    /// Wall time.
    pub wall: Spread,
    /// CPU time.
    pub cpu: Spread,
}

impl Cost {
    /// Of at least one sample.
    pub fn of(samples: &[Sample]) -> Option<Self> {
        let wall = samples.iter().map(|sample| sample.wall).collect();
        let cpu = samples.iter().map(|sample| sample.cpu).collect();
        Some(Self { wall: Spread::of(wall)?, cpu: Spread::of(cpu)? })
    }
}

/// A duration in milliseconds.
pub fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The smallest element that at least `percent` of the sorted elements are not above; for an even
/// number of elements the median is the mean of the two in the middle.
pub fn quantile(sorted: &[Duration], percent: usize) -> Option<Duration> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    let at = *sorted.get(rank - 1)?;
    let exact = (sorted.len() * percent).is_multiple_of(100);
    match sorted.get(rank) {
        Some(next) if percent == 50 && exact => Some((at + *next) / 2),
        _ => Some(at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_spread(millis: impl IntoIterator<Item = u64>) -> Option<(u128, u128)> {
        let spread = Spread::of(millis.into_iter().map(Duration::from_millis).collect())?;
        Some((spread.median.as_micros(), spread.p90.as_micros()))
    }

    #[test]
    fn quantiles() {
        assert_eq!(mk_spread([]), None);
        assert_eq!(mk_spread([7]), Some((7000, 7000)));
        assert_eq!(mk_spread([9, 1, 5]), Some((5000, 9000)));
        assert_eq!(mk_spread([4, 1, 2, 3]), Some((2500, 4000)));
        assert_eq!(mk_spread(1..=30), Some((15500, 27000)));
    }
}
