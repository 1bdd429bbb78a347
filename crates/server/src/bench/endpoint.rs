//! `bench endpoint`: how fast a dispatcher takes events from the log to an endpoint, and who is the slower of the two.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use holdfast_model::Identity;
use holdfast_model::event::{AuthMethod, EndpointSet, EventSource, Origin, Records};
use holdfast_model::message::SystemProperty;
use holdfast_model::routing::EndpointDefinition;
use holdfast_observe::process::{own_usage, usage};
use holdfast_ports::clock::{Clock as _, SystemClock};
use holdfast_ports::event_log::{EventLog, LogError, durable};
use holdfast_ports::settings::CheckpointStore as _;
use holdfast_routing::dispatcher::reader_name;
use holdfast_routing::dispatchers::EndpointFactory as _;
use holdfast_routing::endpoints::{Endpoints, Environment};
use holdfast_routing::enrich::Enricher;
use holdfast_routing::health::Health;
use holdfast_routing::{DeliveryPolicy, Dispatcher, DispatcherParts};
use holdfast_store::log::{EmbeddedLog, LogConfig};
use holdfast_store::sqlite::{Metrics, SqliteStore};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::Stage;
use super::report::{Report, Subject, Unit};
use super::spawn::{Hub, WorkDir};
use crate::cli::output::{self, Format};

/// Devices that the events are of.
const DEVICES: u64 = 1_000;
/// Events that a device sends at once.
const RUN: u64 = 10;
/// Longest time without progress.
const PATIENCE: Duration = Duration::from_secs(60);

/// Events per second from the log to an endpoint, with the CPU time of both sides.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "The events are in the log before the clock starts; what is measured is one dispatcher with its checkpoint in a database,\nand the endpoint. Without --settings, `storage` writes to a folder, `http` posts to a receiver in a process of its own that\nreads and drops, and `amqp` sends to a second hub. Files are written when they are full (storage: 64 MiB) and at the end.\n\nExamples:\n  holdfast bench endpoint storage\n  holdfast bench endpoint storage --settings '{\"encoding\":\"Parquet\"}'\n  holdfast bench endpoint http --receiver parse\n  holdfast bench endpoint amqp\n  holdfast bench endpoint kafka --settings '{\"bootstrapServers\":[\"localhost\"],\"topic\":\"t\"}' --peer-pid 4711"
)]
pub(crate) struct EndpointArgs {
    /// Kind of endpoint
    kind: String,
    /// Settings as a JSON object, over those of the measurement
    #[arg(long, value_name = "JSON", default_value = "{}")]
    settings: String,
    /// Events to deliver
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    events: u64,
    /// Bytes of a body
    #[arg(long, value_name = "BYTES", default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..=262_144))]
    payload: u32,
    /// What the receiver of `http` does with a request
    #[arg(long, value_enum, default_value_t)]
    receiver: Receiving,
    /// Process whose CPU time is the peer's
    #[arg(long, value_name = "PID")]
    peer_pid: Option<u32>,
    /// Directory for the data [default: the temporary one]
    #[arg(long, value_name = "DIR")]
    work_dir: Option<std::path::PathBuf>,
}

/// What the receiver does with a request.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Receiving {
    /// Read it and drop it
    #[default]
    Drop,
    /// Read it as JSON, a tree of values
    Parse,
}

/// A web service for `bench endpoint`, in a process of its own.
#[derive(clap::Args, Debug)]
pub(crate) struct ReceiverArgs {
    /// What to do with a request
    #[arg(value_enum)]
    receiving: Receiving,
}

/// Who takes the events.
struct Peer {
    settings: Value,
    pid: Option<u32>,
    receiver: Option<Child>,
    _hub: Option<Hub>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(receiver) = &mut self.receiver {
            let _ = receiver.kill();
            let _ = receiver.wait();
        }
    }
}

impl EndpointArgs {
    pub(crate) fn run(self, format: Format) -> anyhow::Result<()> {
        let stage = Stage::new("endpoint");
        let dir = WorkDir::new(self.work_dir.as_deref())?;
        stage.say("starting the peer");
        let peer = self.peer(dir.path())?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let mut subject = Subject::new("holdfast", format!("holdfast {}", env!("CARGO_PKG_VERSION")));
        runtime.block_on(self.measure(&peer, dir.path(), &stage, &mut subject))?;
        let parameters = json!({"kind": self.kind, "events": self.events, "payload": self.payload});
        let mut report = Report::new("endpoint", parameters);
        report.subjects.push(subject);
        // Before the directory in which its data are.
        drop(peer);
        drop((stage, runtime, dir));
        report.print(format)
    }

