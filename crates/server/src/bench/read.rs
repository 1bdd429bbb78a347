//! `bench read`: events out of the hub, as `holdfast monitor` and its like read them, or as Event Hubs clients do.

use std::io::Read as _;
use std::time::Instant;

use holdfast_program::units::Span;

use super::ingest::load;
use super::mqtt_load::LoadOptions;
use super::report::{Report, Subject, Unit};
use super::target::{Protocol, TargetOptions, hub_endpoint};
use super::{Stage, amqp_read};
use crate::cli::client::Client;
use crate::cli::output::Format;
use crate::cli::profile::Wanted;

/// Bytes taken by one read.
const READ_BYTES: usize = 256 << 10;

/// How events are read.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Way {
    /// The event stream of the REST API
    #[default]
    Rest,
    /// The Event Hubs-compatible endpoint
    Amqp,
}

/// Events per second over the event stream of the REST API or over AMQP, from a log filled just before.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "What is measured is the stream of server-sent events over HTTPS, JSON included, or one AMQP connection that reads all\npartitions; the log below both is measured by `cargo bench -p holdfast-store --bench log`.\n\nExamples:\n  holdfast bench read\n  holdfast bench read --protocol amqp                     as azure-eventhub does: 300 events ahead in each partition\n  holdfast bench read --protocol amqp --tls --prefetch 5000\n  holdfast bench read --events 1000000 --payload 100"
)]
pub(crate) struct ReadArgs {
    /// How events are read
    #[arg(long, value_enum, default_value_t)]
    protocol: Way,
    /// With AMQP: events that may be under way in each partition
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    prefetch: u32,
    #[command(flatten)]
    target: TargetOptions,
    /// Events to read
    #[arg(long, value_name = "N", default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1..))]
    events: u64,
    /// Bytes of a message
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    payload: usize,
}

impl ReadArgs {
    pub(crate) fn run(self, wanted: &Wanted, format: Format) -> anyhow::Result<()> {
        let stage = Stage::new("read");
        let mut target = self.target.hub(wanted)?;
        let fill = LoadOptions {
            connections: 100,
            payload: self.payload,
            window: 32,
            duration: Span(std::time::Duration::from_millis(500)),
            warm_up: Span(std::time::Duration::ZERO),
            threads: 1,
            rate: None,
            kinds: 0,
        };
        let mut written = 0;
        while written < self.events {
            written += load(&target, &fill, &stage)?.count;
        }
        // The log is filled over MQTT; what comes now is another endpoint of the same hub.
        let partitions = match self.protocol {
            Way::Rest => None,
            Way::Amqp => {
                let login = target.rest()?.login();
                target.endpoint = hub_endpoint(login, Protocol::Amqp, self.target.tls, true)?;
                Some(amqp_read::partitions(&target)?)
            }
        };
        stage.say("reading");
        let (before, begin) = (target.usage()?, Instant::now());
        let (events, bytes) = match partitions {
            None => read(target.rest()?, self.events)?,
            Some(partitions) => {
                let read = amqp_read::read(&target, partitions, self.prefetch, self.events)?;
                (read.events, read.bytes)
            }
        };
        let seconds = begin.elapsed().as_secs_f64();
        let mut subject = Subject::new(&target.name, &target.version);
        subject.add(
            "eventsPerSecond",
            "events/s",
            Unit::Count,
            events as f64 / seconds,
        );
        if let (Some(before), Some(after)) = (before, target.usage()?) {
            let cpu = after.cpu_seconds() - before.cpu_seconds();
            if cpu > 0.0 {
                let rate = events as f64 / cpu;
                subject.add(
                    "eventsPerServerCpuSecond",
                    "events/server CPU-second",
                    Unit::Count,
                    rate,
                );
            }
            subject.add("serverCores", "server cores", Unit::Cores, cpu / seconds);
        }
        let mib = bytes as f64 / f64::from(1 << 20);
        subject.add(
            "mibPerSecond",
            "stream per second",
            Unit::Mebibytes,
            mib / seconds,
        );
        let mut parameters = serde_json::json!({ "events": events, "payload": self.payload });
        if let Some(partitions) = partitions {
            parameters["protocol"] = Protocol::Amqp.name().into();
            parameters["tls"] = self.target.tls.into();
            parameters["partitions"] = partitions.into();
            parameters["prefetch"] = self.prefetch.into();
        }
        let mut report = Report::new("read", parameters);
        report.subjects.push(subject);
        drop((stage, target));
        report.print(format)
    }
}

/// Reads the stream until so many events came; returns events and bytes.
fn read(client: &Client, wanted: u64) -> anyhow::Result<(u64, u64)> {
    let response = client
        .get("/holdfast/v1/events")
        .query("from", Some("earliest"))
        .query("source", Some("telemetry"))
        .timeout(None)
        .open()?;
    let mut stream = response.into_body().into_reader();
    let mut buffer = vec![0; READ_BYTES];
    let mut counter = LineCounter::default();
    let mut bytes = 0;
    while counter.events < wanted {
        let read = stream.read(&mut buffer)?;
        anyhow::ensure!(
            read > 0,
            "the stream ended after {} of {wanted} events",
            counter.events
        );
        bytes += read as u64;
        counter.take(&buffer[..read]);
    }
    Ok((counter.events, bytes))
}

/// Counts lines that begin with `data:`, one per event, over any cuts between reads.
#[derive(Default)]
struct LineCounter {
    events: u64,
    /// Bytes of `data:` matched at the start of the current line; `None` in the rest of a line.
    matched: Matched,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Matched {
    Bytes(usize),
    RestOfLine,
}

impl Default for Matched {
    fn default() -> Self {
        Matched::Bytes(0)
    }
}

impl LineCounter {
    fn take(&mut self, mut bytes: &[u8]) {
        const FIELD: &[u8] = b"data:";
        while let Some(&byte) = bytes.first() {
            match self.matched {
                Matched::Bytes(matched) if byte == FIELD[matched] => {
                    bytes = &bytes[1..];
                    self.matched = Matched::Bytes(matched + 1);
                    if matched + 1 == FIELD.len() {
                        self.events += 1;
                        self.matched = Matched::RestOfLine;
                    }
                }
                _ => {
                    // Long lines are skipped in one go.
                    match bytes.iter().position(|byte| *byte == b'\n') {
                        Some(end) => {
                            bytes = &bytes[end + 1..];
                            self.matched = Matched::Bytes(0);
                        }
                        None => {
                            self.matched = Matched::RestOfLine;
                            return;
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_counted_however_the_stream_is_cut() {
        let stream = b"id: 1\ndata: {\"data:\":1}\n\n: keep-alive\n\nevent: x\ndata:2\n\ndat\ndata: 3\n\n";
        for cut in 0..=stream.len() {
            let mut counter = LineCounter::default();
            counter.take(&stream[..cut]);
            counter.take(&stream[cut..]);
            assert_eq!(counter.events, 3, "cut at {cut}");
        }
    }
}
