//! The course of a measurement: generator threads get ready, send for a while, are measured, and stop.

use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use holdfast_observe::process::{Usage, own_usage};
use holdfast_program::failure::{Failure, Kind};

use super::histogram::Histogram;
use super::report::{Subject, Unit};
use super::target::Target;

/// How often a thread that waits looks whether the measurement goes on.
pub(crate) const LOOK: Duration = Duration::from_millis(1);

const OPENING: u8 = 0;
const WARMING: u8 = 1;
const MEASURING: u8 = 2;
const STOP: u8 = 3;

/// What threads and their leader tell each other.
#[derive(Default)]
pub(crate) struct Shared {
    stage: AtomicU8,
    threads_ready: AtomicUsize,
    count: AtomicU64,
}

impl Shared {
    /// A thread is ready to send.
    pub(crate) fn ready(&self) {
        self.threads_ready.fetch_add(1, Ordering::Release);
    }

    /// Whether all threads are ready, so that sending may begin.
    pub(crate) fn begun(&self) -> bool {
        self.stage.load(Ordering::Relaxed) != OPENING
    }

    /// Whether durations count now.
    pub(crate) fn measuring(&self) -> bool {
        self.stage.load(Ordering::Relaxed) == MEASURING
    }

    /// Whether to stop.
    pub(crate) fn stopped(&self) -> bool {
        self.stage.load(Ordering::Relaxed) == STOP
    }

    /// So many more things are done.
    pub(crate) fn add(&self, done: u64) {
        if done > 0 {
            self.count.fetch_add(done, Ordering::Relaxed);
        }
    }
}

/// How long the stages last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) threads: usize,
    pub(crate) warm_up: Duration,
    pub(crate) duration: Duration,
}

/// What was measured.
pub(crate) struct Outcome {
    /// Things done while measuring.
    pub(crate) count: u64,
    pub(crate) seconds: f64,
    /// Server CPU seconds while measuring, and memory at the end, if it is a process known here.
    pub(crate) server: Option<(f64, Usage)>,
    pub(crate) generator_cpu_seconds: f64,
    /// Nanoseconds.
    pub(crate) latency: Histogram,
}

impl Outcome {
    /// The figures of a report: rates under the given names, then what servers and generators used, then latencies.
    pub(crate) fn add_to(
        &self,
        subject: &mut Subject,
        per_second: (&'static str, &'static str),
        per_cpu_second: (&'static str, &'static str),
    ) {
        let count = self.count as f64;
        subject.add(per_second.0, per_second.1, Unit::Count, count / self.seconds);
        if let Some((cpu, usage)) = &self.server {
            if *cpu > 0.0 {
                subject.add(per_cpu_second.0, per_cpu_second.1, Unit::Count, count / cpu);
            }
            subject.add("serverCores", "server cores", Unit::Cores, cpu / self.seconds);
            let rss = usage.rss_bytes as f64 / f64::from(1 << 20);
            subject.add("serverRssMib", "server memory", Unit::Mebibytes, rss);
        }
        let cores = self.generator_cpu_seconds / self.seconds;
        subject.add("generatorCores", "generator cores", Unit::Cores, cores);
        subject.add_latency(&self.latency);
    }
}

/// Runs `worker` on each thread, which calls [`Shared::ready`], waits for [`Shared::begun`], works until
/// [`Shared::stopped`], and returns its latencies. `note` hears what is going on.
///
/// # Errors
/// The first error of a thread, or when nothing was done.
pub(crate) fn run(
    target: &Target,
    plan: Plan,
    worker: &(dyn Fn(usize, &Shared) -> anyhow::Result<Histogram> + Sync),
    note: &dyn Fn(&str),
) -> anyhow::Result<Outcome> {
    let shared = Shared::default();
    thread::scope(|scope| {
        let shared = &shared;
        let workers: Vec<_> = (0..plan.threads)
            .map(|thread| scope.spawn(move || worker(thread, shared)))
            .collect();
        let measured = lead(target, plan, shared, &workers, note);
        shared.stage.store(STOP, Ordering::Relaxed);
        let mut latency = Histogram::default();
        for worker in workers {
            let latencies = worker
                .join()
                .map_err(|_| anyhow::anyhow!("a generator thread panicked"))?;
            latency.merge(&latencies?);
        }
        let outcome = Outcome { latency, ..measured? };
        if outcome.count == 0 {
            return Err(
                Failure::new(Kind::Unavailable, "the server did nothing of what was asked for").into(),
            );
        }
        Ok(outcome)
    })
}

/// Leads the threads through the stages and takes the samples.
fn lead<T>(
    target: &Target,
    plan: Plan,
    shared: &Shared,
    workers: &[ScopedJoinHandle<'_, T>],
    note: &dyn Fn(&str),
) -> anyhow::Result<Outcome> {
    // A thread that ended early has an error to tell, which joining it brings to light.
    let failed = || workers.iter().any(ScopedJoinHandle::is_finished);
    let wait = |until: Instant| {
        while !failed() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(Duration::from_millis(20)));
        }
        Err(anyhow::anyhow!("a generator thread ended early"))
    };
    note("connecting");
    while shared.threads_ready.load(Ordering::Acquire) < plan.threads {
        wait(Instant::now() + LOOK)?;
    }
    note("warming up");
    shared.stage.store(WARMING, Ordering::Relaxed);
    wait(Instant::now() + plan.warm_up)?;
    note("measuring");
    let server_before = target.usage()?;
    let own_before = own_usage()?;
    shared.stage.store(MEASURING, Ordering::Relaxed);
    let (count, start) = (shared.count.load(Ordering::Relaxed), Instant::now());
    wait(start + plan.duration)?;
    let (count, seconds) = (
        shared.count.load(Ordering::Relaxed) - count,
        start.elapsed().as_secs_f64(),
    );
    let server_after = target.usage()?;
    let own_after = own_usage()?;
    Ok(Outcome {
        count,
        seconds,
        server: server_before
            .zip(server_after)
            .map(|(before, after)| (after.cpu_seconds() - before.cpu_seconds(), after)),
        generator_cpu_seconds: own_after.cpu_seconds() - own_before.cpu_seconds(),
        latency: Histogram::default(),
    })
}
