//! Counters, gauges and histograms, and the registry that renders them for `/metrics`.
//!
//! Names follow `holdfast_<noun>_<unit>_total` for counters and `holdfast_<noun>_<unit>` for gauges and
//! histograms; a name that does not is refused at start. Two counters (started, ended) are better than a gauge
//! that jumps between scrapes. Labels are enums ([`Label`]): the number of series is fixed when compiling, so
//! a device id can never become a label.
//!
//! The handles are cheap to clone and share one value. Counting is one relaxed atomic addition.

mod histogram;

use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

pub use histogram::{Histogram, LATENCY_SECONDS, SIZE_BYTES};

/// The `Content-Type` of [`Registry::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A number that only goes up.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The present value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down, such as bytes held by a queue.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<AtomicI64>);

impl Gauge {
    /// Sets the value.
    pub fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Adds `n`, which may be negative.
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Takes one away.
    pub fn dec(&self) {
        self.add(-1);
    }

    /// The present value.
    #[must_use]
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A metric label whose values are known when compiling.
pub trait Label: Copy + 'static {
    /// The label's name, for example `reason`.
    const NAME: &'static str;
    /// All values, in the order of [`Label::index`].
    const VALUES: &'static [&'static str];
    /// The place of this value in [`Label::VALUES`].
    fn index(self) -> usize;
}

/// One [`Counter`] per value of a [`Label`].
pub struct CounterBy<L: Label> {
    counters: Arc<[Counter]>,
    label: PhantomData<fn(L)>,
}

impl<L: Label> CounterBy<L> {
    fn new() -> Self {
        Self {
            counters: L::VALUES.iter().map(|_| Counter::default()).collect(),
            label: PhantomData,
        }
    }

    /// The counter of one label value.
    #[must_use]
    pub fn of(&self, label: L) -> &Counter {
        &self.counters[label.index()]
    }
}

impl<L: Label> Clone for CounterBy<L> {
    fn clone(&self) -> Self {
        Self {
            counters: Arc::clone(&self.counters),
            label: PhantomData,
        }
    }
}

impl<L: Label> fmt::Debug for CounterBy<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(L::VALUES.iter().zip(self.counters.iter().map(Counter::get)))
            .finish()
    }
}

/// The metrics of one process. The composition root makes it, hands it to each crate's `Metrics::register`,
/// then shares it with the `/metrics` handler.
#[derive(Debug, Default)]
pub struct Registry {
    inner: prometheus_client::registry::Registry,
    names: BTreeSet<String>,
}

impl Registry {
    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a counter; `name` ends in `_total`.
    ///
    /// # Panics
    /// When the name breaks the pattern or is taken: a mistake of the programmer, seen at first start.
    pub fn counter(&mut self, name: &'static str, help: &'static str) -> Counter {
        let counter = Counter::default();
        let name = self.claim(name, true);
        self.inner.register(name, help, counter.clone());
        counter
    }

    /// Registers one counter per value of the label `L`; `name` ends in `_total`.
    ///
    /// # Panics
    /// As [`Registry::counter`].
    pub fn counter_by<L: Label>(&mut self, name: &'static str, help: &'static str) -> CounterBy<L> {
        let family = CounterBy::<L>::new();
        let name = self.claim(name, true);
        self.inner.register(name, help, family.clone());
        family
    }

    /// Registers a gauge.
    ///
    /// # Panics
    /// As [`Registry::counter`], except that the name does not end in `_total`.
    pub fn gauge(&mut self, name: &'static str, help: &'static str) -> Gauge {
        let gauge = Gauge::default();
        let name = self.claim(name, false);
        self.inner.register(name, help, gauge.clone());
        gauge
    }

    /// Registers a gauge whose value is asked for at each scrape. `read` must not block.
    ///
    /// # Panics
    /// As [`Registry::gauge`].
    pub fn gauge_fn(
        &mut self,
        name: &'static str,
        help: &'static str,
        read: impl Fn() -> i64 + Send + Sync + 'static,
    ) {
        let name = self.claim(name, false).to_owned();
        self.inner.register_collector(Box::new(GaugeFn {
            name,
            help,
            read: Box::new(read),
        }));
    }

    /// Registers gauges that are asked for at each scrape, one per name that `read` returns, under the label `label`.
    /// Names are an operator's, such as those of endpoints, never a device's: of more than [`NAMES_MAX`] the others are
    /// left out. They are escaped. `read` must not block.
    ///
    /// # Panics
    /// As [`Registry::gauge`].
    pub fn gauges_by_name(
        &mut self,
        name: &'static str,
        help: &'static str,
        label: &'static str,
        read: impl Fn() -> Vec<(String, u64)> + Send + Sync + 'static,
    ) {
        self.by_name(name, help, label, MetricType::Gauge, Box::new(read));
    }

