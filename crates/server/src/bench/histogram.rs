//! Counts of durations in buckets whose width grows with the value, in the manner of HdrHistogram.
//!
//! Every power of two is cut into 64 buckets of equal width, so a percentile is at most 1.6 % too high, over the whole
//! range of 64 bits, in 30 KiB. Recording is an index and an addition: it happens once per message.

/// Buckets per power of two, as a power of two.
const SUB_BITS: u32 = 6;

/// One bucket for every value below 128, then 64 for each of the remaining powers of two.
const BUCKETS: usize = ((64 - SUB_BITS as usize) << SUB_BITS) + (1 << SUB_BITS);

/// Recorded values, in whatever unit the caller uses (nanoseconds in this crate).
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    count: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram {
            counts: vec![0; BUCKETS],
            count: 0,
            max: 0,
        }
    }
}

impl Histogram {
    /// Counts a value.
    #[inline]
    pub(crate) fn record(&mut self, value: u64) {
        self.counts[bucket_of(value)] += 1;
        self.count += 1;
        self.max = self.max.max(value);
    }

    /// Adds what another one counted.
    pub(crate) fn merge(&mut self, other: &Histogram) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    /// The largest value, exact.
    pub(crate) const fn max(&self) -> u64 {
        self.max
    }

    /// The value that `percent` of all values do not exceed, rounded up to the end of its bucket; 0 when empty.
    pub(crate) fn percentile(&self, percent: f64) -> u64 {
        let rank = (self.count as f64 * percent / 100.0).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return highest_in(index).min(self.max);
            }
        }
        self.max
    }
}

#[inline]
fn bucket_of(value: u64) -> usize {
    // Zero has no highest bit; it shares the exact buckets with the other small values.
    let shift = (63 - (value | 1).leading_zeros()).saturating_sub(SUB_BITS);
    ((shift as usize) << SUB_BITS) + (value >> shift) as usize
}

/// The largest value that falls into a bucket.
fn highest_in(index: usize) -> u64 {
    let shift = (index >> SUB_BITS).saturating_sub(1);
    let first = ((index - (shift << SUB_BITS)) as u64) << shift;
    first + ((1u64 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_falls_into_a_bucket_that_holds_it() {
        let mut values: Vec<u64> = (0..1_000).collect();
        values
            .extend((0..64).flat_map(|bit| [(1u64 << bit) - 1, 1 << bit, (1u64 << bit) + (1u64 << bit) / 3]));
        values.push(u64::MAX);
        for value in values {
            let index = bucket_of(value);
            assert!(index < BUCKETS, "{value}");
            let high = highest_in(index);
            assert!(high >= value, "{value} in a bucket up to {high}");
            assert!(high - value <= value / 64, "{value} in a bucket up to {high}");
            assert!(index == 0 || highest_in(index - 1) < value, "{value}");
        }
    }

    #[test]
    fn percentiles_of_a_known_set() {
        let mut histogram = Histogram::default();
        assert_eq!(
            (histogram.percentile(50.0), histogram.max(), histogram.count),
            (0, 0, 0)
        );
        for value in 1..=10_000u64 {
            histogram.record(value * 1_000);
        }
        for (percent, exact) in [(50.0, 5_000_000u64), (99.0, 9_900_000), (99.9, 9_990_000)] {
            let found = histogram.percentile(percent);
            assert!(
                found >= exact && found <= exact + exact / 50,
                "{percent}: {found}"
            );
        }
        assert_eq!(histogram.percentile(100.0), 10_000_000);
        assert_eq!(histogram.max(), 10_000_000);
    }

    #[test]
    fn merging_is_recording_into_one() {
        let (mut left, mut right, mut both) =
            (Histogram::default(), Histogram::default(), Histogram::default());
        for value in 0..5_000u64 {
            let value = value * value;
            if value % 3 == 0 { &mut left } else { &mut right }.record(value);
            both.record(value);
        }
        left.merge(&right);
        assert_eq!(left, both);
    }
}
