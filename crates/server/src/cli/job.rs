//! `holdfast job`.

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use holdfast_program::failure::{Failure, Kind};
use holdfast_program::units::Span;
use serde_json::{Map, Value, json};

use super::client::{Client, segment};
use super::output::progress;
use super::{Global, input};

const ROOT: &str = "/jobs/v2";

/// How often a job that is waited for is looked at.
const LOOK: std::time::Duration = std::time::Duration::from_millis(500);

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Schedule work over many devices
    #[command(subcommand)]
    Create(Create),
    /// List jobs, newest first
    #[command(
        after_help = "Examples:\n  holdfast job list\n  holdfast job list --type update-twin --status running"
    )]
    List(ListArgs),
    /// Show a job with its progress
    #[command(
        after_help = "Examples:\n  holdfast job show firmware-7\n  holdfast job show firmware-7 --devices"
    )]
    Show {
        /// Id of the job
        id: String,
        /// What came of it at each device instead
        #[arg(long)]
        devices: bool,
    },
    /// Cancel a job; devices that have not been tried are left out
    Cancel {
        /// Id of the job
        id: String,
    },
}

#[derive(Subcommand, Debug)]
pub(super) enum Create {
    /// Change tags or desired properties of many twins
    #[command(
        after_help = "Examples:\n  holdfast job create update-twin --condition \"tags.site='north'\" --desired '{\"interval\":5}' --wait\n  holdfast job create update-twin --id night --condition '*' --tags '{\"wave\":2}' --start 2026-12-01T02:00:00Z"
    )]
    UpdateTwin(UpdateTwinArgs),
    /// Call a direct method of many devices
    #[command(
        after_help = "Examples:\n  holdfast job create invoke-method reboot --condition \"deviceId IN ['press-1','press-2']\" --wait\n  holdfast job create invoke-method setSpeed --condition \"tags.line='press'\" --payload '{\"rpm\":900}' --max-execution 10m"
    )]
    InvokeMethod(InvokeMethodArgs),
}

#[derive(Args, Debug)]
pub(super) struct Schedule {
    /// Id of the job; one is made if absent
    #[arg(long)]
    id: Option<String>,
    /// Which devices: a condition, * for all; FROM devices.modules WHERE … for modules
    #[arg(long, short = 'q', value_name = "CONDITION")]
    condition: String,
    /// When to start, ISO 8601; now if absent
    #[arg(long, value_name = "TIME")]
    start: Option<String>,
    /// How long the job may run, up to 48h
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    max_execution: Span,
    /// Wait for the end, and fail if a device has failed
    #[arg(long)]
    wait: bool,
}

#[derive(Args, Debug)]
pub(super) struct UpdateTwinArgs {
    #[command(flatten)]
    schedule: Schedule,
    /// Changes of desired properties: JSON, @FILE or - for standard input; null removes a key
    #[arg(long, value_name = "JSON")]
    desired: Option<String>,
    /// Changes of tags: JSON, @FILE or - for standard input; null removes a key
    #[arg(long, value_name = "JSON")]
    tags: Option<String>,
}

#[derive(Args, Debug)]
pub(super) struct InvokeMethodArgs {
    /// Name of the method
    method: String,
    #[command(flatten)]
    schedule: Schedule,
    /// Payload: JSON, @FILE or - for standard input
    #[arg(long, short, value_name = "JSON")]
    payload: Option<String>,
    /// How long to wait for each answer, 5s to 5m
    #[arg(long, default_value = "30s")]
    timeout: Span,
    /// How long to wait for each device to connect, up to 5m
    #[arg(long, default_value = "0s")]
    connect_timeout: Span,
}

