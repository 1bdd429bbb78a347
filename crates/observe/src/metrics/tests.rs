use std::time::Duration;

use super::*;

#[derive(Clone, Copy)]
enum Reason {
    BadToken,
    Disabled,
}

impl Label for Reason {
    const NAME: &'static str = "reason";
    const VALUES: &'static [&'static str] = &["bad_token", "disabled"];
    fn index(self) -> usize {
        self as usize
    }
}

fn lines(registry: &Registry) -> Vec<String> {
    registry.render().lines().map(str::to_owned).collect()
}

#[track_caller]
fn check(registry: &Registry, expected: &[&str]) {
    let lines = lines(registry);
    for line in expected {
        assert!(
            lines.iter().any(|l| l == line),
            "no line {line:?} in\n{}",
            lines.join("\n")
        );
    }
}

#[test]
fn renders_every_kind() {
    let mut registry = Registry::new();
    let counter = registry.counter("holdfast_messages_total", "Messages accepted");
    let gauge = registry.gauge("holdfast_queue_bytes", "Bytes queued");
    let by = registry.counter_by::<Reason>("holdfast_refusals_total", "Log-ins refused");
    let histogram = registry.histogram("holdfast_commit_seconds", "Time of a commit", &[0.001, 0.01]);
    registry.gauge_fn("holdfast_sessions", "Sessions", || 7);

    counter.inc();
    counter.clone().add(4);
    gauge.set(10);
    gauge.inc();
    gauge.add(-3);
    by.of(Reason::Disabled).add(2);
    histogram.observe_duration(Duration::from_millis(1));
    histogram.observe(0.5);
    histogram.observe(0.005);

    check(
        &registry,
        &[
            "# TYPE holdfast_messages counter",
            "# HELP holdfast_messages Messages accepted.",
            "holdfast_messages_total 5",
            "holdfast_queue_bytes 8",
            "holdfast_refusals_total{reason=\"bad_token\"} 0",
            "holdfast_refusals_total{reason=\"disabled\"} 2",
            "holdfast_commit_seconds_bucket{le=\"0.001\"} 1",
            "holdfast_commit_seconds_bucket{le=\"0.01\"} 2",
            "holdfast_commit_seconds_bucket{le=\"+Inf\"} 3",
            "holdfast_commit_seconds_count 3",
            "# HELP holdfast_sessions Sessions.",
            "holdfast_sessions 7",
            "# EOF",
        ],
    );
    assert_eq!(by.of(Reason::BadToken).get(), 0);
    assert!((histogram.sum() - 0.506).abs() < 1e-9);
}

#[test]
fn shows_the_process() {
    let mut registry = Registry::new();
    registry.process_metrics();
    let text = registry.render();
    for name in [
        "process_resident_memory_bytes ",
        "process_open_fds ",
        "process_cpu_seconds_total ",
    ] {
        assert!(text.contains(name), "no {name} in\n{text}");
    }
}

#[test]
fn counts_from_many_threads() {
    let mut registry = Registry::new();
    let counter = registry.counter("holdfast_x_total", "x");
    let histogram = registry.histogram("holdfast_x_seconds", "x", LATENCY_SECONDS);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..1000 {
                    counter.inc();
                    histogram.observe(1.0);
                }
            });
        }
    });
    assert_eq!(counter.get(), 4000);
    assert_eq!(histogram.count(), 4000);
    assert!((histogram.sum() - 4000.0).abs() < f64::EPSILON);
}

#[test]
#[should_panic(expected = "registered twice")]
fn refuses_a_taken_name() {
    let mut registry = Registry::new();
    registry.counter("holdfast_x_total", "x");
    registry.counter("holdfast_x_total", "x");
}

#[test]
#[should_panic(expected = "is not of the form")]
fn refuses_a_foreign_name() {
    Registry::new().gauge("Messages", "x");
}

#[test]
#[should_panic(expected = "ends in _total")]
fn refuses_a_counter_without_total() {
    Registry::new().counter("holdfast_x", "x");
}

#[test]
fn series_by_name_are_escaped_and_bounded() {
    let mut registry = Registry::new();
    registry.gauges_by_name("holdfast_x_events", "x", "endpoint", || {
        (0..NAMES_MAX as u64 + 5)
            .map(|index| (format!("e{index}"), index))
            .collect()
    });
    registry.counters_by_name("holdfast_y_total", "y", "endpoint", || {
        vec![("a\"b\\c\nd".to_owned(), 7)]
    });
    let text = registry.render();
    assert!(text.contains("holdfast_x_events{endpoint=\"e63\"} 63"), "{text}");
    assert!(!text.contains("e64"), "{text}");
    assert!(
        text.contains("holdfast_y_total{endpoint=\"a\\\"b\\\\c\\nd\"} 7"),
        "{text}"
    );
}
