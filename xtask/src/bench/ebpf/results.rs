//! Figures, by what captured and how much was excluded: one for each round.

use std::collections::BTreeMap;

use super::by::{By, Way};

/// What a figure says.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Figure {
    /// The median of `connect()` in a round, in microseconds.
    Median(Way),
    /// Its 99th percentile, in microseconds.
    Slowest(Way),
    /// Connections in a second.
    Connections(Way),
    /// Processor time of one, in microseconds.
    ConnectionCpu(Way),
    /// Requests in a second on one connection, through the proxy.
    Requests,
    /// Processor time of one, in microseconds.
    RequestCpu,
    /// Requests in a second, each on a connection of its own.
    Calls,
    /// Processor time of one, in microseconds.
    CallCpu,
    /// MiB in a second on one connection, through the proxy.
    Throughput,
    /// Processor time of one MiB, in microseconds.
    MegabyteCpu,
    /// Capturing the only pod of a node, in microseconds: one figure for each time.
    OnePod,
    /// Capturing one of many pods, in microseconds: one figure for each pod.
    EachPod,
}

impl Figure {
    /// The name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Median(Way::Out) => "outbound_p50_us",
            Self::Median(Way::In) => "inbound_p50_us",
            Self::Slowest(Way::Out) => "outbound_p99_us",
            Self::Slowest(Way::In) => "inbound_p99_us",
            Self::Connections(Way::Out) => "outbound_connections_per_second",
            Self::Connections(Way::In) => "inbound_connections_per_second",
            Self::ConnectionCpu(Way::Out) => "outbound_cpu_us",
            Self::ConnectionCpu(Way::In) => "inbound_cpu_us",
            Self::Requests => "requests_per_second",
            Self::RequestCpu => "request_cpu_us",
            Self::Calls => "requests_with_a_connection_each_per_second",
            Self::CallCpu => "request_with_a_connection_cpu_us",
            Self::Throughput => "mebibytes_per_second",
            Self::MegabyteCpu => "mebibyte_cpu_us",
            Self::OnePod => "one_pod_us",
            Self::EachPod => "each_pod_us",
        }
    }
}

/// All figures.
#[derive(Clone, Debug, Default)]
pub struct Results(BTreeMap<(Figure, By, u32), Vec<f64>>);

impl Results {
    /// Add a round's figure.
    pub fn add(&mut self, figure: Figure, by: By, exclusions: u32, value: f64) {
        self.0.entry((figure, by, exclusions)).or_default().push(value);
    }

    fn rounds(&self, figure: Figure, by: By, exclusions: u32) -> &[f64] {
        self.0.get(&(figure, by, exclusions)).map_or(&[], Vec::as_slice)
    }

    /// The median of the rounds.
    pub fn median(&self, figure: Figure, by: By, exclusions: u32) -> Option<f64> {
        at(self.rounds(figure, by, exclusions).to_vec(), 0.5)
    }

    /// A quantile of all figures.
    pub fn quantile(&self, figure: Figure, by: By, exclusions: u32, part: f64) -> Option<f64> {
        at(self.rounds(figure, by, exclusions).to_vec(), part)
    }

    /// The median of what a round's figure is beside another one's of the same round: what
    /// disturbs a whole round disturbs both.
    pub fn beside(
        &self,
        figure: Figure,
        one: (By, u32),
        other: (By, u32),
        compare: fn(f64, f64) -> f64,
    ) -> Option<f64> {
        let (one, other) =
            (self.rounds(figure, one.0, one.1), self.rounds(figure, other.0, other.1));
        at(one.iter().zip(other).map(|(one, other)| compare(*one, *other)).collect(), 0.5)
    }

    /// The numbers of exclusions that a figure is known for.
    pub fn exclusions(&self, figure: Figure, by: By) -> Vec<u32> {
        let of = self.0.keys().filter(|(f, b, _)| (*f, *b) == (figure, by));
        of.map(|(_, _, exclusions)| *exclusions).collect()
    }

    /// Everything, as medians.
    pub fn medians(&self) -> impl Iterator<Item = (Figure, By, u32, f64)> {
        let all = self.0.iter().map(|(key, values)| (key, at(values.clone(), 0.5)));
        all.filter_map(|(&(figure, by, exclusions), median)| {
            Some((figure, by, exclusions, median?))
        })
    }
}

/// The value that this part of the values is not above.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a place in a short list"
)]
fn at(mut values: Vec<f64>, part: f64) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let place = (values.len() as f64 * part).ceil() as usize;
    values.get(place.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_compared_with_the_same_round() {
        let mut results = Results::default();
        let figure = Figure::Median(Way::Out);
        for (nothing, ebpf) in [(10.0, 11.0), (30.0, 31.5), (20.0, 21.2)] {
            results.add(figure, By::Nothing, 0, nothing);
            results.add(figure, By::Ebpf, 0, ebpf);
        }
        assert_eq!(results.median(figure, By::Nothing, 0), Some(20.0));
        let over = results.beside(figure, (By::Ebpf, 0), (By::Nothing, 0), |a, b| a - b).unwrap();
        assert!((over - 1.2).abs() < 1e-9, "{over}");
        assert_eq!(results.median(figure, By::Iptables, 0), None);
        assert_eq!(results.quantile(figure, By::Nothing, 0, 0.99), Some(30.0));
        assert_eq!(results.exclusions(figure, By::Ebpf), [0]);
    }
}