#[derive(Args, Debug)]
pub(super) struct ListArgs {
    /// Jobs of this type only
    #[arg(long = "type", value_enum)]
    kind: Option<JobType>,
    /// Jobs in this status only
    #[arg(long, value_enum)]
    status: Option<Status>,
    /// Most jobs
    #[arg(long, default_value_t = 1_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    top: u32,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum JobType {
    UpdateTwin,
    InvokeMethod,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Status {
    Scheduled,
    Queued,
    Running,
    Completed,
    Failed,
    Cancelled,
}

impl Command {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let output = global.output();
        match self {
            Command::Create(create) => create.run(global, &client),
            Command::List(args) => output.list(&args.jobs(&client)?, COLUMNS),
            Command::Show { id, devices: false } => output.object(&client.get(path(&id)).send()?),
            Command::Show { id, devices: true } => {
                client.get(path(&id)).send()?;
                output.list(&device_jobs(&client, &id)?, DEVICE_COLUMNS)
            }
            Command::Cancel { id } => {
                let job = client.post(format!("{}/cancel", path(&id))).send()?;
                output.outcome(&format!("job {id} cancelled"), &job)
            }
        }
    }
}

const COLUMNS: &[(&str, &str)] = &[
    ("id", "/jobId"),
    ("type", "/type"),
    ("status", "/status"),
    ("devices", "/deviceJobStatistics/deviceCount"),
    ("done", "/deviceJobStatistics/succeededCount"),
    ("failed", "/deviceJobStatistics/failedCount"),
    ("start", "/startTime"),
    ("condition", "/queryCondition"),
];

const DEVICE_COLUMNS: &[(&str, &str)] = &[
    ("device", "/deviceId"),
    ("module", "/moduleId"),
    ("status", "/status"),
    ("answer", "/outcome/deviceMethodResponse/status"),
    ("error", "/error/code"),
    ("end", "/endTimeUtc"),
];

fn path(id: &str) -> String {
    format!("{ROOT}/{}", segment(id))
}

impl Create {
    fn run(self, global: &Global, client: &Client) -> anyhow::Result<()> {
        let (schedule, kind, work) = match self {
            Create::UpdateTwin(args) => {
                let twin = args.twin()?;
                (args.schedule, "scheduleUpdateTwin", ("updateTwin", twin))
            }
            Create::InvokeMethod(args) => {
                let call = args.call()?;
                (
                    args.schedule,
                    "scheduleDeviceMethod",
                    ("cloudToDeviceMethod", call),
                )
            }
        };
        let id = schedule.id.clone().unwrap_or_else(new_id);
        let mut body = Map::new();
        body.insert("jobId".into(), id.as_str().into());
        body.insert("type".into(), kind.into());
        body.insert(work.0.into(), work.1);
        body.insert("queryCondition".into(), schedule.condition.as_str().into());
        body.insert(
            "maxExecutionTimeInSeconds".into(),
            schedule.max_execution.0.as_secs().into(),
        );
        if let Some(start) = &schedule.start {
            body.insert("startTime".into(), start.as_str().into());
        }
        let mut job = client.put(path(&id)).json(Value::Object(body)).send()?;
        if schedule.wait {
            job = wait(client, &id)?;
        }
        global.output().object(&job)?;
        match schedule.wait {
            true => check_outcome(&id, &job),
            false => Ok(()),
        }
    }
}

/// Follows a job to its end.
fn wait(client: &Client, id: &str) -> anyhow::Result<Value> {
    let bar = progress(0, "devices");
    loop {
        let job = client.get(path(id)).send()?;
        let count = |name: &str| {
            let figure = job.pointer(&format!("/deviceJobStatistics/{name}"));
            figure.and_then(Value::as_u64).unwrap_or(0)
        };
        bar.set_length(count("deviceCount"));
        bar.set_position(count("succeededCount") + count("failedCount"));
        let status = job.get("status").and_then(Value::as_str).unwrap_or_default();
        if matches!(status, "completed" | "failed" | "cancelled") {
            bar.finish_and_clear();
            return Ok(job);
        }
        std::thread::sleep(LOOK);
    }
}

