//! `holdfast monitor`: the event stream of the hub, followed.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use holdfast_model::Timestamp;
use holdfast_ports::clock::{Clock as _, SystemClock};
use holdfast_program::failure::{Failure, Kind};
use holdfast_program::units::Span;
use serde_json::Value;

use super::Global;
use super::client::{Client, segment};
use super::output::Format;
use super::sse::SseReader;

/// How long a lost stream is tried again before the command gives up.
const RECONNECT_FOR: Duration = Duration::from_secs(60);

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  holdfast monitor                              everything from now on\n  holdfast monitor --device press-4 --since 10m\n  holdfast monitor --source telemetry --json | jq .body\n  holdfast monitor --from earliest --count 100"
)]
pub(super) struct MonitorArgs {
    /// Only events of this device and its modules
    #[arg(long, short)]
    device: Option<String>,
    /// Only events of this module
    #[arg(long, short, requires = "device")]
    module: Option<String>,
    /// Only events of this kind
    #[arg(long, value_enum)]
    source: Option<Source>,
    /// Only events of this partition
    #[arg(long, short)]
    partition: Option<u16>,
    /// Consumer group to read as
    #[arg(long, default_value = "$Default", value_name = "GROUP")]
    consumer_group: String,
    /// Begin with events of so long ago (10m, 2h) or since a time (2026-11-21T10:00:00Z)
    #[arg(long, value_name = "AGE|TIME", conflicts_with = "from")]
    since: Option<String>,
    /// Begin here: latest, earliest, or sequence:N (with --partition)
    #[arg(long, value_name = "POSITION", value_parser = position)]
    from: Option<String>,
    /// Begin where this consumer group stopped the last time, and save how far was read
    #[arg(long)]
    checkpoint: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Also print properties
    #[arg(long)]
    properties: bool,
    /// Stop after so many events
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Stop after this time
    #[arg(long, value_name = "DURATION")]
    timeout: Option<Span>,
}

/// Kinds of events.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Source {
    /// Messages of devices
    Telemetry,
    /// Changes of twins
    #[value(alias = "twinChangeEvents")]
    TwinChange,
    /// Devices created and deleted
    #[value(alias = "deviceLifecycleEvents")]
    DeviceLifecycle,
    /// Devices connected and disconnected
    #[value(alias = "deviceConnectionStateEvents")]
    ConnectionState,
}

impl Source {
    const fn as_str(self) -> &'static str {
        use holdfast_model::event::EventSource;
        match self {
            Source::Telemetry => EventSource::Telemetry.as_str(),
            Source::TwinChange => EventSource::TwinChange.as_str(),
            Source::DeviceLifecycle => EventSource::DeviceLifecycle.as_str(),
            Source::ConnectionState => EventSource::ConnectionState.as_str(),
        }
    }
}

fn position(text: &str) -> Result<String, String> {
    let sequence = text
        .strip_prefix("sequence:")
        .is_some_and(|number| number.parse::<u64>().is_ok());
    if sequence || matches!(text, "latest" | "earliest") {
        return Ok(text.to_owned());
    }
    Err("must be latest, earliest or sequence:N".to_owned())
}

impl MonitorArgs {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let json = self.json || global.output() == Format::Json;
        if self
            .from
            .as_deref()
            .is_some_and(|from| from.starts_with("sequence:"))
            && self.partition.is_none()
        {
            return Err(Failure::usage(
                "--from sequence:N needs --partition: each partition counts for itself",
            )
            .into());
        }
        let client = global.client()?;
        let mut follower = Follower {
            from: self.start()?,
            last: BTreeMap::new(),
            saved: BTreeMap::new(),
            newest: None,
            printed: 0,
            deadline: self.timeout.map(|timeout| Instant::now() + timeout.0),
            json,
            args: &self,
        };
        if std::io::stderr().is_terminal() {
            eprintln!("following events of {}; stop with Ctrl-C", client.login().host);
        }
        follower.follow(&client)
    }

    fn start(&self) -> anyhow::Result<String> {
        let Some(since) = &self.since else {
            let default = if self.checkpoint { "checkpoint" } else { "latest" };
            return Ok(self.from.clone().unwrap_or_else(|| default.to_owned()));
        };
        let time = match (since.parse::<Span>(), Timestamp::parse(since)) {
            (Ok(age), _) => SystemClock::new().now().minus(age.0),
            (_, Some(time)) => time,
            _ => {
                return Err(
                    Failure::usage(format!("--since {since:?} is neither an age nor a time"))
                        .hint("write for example 10m, 2h, 1d, or 2026-11-21T10:00:00Z")
                        .into(),
                );
            }
        };
        Ok(format!("time:{time}"))
    }
}

struct Follower<'a> {
    args: &'a MonitorArgs,
    from: String,
    /// Newest sequence number printed, by partition: a stream that is opened again repeats some events.
    last: BTreeMap<u64, u64>,
    /// The same, as saved in the consumer group's checkpoints.
    saved: BTreeMap<u64, u64>,
    /// Enqueued time of the newest event seen.
    newest: Option<Timestamp>,
    printed: u64,
    deadline: Option<Instant>,
    json: bool,
}

/// Why reading stopped.
enum Stop {
    Done,
    Lost(String),
}