    /// Settings of the measurement, with those of the command line over them.
    fn peer(&self, dir: &Path) -> anyhow::Result<Peer> {
        let given: Value = serde_json::from_str(&self.settings).context("--settings is no JSON")?;
        let given = given.as_object().context("--settings must be a JSON object")?;
        let mut peer = Peer {
            settings: json!({}),
            pid: self.peer_pid,
            receiver: None,
            _hub: None,
        };
        match self.kind.as_str() {
            "storage" => peer.settings = json!({"batchFrequencyInSeconds": 1}),
            "http" if !given.contains_key("url") => {
                let (receiver, port) = start_receiver(self.receiver)?;
                peer.pid = Some(receiver.id());
                peer.receiver = Some(receiver);
                let format = if self.receiver == Receiving::Parse {
                    "cloudevents"
                } else {
                    "json"
                };
                peer.settings = json!({"url": format!("http://127.0.0.1:{port}/"), "format": format});
            }
            "amqp" if !given.contains_key("url") && !given.contains_key("connectionString") => {
                let hub = Hub::start(&dir.join("peer"))?;
                peer.settings = json!({"connectionString": send_to(&hub)?});
                peer.pid = Some(hub.pid());
                peer._hub = Some(hub);
            }
            _ => {}
        }
        for (name, value) in given {
            peer.settings[name] = value.clone();
        }
        Ok(peer)
    }

    async fn measure(
        &self,
        peer: &Peer,
        dir: &Path,
        stage: &Stage,
        subject: &mut Subject,
    ) -> anyhow::Result<()> {
        let log = LogConfig {
            dir: dir.join("events"),
            ..LogConfig::default()
        };
        let log: Arc<dyn EventLog> = Arc::new(EmbeddedLog::open(log).context("cannot open the log")?);
        self.fill(&*log).await?;
        stage.say("delivering");
        let store = SqliteStore::open(
            &dir.join("state.db"),
            Metrics::register(&mut holdfast_observe::Registry::new()),
        );
        let store = Arc::new(store.context("cannot open the store")?);
        let (health, mut watched) = watch::channel(Health::default());
        let dispatcher = self.dispatcher(peer, dir, log, store, health).await?;
        let (stop, stopped) = watch::channel(false);
        let cpu = || -> anyhow::Result<(f64, Option<f64>)> {
            let peer = peer.pid.map(|pid| usage(pid).map(|usage| usage.cpu_seconds()));
            Ok((own_usage()?.cpu_seconds(), peer.transpose()?))
        };
        let (before, begin) = (cpu()?, Instant::now());
        let task = tokio::spawn(dispatcher.run(stopped));
        while watched.borrow_and_update().delivered < self.events {
            let changed = tokio::time::timeout(PATIENCE, watched.changed()).await;
            let health = watched.borrow();
            anyhow::ensure!(
                changed.is_ok() && health.dead_lettered == 0,
                "the endpoint does not take events: {}",
                health.last_known_error.as_deref().unwrap_or("it says nothing")
            );
        }
        let seconds = begin.elapsed().as_secs_f64();
        let after = cpu()?;
        stop.send_replace(true);
        task.await?;
        subject.add(
            "eventsPerSecond",
            "events/s",
            Unit::Count,
            self.events as f64 / seconds,
        );
        subject.add("cores", "cores", Unit::Cores, (after.0 - before.0) / seconds);
        if let (Some(before), Some(after)) = (before.1, after.1) {
            subject.add(
                "peerCores",
                "cores of the peer",
                Unit::Cores,
                (after - before) / seconds,
            );
        }
        Ok(())
    }

    async fn dispatcher(
        &self,
        peer: &Peer,
        dir: &Path,
        log: Arc<dyn EventLog>,
        store: Arc<SqliteStore>,
        health: watch::Sender<Health>,
    ) -> anyhow::Result<Dispatcher> {
        let clock = Arc::new(SystemClock::new());
        let factory = Endpoints::new(Environment {
            hub_name: "bench".to_owned(),
            data_dir: dir.to_owned(),
            clock: clock.clone(),
            actions: None,
        });
        let checked = factory.check(&self.kind, &peer.settings);
        let definition = EndpointDefinition {
            name: "bench".to_owned(),
            number: 1,
            created_at: clock.now(),
            kind: self.kind.clone(),
            settings: checked.map_err(anyhow::Error::msg)?,
        };
        let reader = reader_name(&definition.name);
        // A dispatcher without a checkpoint begins at the end.
        for partition in 0..log.partitions() {
            let saved = store.save_checkpoint(&reader, partition, 0).await;
            saved.context("cannot write a checkpoint")?;
        }
        let parts = DispatcherParts {
            name: definition.name.clone(),
            number: definition.number,
            endpoint: factory.make(&definition).map_err(anyhow::Error::msg)?,
            log,
            checkpoints: store.clone(),
            dead_letters: store.clone(),
            clock,
            policy: DeliveryPolicy::default(),
            health,
        };
        let enricher = Enricher::new(&[], "bench", "bench", store);
        Dispatcher::start(parts, enricher)
            .await
            .map_err(anyhow::Error::msg)
    }

