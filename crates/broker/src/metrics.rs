//! The edge hub's metrics, by the names of edge.md 19, as Prometheus text.
//!
//! Labels hold ids of clients, of which an edge hub has few; a family with more than [`SERIES_MAX`] series counts the rest
//! under `other`.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use parking_lot::Mutex;

/// Most series of one family.
pub const SERIES_MAX: usize = 2_048;

const QUANTILES: [f64; 4] = [0.1, 0.5, 0.9, 0.99];
/// Buckets of a summary, four to each doubling, from a millionth to 2^34 of it and beyond.
const BUCKETS: usize = 160;
const SMALLEST: f64 = 1e-6;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Summary,
}

macro_rules! families {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $kind:ident, [$($label:literal),*];)*) => {
        /// A metric of the edge hub.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[allow(missing_docs, reason = "the name is the documentation: edge.md 19")]
        pub enum Family { $($name),* }

        impl Family {
            const ALL: &'static [(Family, &'static str, Kind, &'static [&'static str])] =
                &[$((Family::$name, $text, Kind::$kind, &[$($label),*])),*];
        }
    };
}

families! {
    GetTwin = "gettwin_total", Counter, ["source", "id"];
    MessagesReceived = "messages_received_total", Counter, ["route_output", "id"];
    MessagesSent = "messages_sent_total", Counter, ["from", "to", "from_route_output", "to_route_input", "priority"];
    ReportedProperties = "reported_properties_total", Counter, ["target", "id"];
    MessageSize = "message_size_bytes", Summary, ["id"];
    GetTwinDuration = "gettwin_duration_seconds", Summary, ["source", "id"];
    SendDuration = "message_send_duration_seconds", Summary, ["from", "to", "from_route_output", "to_route_input"];
    ProcessDuration = "message_process_duration_seconds", Summary, ["from", "to", "priority"];
    ReportedDuration = "reported_properties_update_duration_seconds", Summary, ["target", "id"];
    MethodDuration = "direct_method_duration_seconds", Summary, ["from", "to"];
    Methods = "direct_methods_total", Counter, ["from", "to"];
    QueueLength = "queue_length", Gauge, ["endpoint", "priority"];
    QueueAge = "queue_oldest_seconds", Gauge, ["endpoint", "priority"];
    QueueBytes = "queue_bytes", Gauge, ["endpoint", "priority"];
    DiskBytes = "store_bytes", Gauge, [];
    DiskBytesMax = "store_bytes_max", Gauge, [];
    DiskStalled = "store_stalled", Gauge, [];
    SegmentsSetAside = "store_segments_set_aside_total", Counter, [];
    MessagesDropped = "messages_dropped_total", Counter, ["reason", "from", "from_route_output"];
    MessagesUnacknowledged = "messages_unack_total", Counter, ["reason", "from", "from_route_output"];
    OfflineCount = "offline_count_total", Counter, ["id"];
    OfflineDuration = "offline_duration_seconds", Summary, ["id"];
    OperationRetry = "operation_retry_total", Counter, ["id", "operation"];
    ConnectFailed = "client_connect_failed_total", Counter, ["id", "reason"];
    ConnectSuccess = "client_connect_success_total", Counter, ["id"];
    Disconnect = "client_disconnect_total", Counter, ["id"];
    ConnectedClients = "connected_clients", Gauge, [];
}

#[derive(Clone)]
enum Value {
    Number(f64),
    Summary(Box<Summary>),
}

#[derive(Clone)]
struct Summary {
    buckets: [u32; BUCKETS],
    count: u64,
    sum: f64,
}

struct Series {
    labels: Box<[Box<str>]>,
    value: Value,
}

/// All series of one edge hub.
#[derive(Default)]
pub struct Metrics {
    series: Mutex<HashMap<Family, HashMap<u64, Series>>>,
}

impl Metrics {
    /// Counts `n` more.
    pub fn count(&self, family: Family, labels: &[&str], n: u64) {
        if n > 0 {
            self.change(family, labels, |value| {
                if let Value::Number(number) = value {
                    *number += n as f64;
                }
            });
        }
    }

    /// Sets a gauge.
    pub fn set(&self, family: Family, labels: &[&str], to: f64) {
        self.change(family, labels, |value| *value = Value::Number(to));
    }

    /// Adds an observation to a summary.
    pub fn observe(&self, family: Family, labels: &[&str], value: f64) {
        self.observe_many(family, labels, value, 1);
    }

    /// Adds the same observation several times.
    pub fn observe_many(&self, family: Family, labels: &[&str], observed: f64, times: u32) {
        self.change(family, labels, |value| {
            if let Value::Summary(summary) = value {
                summary.add(observed, times);
            }
        });
    }

    /// Adds a duration to a summary.
    pub fn observe_duration(&self, family: Family, labels: &[&str], duration: Duration) {
        self.observe(family, labels, duration.as_secs_f64());
    }

    /// The sum of a counter over all series whose first label is `first`, or of all.
    #[must_use]
    pub fn total(&self, family: Family, first: Option<&str>) -> f64 {
        let all = self.series.lock();
        let fits = |series: &&Series| {
            first.is_none_or(|first| series.labels.first().is_some_and(|label| **label == *first))
        };
        all.get(&family).map_or(0.0, |known| {
            known
                .values()
                .filter(fits)
                .map(|series| match &series.value {
                    Value::Number(number) => *number,
                    Value::Summary(summary) => summary.count as f64,
                })
                .sum()
        })
    }

    /// Forgets the series of a gauge that is set anew before each rendering.
    pub(crate) fn clear(&self, family: Family) {
        self.series.lock().remove(&family);
    }