impl Follower<'_> {
    fn follow(&mut self, client: &Client) -> anyhow::Result<()> {
        let mut lost_at: Option<Instant> = None;
        let mut pause = Duration::from_millis(200);
        loop {
            let opened = self.open(client);
            let stop = match opened {
                Ok(reader) => {
                    if lost_at.take().is_some() {
                        eprintln!("connected again");
                        pause = Duration::from_millis(200);
                    }
                    self.read(client, reader)?
                }
                Err(error) => {
                    let unavailable = error
                        .downcast_ref::<Failure>()
                        .is_some_and(|f| f.kind == Kind::Unavailable);
                    // The first attempt fails at once: most likely the command line is wrong.
                    if !unavailable || lost_at.is_none() {
                        return Err(error);
                    }
                    Stop::Lost(error.to_string())
                }
            };
            let Stop::Lost(why) = stop else { return Ok(()) };
            if self.is_over() {
                return Ok(());
            }
            if lost_at.is_none() {
                eprintln!("the stream broke off ({why}); trying again");
            }
            if lost_at.get_or_insert_with(Instant::now).elapsed() > RECONNECT_FOR {
                return Err(Failure::new(Kind::Unavailable, format!("the stream broke off: {why}")).into());
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    fn open(&mut self, client: &Client) -> anyhow::Result<SseReader<impl std::io::Read + 'static>> {
        let from = match self.newest {
            // The sequence check drops what was printed already.
            Some(time) => format!("time:{time}"),
            None => self.from.clone(),
        };
        let args = self.args;
        let response = client
            .get("/holdfast/v1/events")
            .query("from", Some(from))
            .query("consumerGroup", Some(&args.consumer_group))
            .query("partition", args.partition)
            .query("device", args.device.as_ref())
            .query("module", args.module.as_ref())
            .query("source", args.source.map(Source::as_str))
            .timeout(
                self.deadline
                    .map(|deadline| deadline.saturating_duration_since(Instant::now())),
            )
            .open()?;
        Ok(SseReader::new(response.into_body().into_reader()))
    }

    fn read(&mut self, client: &Client, mut reader: SseReader<impl std::io::Read>) -> anyhow::Result<Stop> {
        loop {
            if self.is_over() {
                return Ok(Stop::Done);
            }
            let event = match reader.next() {
                Ok(Some(event)) => event,
                Ok(None) => return Ok(Stop::Lost("the hub ended it".to_owned())),
                Err(_) if self.is_over() => {
                    // The last batch may have come together with the start of something that never ended.
                    if self.args.checkpoint {
                        self.save(client)?;
                    }
                    return Ok(Stop::Done);
                }
                Err(error) => return Ok(Stop::Lost(error.to_string())),
            };
            if event.name == "error" {
                return Err(
                    Failure::new(Kind::Failed, format!("the hub ended the stream: {}", event.data)).into(),
                );
            }
            let Ok(value) = serde_json::from_str::<Value>(&event.data) else {
                tracing::debug!(data = event.data, "an event that is not JSON was skipped");
                continue;
            };
            if self.is_new(&value) {
                self.print(&event.data, &value)?;
                self.printed += 1;
            }
            // Once per batch that arrived together: an event counts as read when it is printed.
            if self.args.checkpoint && (reader.is_drained() || self.is_over()) {
                self.save(client)?;
            }
        }
    }

    fn save(&mut self, client: &Client) -> anyhow::Result<()> {
        let path = format!(
            "/holdfast/v1/consumerGroups/{}/checkpoints",
            segment(&self.args.consumer_group)
        );
        let moved = self
            .last
            .iter()
            .filter(|(partition, last)| self.saved.get(partition) != Some(last));
        let checkpoints: Vec<Value> = moved
            .map(|(partition, last)| serde_json::json!({ "partition": partition, "next": last + 1 }))
            .collect();
        if !checkpoints.is_empty() {
            client.put(path).json(Value::Array(checkpoints)).send()?;
            self.saved.clone_from(&self.last);
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.args.count.is_some_and(|count| self.printed >= count)
            || self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    fn is_new(&mut self, event: &Value) -> bool {
        let (Some(partition), Some(sequence)) =
            (event["partition"].as_u64(), event["sequenceNumber"].as_u64())
        else {
            return true;
        };
        if self.last.get(&partition).is_some_and(|last| sequence <= *last) {
            return false;
        }
        self.last.insert(partition, sequence);
        let time = event["enqueuedTime"].as_str().and_then(Timestamp::parse);
        self.newest = self.newest.max(time);
        true
    }

    fn print(&self, text: &str, event: &Value) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{text}")?;
            return Ok(out.flush()?);
        }
        let member = |name: &str| event[name].as_str().unwrap_or_default();
        let mut who = member("deviceId").to_owned();
        if let Some(module) = event["moduleId"].as_str() {
            who.push('/');
            who.push_str(module);
        }
        // To the millisecond: the rest is noise for people.
        let time = member("enqueuedTime");
        let (seconds, fraction) = time
            .trim_end_matches('Z')
            .split_once('.')
            .unwrap_or((time.trim_end_matches('Z'), "000"));
        write!(out, "{seconds}.{:.3}Z  {who}  ", fraction)?;
        if member("source") != "Telemetry" {
            let operation = event["properties"]["opType"].as_str().unwrap_or_default();
            write!(out, "[{} {operation}]  ", member("source"))?;
        }
        match &event["body"] {
            Value::String(body) => write!(out, "{body}")?,
            body => write!(out, "{body}")?,
        }
        let has = |name: &str| event[name].as_object().is_some_and(|members| !members.is_empty());
        if self.args.properties {
            for name in ["properties", "systemProperties"] {
                if has(name) {
                    write!(out, "\n    {name}: {}", event[name])?;
                }
            }
        }
        writeln!(out)?;
        Ok(out.flush()?)
    }
}