    /// Telemetry of many devices, as their messages would stand in the log.
    async fn fill(&self, log: &dyn EventLog) -> anyhow::Result<()> {
        let bar = output::progress(self.events, "events");
        let (mut written, mut last) = (0, vec![None; usize::from(log.partitions())]);
        while written < self.events {
            let device = written / RUN % DEVICES;
            let partition = u16::try_from(device % u64::from(log.partitions()))?;
            let count = RUN.min(self.events - written);
            let (origin, records) = (origin(device)?, self.records(written, count));
            let runs = [records.run(EndpointSet::of(1))];
            let ticket = loop {
                match log.append_runs(partition, &origin, &runs, SystemClock::new().now()) {
                    Err(LogError::Busy) => tokio::time::sleep(Duration::from_millis(1)).await,
                    other => break other.context("cannot write to the log")?,
                }
            };
            last[usize::from(partition)] = Some(ticket);
            written += count;
            bar.set_position(written);
        }
        bar.finish_and_clear();
        for ticket in last.into_iter().flatten() {
            durable(log, ticket).await.context("the log is not durable")?;
        }
        Ok(())
    }

    fn records(&self, first: u64, count: u64) -> Records {
        let mut records = Records::new();
        for number in first..first + count {
            let mut record = records.record();
            record.system(SystemProperty::ContentType, "application/json");
            record.system(SystemProperty::ContentEncoding, "utf-8");
            record.property("level", Some("high"));
            let mut body = format!("{{\"n\":{number},\"p\":\"");
            while body.len() + 2 < self.payload as usize {
                body.push('x');
            }
            body.push_str("\"}");
            // Bounded by the command line.
            let _ = record.finish(body.as_bytes());
        }
        records
    }
}

fn origin(device: u64) -> anyhow::Result<Origin> {
    Ok(Origin {
        source: EventSource::Telemetry,
        identity: Identity::device(&format!("bench-{device:04}"))?,
        generation_id: device + 1,
        auth: AuthMethod::IdentityKey,
    })
}

/// The connection string for the events of another hub, without TLS.
fn send_to(hub: &Hub) -> anyhow::Result<String> {
    let login = &hub.login;
    let plain = login
        .amqp_plain
        .as_deref()
        .context("the hub has no plain AMQP listener")?;
    let port = plain.rsplit_once(':').map_or(plain, |(_, port)| port);
    Ok(format!(
        "Endpoint=sb://localhost:{port}/;SharedAccessKeyName={};SharedAccessKey={};EntityPath={};UseDevelopmentEmulator=true",
        login.policy,
        login.key.reveal(),
        holdfast_wire::links::EVENT_HUB_NAME,
    ))
}

/// Starts this program as a receiver; gives its port.
fn start_receiver(receiving: Receiving) -> anyhow::Result<(Child, u16)> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let word = match receiving {
        Receiving::Drop => "drop",
        Receiving::Parse => "parse",
    };
    let mut receiver = Command::new(program)
        .args(["bench", "receiver", word])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the receiver")?;
    let read = |out: ChildStdout| -> anyhow::Result<u16> {
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line)?;
        line.trim().parse().context("the receiver tells no port")
    };
    let port = receiver.stdout.take().context("the receiver has no output");
    match port.and_then(read) {
        Ok(port) => Ok((receiver, port)),
        Err(error) => {
            let _ = receiver.kill();
            let _ = receiver.wait();
            Err(error)
        }
    }
}

impl ReceiverArgs {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut out = std::io::stdout();
        writeln!(out, "{}", listener.local_addr()?.port())?;
        out.flush()?;
        // Ends with who started it.
        thread::spawn(|| {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            std::process::exit(0);
        });
        for socket in listener.incoming() {
            let socket = socket?;
            let receiving = self.receiving;
            thread::spawn(move || receive(&socket, receiving));
        }
        Ok(())
    }
}

/// Answers the requests of one connection until it ends.
fn receive(socket: &TcpStream, receiving: Receiving) -> anyhow::Result<()> {
    use std::io::Read as _;
    socket.set_nodelay(true)?;
    let mut input = BufReader::with_capacity(256 << 10, socket);
    let (mut output, mut line, mut body) = (socket, String::new(), Vec::new());
    loop {
        let mut length = 0;
        loop {
            line.clear();
            if input.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let header = line.trim_end();
            if header.is_empty() {
                break;
            }
            if let Some((name, value)) = header.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse()?;
            }
        }
        body.resize(length, 0);
        input.read_exact(&mut body)?;
        if receiving == Receiving::Parse {
            let _: Value = serde_json::from_slice(&body)?;
        }
        output.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?;
    }
}
