//! A smoothed round-trip time, in the manner of RFC 6298: its mean, its mean deviation, and what an answer may take.
//!
//! Unlike there, a sample beyond that bound begins anew: a path that became slower is believed at once, one that became quicker bit by bit. Who
//! waits too long loses time; who does not wait long enough takes a living path for dead.

use shift_proto::id::Micros;

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundTrip(Option<Estimate>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Estimate {
    mean_us: u64,
    deviation_us: u64,
}

impl Estimate {
    const fn first(sample_us: u64) -> Self {
        Self { mean_us: sample_us, deviation_us: sample_us / 2 }
    }

    const fn bound_us(self) -> u64 {
        self.mean_us.saturating_add(self.deviation_us.saturating_mul(4))
    }
}

impl RoundTrip {
    /// An answer came after that time.
    pub fn note(&mut self, sample: Micros) {
        self.0 = Some(match self.0 {
            Some(known) if sample.0 <= known.bound_us() => {
                let off_us = known.mean_us.abs_diff(sample.0);
                // Weights of a quarter and an eighth (RFC 6298, 2.3); in this order, for the deviation is from the mean before.
                let deviation_us = known.deviation_us - known.deviation_us / 4 + off_us / 4;
                Estimate { mean_us: known.mean_us - known.mean_us / 8 + sample.0 / 8, deviation_us }
            }
            _ => Estimate::first(sample.0),
        });
    }

    /// The mean; `None`: nothing was ever answered.
    pub fn mean(self) -> Option<Micros> {
        self.0.map(|known| Micros(known.mean_us))
    }

    /// What an answer may take: the mean and four deviations; 0 as long as nothing is known.
    pub fn bound(self) -> Micros {
        Micros(self.0.map_or(0, Estimate::bound_us))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(samples: impl IntoIterator<Item = u64>) -> RoundTrip {
        let mut round_trip = RoundTrip::default();
        samples.into_iter().for_each(|sample| round_trip.note(Micros(sample)));
        round_trip
    }

    #[test]
    fn the_first_sample_is_the_mean_and_half_of_it_the_deviation() {
        assert_eq!((after([]).mean(), after([]).bound()), (None, Micros(0)));
        assert_eq!((after([8000]).mean(), after([8000]).bound()), (Some(Micros(8000)), Micros(24_000)));
    }

    #[test]
    fn a_steady_path_gets_a_bound_close_to_its_mean() {
        let steady = after([1000; 60]);
        assert!(steady.mean().is_some_and(|mean| mean.0.abs_diff(1000) < 20), "{steady:?}");
        assert!(steady.bound().0 < 1100, "{steady:?}");
    }

    #[test]
    fn a_path_that_becomes_slower_is_believed_at_once_and_one_that_becomes_quicker_in_time() {
        let slower = after([1000; 20].into_iter().chain([200_000]));
        assert_eq!(slower.bound(), Micros(600_000));
        let quicker = after([200_000].into_iter().chain([1000; 8]));
        assert!(quicker.bound().0 > 200_000, "{quicker:?}");
        let in_time = after([200_000].into_iter().chain([1000; 80]));
        assert!(in_time.bound().0 < 10_000, "{in_time:?}");
    }

    #[test]
    fn no_sample_overflows() {
        assert_eq!(after([u64::MAX, u64::MAX]).mean(), Some(Micros(u64::MAX)));
    }
}
