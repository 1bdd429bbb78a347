//! `bench job`: a scheduled twin update over a large fleet.

use std::time::{Duration, Instant};

use holdfast_program::units::Span;
use serde_json::{Value, json};

use super::Stage;
use super::report::{Report, Subject, Unit};
use super::target::{Target, TargetOptions};
use crate::cli::output::{self, Format};
use crate::cli::profile::Wanted;

/// How often progress is asked for.
const LOOK: Duration = Duration::from_millis(100);

/// Seconds that a scheduled twin update takes, with a durable result for each device.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  holdfast bench job\n  holdfast bench job --devices 10000 --work-dir /data"
)]
pub(crate) struct JobArgs {
    #[command(flatten)]
    target: TargetOptions,
    /// Devices that the job updates
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    devices: u32,
    /// How long to wait for the end
    #[arg(long, value_name = "DURATION", default_value = "10m")]
    patience: Span,
}

impl JobArgs {
    pub(crate) fn run(self, wanted: &Wanted, format: Format) -> anyhow::Result<()> {
        let stage = Stage::new("job");
        let target = self.target.hub(wanted)?;
        stage.say("registering devices");
        let accounts = target.accounts(self.devices as usize)?;
        let measured = self.measure(&target, &stage);
        let cleaned = target.clean_up(&accounts);
        let mut report = Report::new("job", json!({ "devices": self.devices }));
        report.subjects.push(measured?);
        cleaned?;
        drop((stage, target));
        report.print(format)
    }

    fn measure(&self, target: &Target, stage: &Stage) -> anyhow::Result<Subject> {
        let client = target.rest()?;
        let id = format!("bench-{}", std::process::id());
        let body = json!({
            "jobId": id,
            "type": "scheduleUpdateTwin",
            "queryCondition": "STARTSWITH(deviceId, 'bench-')",
            "updateTwin": { "etag": "*", "tags": { "wave": 2 }, "properties": { "desired": { "interval": 5 } } },
            "maxExecutionTimeInSeconds": 3_600,
        });
        let (before, began) = (target.usage()?, Instant::now());
        client.put(format!("/jobs/v2/{id}")).json(body).send()?;
        stage.say("running the job");
        let bar = output::progress(u64::from(self.devices), "devices");
        let job = loop {
            let job = client.get(format!("/jobs/v2/{id}")).send()?;
            bar.set_position(count(&job, "succeededCount"));
            match job.get("status").and_then(Value::as_str) {
                Some("completed") => break job,
                Some("failed" | "cancelled") | None => anyhow::bail!("the job did not complete: {job}"),
                Some(_) => {}
            }
            anyhow::ensure!(
                began.elapsed() < self.patience.0,
                "the job did not end within {}",
                self.patience
            );
            std::thread::sleep(LOOK);
        };
        let seconds = began.elapsed().as_secs_f64();
        bar.finish_and_clear();
        let done = count(&job, "succeededCount");
        anyhow::ensure!(
            done >= u64::from(self.devices) && count(&job, "failedCount") == 0,
            "the job did not reach every device: {job}"
        );
        let mut subject = Subject::new(&target.name, &target.version);
        subject.add("tookMs", "job took", Unit::Milliseconds, seconds * 1e3);
        subject.add(
            "devicesPerSecond",
            "devices/s",
            Unit::Count,
            done as f64 / seconds,
        );
        if let (Some(before), Some(after)) = (before, target.usage()?) {
            let cpu = after.cpu_seconds() - before.cpu_seconds();
            subject.add(
                "devicesPerServerCpuSecond",
                "devices/server CPU-second",
                Unit::Count,
                done as f64 / cpu.max(f64::EPSILON),
            );
            subject.add(
                "serverRssMaxMib",
                "server memory at most",
                Unit::Mebibytes,
                after.rss_bytes_max as f64 / f64::from(1 << 20),
            );
        }
        Ok(subject)
    }
}

fn count(job: &Value, name: &str) -> u64 {
    let figure = job.pointer(&format!("/deviceJobStatistics/{name}"));
    figure.and_then(Value::as_u64).unwrap_or(0)
}