    /// As [`Registry::gauges_by_name`] for counters; `name` ends in `_total`.
    ///
    /// # Panics
    /// As [`Registry::counter`].
    pub fn counters_by_name(
        &mut self,
        name: &'static str,
        help: &'static str,
        label: &'static str,
        read: impl Fn() -> Vec<(String, u64)> + Send + Sync + 'static,
    ) {
        self.by_name(name, help, label, MetricType::Counter, Box::new(read));
    }

    fn by_name(
        &mut self,
        name: &'static str,
        help: &'static str,
        label: &'static str,
        kind: MetricType,
        read: ReadNamed,
    ) {
        let name = self.claim(name, matches!(kind, MetricType::Counter)).to_owned();
        self.inner.register_collector(Box::new(ByName {
            name,
            help,
            label,
            kind,
            read,
        }));
    }

    /// Registers a histogram with the upper bounds of its buckets, ascending; the last bucket, without bound,
    /// is added. See [`LATENCY_SECONDS`] and [`SIZE_BYTES`].
    ///
    /// # Panics
    /// As [`Registry::gauge`].
    pub fn histogram(&mut self, name: &'static str, help: &'static str, bounds: &[f64]) -> Histogram {
        let histogram = Histogram::new(bounds);
        let name = self.claim(name, false);
        self.inner.register(name, help, histogram.clone());
        histogram
    }

    /// Registers memory, open files and CPU time of this process under the names that Prometheus has for them.
    pub fn process_metrics(&mut self) {
        self.inner.register_collector(Box::new(ProcessCollector));
    }

    /// All metrics as text for `/metrics`, of type [`CONTENT_TYPE`].
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::with_capacity(16 * 1024);
        // Writing to a string does not fail; a collector that fails ends the text early, without its end mark.
        if let Err(error) = prometheus_client::encoding::text::encode(&mut text, &self.inner) {
            tracing::warn!(%error, "cannot render metrics");
        }
        text
    }

    /// Checks the name, notes it and returns it as the encoder wants it (which adds `_total` itself).
    fn claim(&mut self, name: &'static str, counter: bool) -> &'static str {
        assert!(
            name.starts_with("holdfast_")
                && name
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
            "metric name {name:?} is not of the form holdfast_<noun>_<unit>"
        );
        assert!(
            name.ends_with("_total") == counter,
            "only, and every, counter ends in _total: {name:?}"
        );
        assert!(
            self.names.insert(name.to_owned()),
            "metric {name:?} is registered twice"
        );
        name.trim_end_matches("_total")
    }
}

impl EncodeMetric for Counter {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        ConstCounter::new(self.get()).encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

impl<L: Label> EncodeMetric for CounterBy<L> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (value, counter) in L::VALUES.iter().zip(self.counters.iter()) {
            let labels = [(L::NAME, *value)];
            counter.encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

impl EncodeMetric for Gauge {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        ConstGauge::new(self.get()).encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

struct GaugeFn {
    name: String,
    help: &'static str,
    read: Box<dyn Fn() -> i64 + Send + Sync>,
}

impl fmt::Debug for GaugeFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GaugeFn")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Collector for GaugeFn {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let gauge = ConstGauge::new((self.read)());
        // The registry adds the full stop to the help of its own metrics, but not for a collector.
        let help = format!("{}.", self.help);
        gauge.encode(encoder.encode_descriptor(&self.name, &help, None, gauge.metric_type())?)
    }
}

/// Most series of a metric whose names are an operator's.
pub const NAMES_MAX: usize = 64;

type ReadNamed = Box<dyn Fn() -> Vec<(String, u64)> + Send + Sync>;

struct ByName {
    name: String,
    help: &'static str,
    label: &'static str,
    kind: MetricType,
    read: ReadNamed,
}

impl fmt::Debug for ByName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByName")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Collector for ByName {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = format!("{}.", self.help);
        let mut family = encoder.encode_descriptor(&self.name, &help, None, self.kind)?;
        for (name, value) in (self.read)().into_iter().take(NAMES_MAX) {
            // The encoder escapes quotes, backslashes and line ends of label values.
            let labels = [(self.label, name.as_str())];
            let series = family.encode_family(&labels)?;
            if matches!(self.kind, MetricType::Counter) {
                ConstCounter::new(value).encode(series)?;
            } else {
                ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(series)?;
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
struct ProcessCollector;

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // A process without /proc shows no process metrics rather than wrong ones.
        let Ok(usage) = crate::process::own_usage() else {
            return Ok(());
        };
        let mut gauge = |name: &str, help: &str, value: u64| {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        gauge(
            "process_resident_memory_bytes",
            "Resident memory.",
            usage.rss_bytes,
        )?;
        gauge("process_open_fds", "Open file descriptors.", usage.open_fds)?;
        gauge("process_threads", "Threads.", usage.threads)?;
        let cpu = ConstCounter::new(usage.cpu_seconds());
        cpu.encode(encoder.encode_descriptor("process_cpu_seconds", "CPU time.", None, cpu.metric_type())?)
    }
}

#[cfg(test)]
mod tests;