fn check_outcome(id: &str, job: &Value) -> anyhow::Result<()> {
    let status = job.get("status").and_then(Value::as_str).unwrap_or_default();
    let failed = job
        .pointer("/deviceJobStatistics/failedCount")
        .and_then(Value::as_u64);
    match (status, failed.unwrap_or(0)) {
        ("completed", 0) => Ok(()),
        ("completed", count) => Err(
            Failure::new(Kind::Failed, format!("the job failed at {count} devices"))
                .hint(format!("holdfast job show {id} --devices tells why"))
                .into(),
        ),
        (status, _) => Err(Failure::new(Kind::Failed, format!("the job is {status}")).into()),
    }
}

impl UpdateTwinArgs {
    fn twin(&self) -> anyhow::Result<Value> {
        let mut twin = Map::new();
        twin.insert("etag".into(), "*".into());
        if let Some(tags) = &self.tags {
            twin.insert("tags".into(), input::object("--tags", tags)?);
        }
        if let Some(desired) = &self.desired {
            let desired = input::object("--desired", desired)?;
            twin.insert("properties".into(), json!({ "desired": desired }));
        }
        if twin.len() == 1 {
            return Err(Failure::usage("nothing to change: give --desired or --tags").into());
        }
        Ok(Value::Object(twin))
    }
}

impl InvokeMethodArgs {
    fn call(&self) -> anyhow::Result<Value> {
        let payload = match &self.payload {
            Some(payload) => input::json("--payload", payload)?,
            None => Value::Null,
        };
        Ok(json!({
            "methodName": self.method,
            "payload": payload,
            "responseTimeoutInSeconds": self.timeout.0.as_secs(),
            "connectTimeoutInSeconds": self.connect_timeout.0.as_secs(),
        }))
    }
}

impl ListArgs {
    fn jobs(&self, client: &Client) -> anyhow::Result<Vec<Value>> {
        let kind = self.kind.map(|kind| match kind {
            JobType::UpdateTwin => "scheduleUpdateTwin",
            JobType::InvokeMethod => "scheduleDeviceMethod",
        });
        let status = self.status.map(|status| match status {
            Status::Scheduled => "scheduled",
            Status::Queued => "queued",
            Status::Running => "running",
            Status::Completed => "completed",
            Status::Failed => "failed",
            Status::Cancelled => "cancelled",
        });
        let top = self.top as usize;
        let call = |token: Option<&str>| {
            let call = client.get(format!("{ROOT}/query"));
            let call = call.query("jobType", kind).query("jobStatus", status);
            match token {
                None => call,
                Some(token) => call.header("x-ms-continuation", token),
            }
        };
        pages(top, call)
    }
}

/// What came of a job at each device.
fn device_jobs(client: &Client, id: &str) -> anyhow::Result<Vec<Value>> {
    let id = id.replace('\\', "\\\\").replace('\'', "\\'");
    let query = format!("SELECT * FROM devices.jobs WHERE devices.jobs.jobId = '{id}'");
    pages(usize::MAX, |token| {
        let call = client.post("/devices/query").json(json!({ "query": query }));
        match token {
            None => call,
            Some(token) => call.header("x-ms-continuation", token),
        }
    })
}

/// All pages of a list, up to `top` items.
fn pages<'a>(
    top: usize,
    call: impl Fn(Option<&str>) -> super::client::Call<'a>,
) -> anyhow::Result<Vec<Value>> {
    let (mut items, mut token): (Vec<Value>, Option<String>) = (Vec::new(), None);
    loop {
        let call = call(token.as_deref()).header("x-ms-max-item-count", top.clamp(1, 1_000).to_string());
        let mut response = call.open()?;
        token = response
            .headers()
            .get("x-ms-continuation")
            .and_then(|value| Some(value.to_str().ok()?.to_owned()));
        let text = response.body_mut().with_config().limit(64 << 20).read_to_string();
        let page: Vec<Value> = serde_json::from_str(&text.context("the hub's answer broke off")?)
            .context("the hub's answer is not a list")?;
        items.extend(page);
        if token.is_none() || items.len() >= top {
            items.truncate(top);
            return Ok(items);
        }
    }
}

/// An id of time, so that lists of ids are in order.
fn new_id() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    format!("job-{}", since.map_or(0, |since| since.as_millis()))
}