    fn change(&self, family: Family, labels: &[&str], change: impl FnOnce(&mut Value)) {
        let mut all = self.series.lock();
        let known = all.entry(family).or_default();
        let mut hash = hash_of(labels);
        if known.len() >= SERIES_MAX && !known.contains_key(&hash) {
            let other: Vec<&str> = labels.iter().map(|_| "other").collect();
            hash = hash_of(&other);
            change(&mut series(known, hash, family, &other).value);
            return;
        }
        change(&mut series(known, hash, family, labels).value);
    }

    /// Prometheus text; `common` labels stand on every series.
    #[must_use]
    pub fn render(&self, common: &[(&str, &str)]) -> String {
        let all = self.series.lock();
        let mut out = String::new();
        for (family, name, kind, names) in Family::ALL {
            let Some(known) = all.get(family) else { continue };
            let word = match kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Summary => "summary",
            };
            let _ = writeln!(out, "# TYPE edgehub_{name} {word}");
            let mut sorted: Vec<&Series> = known.values().collect();
            sorted.sort_by(|left, right| left.labels.cmp(&right.labels));
            for series in sorted {
                let own = names
                    .iter()
                    .copied()
                    .zip(series.labels.iter().map(|value| &**value));
                let labels = text_of(common.iter().copied().chain(own));
                write_series(&mut out, name, &labels, &series.value);
            }
        }
        out
    }
}

fn hash_of(labels: &[&str]) -> u64 {
    let mut hasher = DefaultHasher::new();
    labels.hash(&mut hasher);
    hasher.finish()
}

fn series<'a>(
    known: &'a mut HashMap<u64, Series>,
    hash: u64,
    family: Family,
    labels: &[&str],
) -> &'a mut Series {
    known.entry(hash).or_insert_with(|| {
        let kind = Family::ALL.iter().find(|row| row.0 == family).map(|row| row.2);
        Series {
            labels: labels.iter().map(|label| (*label).into()).collect(),
            value: match kind {
                Some(Kind::Summary) => Value::Summary(Box::new(Summary {
                    buckets: [0; BUCKETS],
                    count: 0,
                    sum: 0.0,
                })),
                _ => Value::Number(0.0),
            },
        }
    })
}

fn text_of<'a>(labels: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut out = String::new();
    for (name, value) in labels {
        let comma = if out.is_empty() { "" } else { "," };
        let value = value
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n");
        let _ = write!(out, "{comma}{name}=\"{value}\"");
    }
    out
}

fn write_series(out: &mut String, name: &str, labels: &str, value: &Value) {
    match value {
        Value::Number(number) => {
            let _ = writeln!(out, "edgehub_{name}{{{labels}}} {number}");
        }
        Value::Summary(summary) => {
            let comma = if labels.is_empty() { "" } else { "," };
            for quantile in QUANTILES {
                let at = summary.quantile(quantile);
                let _ = writeln!(
                    out,
                    "edgehub_{name}{{{labels}{comma}quantile=\"{quantile}\"}} {at}"
                );
            }
            let _ = writeln!(out, "edgehub_{name}_sum{{{labels}}} {}", summary.sum);
            let _ = writeln!(out, "edgehub_{name}_count{{{labels}}} {}", summary.count);
        }
    }
}

impl Summary {
    fn add(&mut self, value: f64, times: u32) {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped before"
        )]
        let bucket = ((value / SMALLEST).max(1.0).log2() * 4.0).min((BUCKETS - 1) as f64) as usize;
        self.buckets[bucket] = self.buckets[bucket].saturating_add(times);
        self.count += u64::from(times);
        self.sum += value * f64::from(times);
    }

    /// Upper end of the bucket that holds the quantile; NaN without observations.
    fn quantile(&self, quantile: f64) -> f64 {
        let total: u64 = self.buckets.iter().map(|count| u64::from(*count)).sum();
        if total == 0 {
            return f64::NAN;
        }
        let wanted = quantile * total as f64;
        let mut seen = 0.0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += f64::from(*count);
            if seen >= wanted {
                return SMALLEST * ((bucket + 1) as f64 / 4.0).exp2();
            }
        }
        f64::INFINITY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_names_labels_and_quantiles() {
        let metrics = Metrics::default();
        metrics.count(Family::MessagesDropped, &["no_route", "e/m", "o\"ut"], 3);
        metrics.set(Family::ConnectedClients, &[], 2.0);
        for milli in 1..=100 {
            metrics.observe(
                Family::GetTwinDuration,
                &["upstream", "e/m"],
                f64::from(milli) / 1e3,
            );
        }
        let text = metrics.render(&[("iothub", "hub.test")]);
        assert!(text.contains(
            "edgehub_messages_dropped_total{iothub=\"hub.test\",reason=\"no_route\",from=\"e/m\",from_route_output=\"o\\\"ut\"} 3\n"
        ), "{text}");
        assert!(text.contains(
            "# TYPE edgehub_connected_clients gauge\nedgehub_connected_clients{iothub=\"hub.test\"} 2\n"
        ));
        let median = text
            .lines()
            .find(|line| line.contains("quantile=\"0.5\""))
            .and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .unwrap();
        assert!((0.049..0.065).contains(&median), "{median}");
        assert!(text.contains(
            "edgehub_gettwin_duration_seconds_count{iothub=\"hub.test\",source=\"upstream\",id=\"e/m\"} 100\n"
        ));
    }

    #[test]
    fn the_number_of_series_is_bounded() {
        let metrics = Metrics::default();
        for number in 0..3 * SERIES_MAX {
            metrics.count(Family::ConnectSuccess, &[&number.to_string()], 1);
        }
        assert!(metrics.render(&[]).lines().count() <= SERIES_MAX + 2);
        assert_eq!(
            metrics.total(Family::ConnectSuccess, None),
            3.0 * SERIES_MAX as f64
        );
    }
}
