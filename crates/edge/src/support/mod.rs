//! Support bundles: everything that someone who helps needs, in one zip file (edge.md section 17).

mod zip;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_agent::host::{BundleRequest, TemporaryFile};
use holdfast_agent::runtime::{LogQuery, ModuleRuntime};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::sync::Mutex;

use holdfast_program::files;
use zip::ZipWriter;

/// Bytes of one log; what comes after is left out and said so.
const LOG_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Makes bundles, one at a time.
pub struct SupportBundle {
    runtime: Arc<dyn ModuleRuntime>,
    network: String,
    folder: PathBuf,
    config: Option<PathBuf>,
    making: Mutex<()>,
    number: AtomicU64,
}

impl SupportBundle {
    /// Of this engine and network; bundles are made below `home`. With the daemon's configuration file they hold what
    /// `check` says of it.
    #[must_use]
    pub fn new(
        runtime: Arc<dyn ModuleRuntime>,
        network: String,
        home: &Path,
        config: Option<PathBuf>,
    ) -> Self {
        let folder = home.join("bundles");
        // What an earlier process left behind.
        let _ = std::fs::remove_dir_all(&folder);
        SupportBundle {
            runtime,
            network,
            folder,
            config,
            making: Mutex::new(()),
            number: AtomicU64::new(0),
        }
    }

    /// Makes one.
    ///
    /// # Errors
    /// When the file cannot be written or the engine not be asked for its containers.
    pub async fn make(&self, request: &BundleRequest) -> Result<TemporaryFile, String> {
        let _making = self.making.lock().await;
        files::make_dir(&self.folder, 0o700).map_err(|error| error.to_string())?;
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let file = TemporaryFile(self.folder.join(format!("{number}.zip")));
        let mut zip = ZipWriter::create(&file.0).map_err(|error| error.to_string())?;
        self.fill(&mut zip, request)
            .await
            .map_err(|error| format!("the bundle cannot be written: {error}"))?;
        zip.finish()
            .map_err(|error| format!("the bundle cannot be written: {error}"))?;
        Ok(file)
    }

    async fn fill(&self, zip: &mut ZipWriter, request: &BundleRequest) -> std::io::Result<()> {
        own_log(zip, request).await?;
        let containers = match self.runtime.list().await {
            Ok(containers) => containers,
            Err(error) => {
                // What there is is still worth sending.
                zip.begin("engine.txt")?;
                zip.write(error.to_string().as_bytes())?;
                zip.end()?;
                Vec::new()
            }
        };
        for container in &containers {
            if !request.edge_runtime_only {
                self.log(zip, &container.name, request).await?;
            }
            let told = self.runtime.inspect(&container.name).await;
            let told = told
                .map(redacted)
                .unwrap_or_else(|error| Value::String(error.to_string()));
            entry(zip, &format!("inspect/{}.json", container.name), &told)?;
        }
        let told = self.runtime.inspect_network(&self.network).await;
        let told = told.unwrap_or_else(|error| Value::String(error.to_string()));
        entry(zip, &format!("network/{}.json", self.network), &told)?;
        self.check(zip).await
    }

    async fn log(&self, zip: &mut ZipWriter, name: &str, request: &BundleRequest) -> std::io::Result<()> {
        let query = LogQuery {
            since: request.since,
            until: request.until,
            timestamps: true,
            ..LogQuery::default()
        };
        zip.begin(&format!("logs/{name}_log.txt"))?;
        let mut left = LOG_BYTES_MAX;
        match self.runtime.logs(name, &query).await {
            Ok(mut log) => loop {
                match log.next().await {
                    Ok(Some(chunk)) => {
                        let length = chunk.bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                        zip.write(&chunk.bytes[..length])?;
                        left -= length as u64;
                        if left == 0 {
                            zip.write(b"\n[the rest is left out]\n")?;
                            break;
                        }
                    }
                    Ok(None) => break,
                    Err(error) => {
                        zip.write(format!("\n[the log broke off: {error}]\n").as_bytes())?;
                        break;
                    }
                }
            },
            Err(error) => zip.write(format!("[no log: {error}]\n").as_bytes())?,
        }
        zip.end()
    }

    /// What `check` finds, from a process of its own: it asks this one over its sockets.
    async fn check(&self, zip: &mut ZipWriter) -> std::io::Result<()> {
        let (Ok(program), Some(config)) = (std::env::current_exe(), &self.config) else {
            return Ok(());
        };
        let output = tokio::process::Command::new(program)
            .args(["check", "--output", "json", "--config"])
            .arg(config)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(std::time::Duration::from_secs(60), output).await;
        zip.begin("check.json")?;
        if let Ok(Ok(output)) = output {
            zip.write(&output.stdout)?;
        }
        zip.end()
    }
}

/// The daemon's own log, from the journal.
async fn own_log(zip: &mut ZipWriter, request: &BundleRequest) -> std::io::Result<()> {
    let mut command = tokio::process::Command::new("journalctl");
    command.args(["--no-pager", "--output=short-iso-precise", "--unit=holdfast-edge"]);
    if let Some(since) = request.since {
        command.arg(format!("--since=@{}", since.as_seconds()));
    }
    if let Some(until) = request.until {
        command.arg(format!("--until=@{}", until.as_seconds()));
    }
    zip.begin("logs/holdfast-edge.txt")?;
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    match child {
        Err(error) => zip.write(format!("[no journal: {error}]\n").as_bytes())?,
        Ok(mut child) => {
            if let Some(output) = child.stdout.take() {
                let mut output = output.take(LOG_BYTES_MAX);
                let mut piece = vec![0; 64 * 1024];
                loop {
                    let length = output.read(&mut piece).await?;
                    if length == 0 {
                        break;
                    }
                    zip.write(&piece[..length])?;
                }
            }
        }
    }
    zip.end()
}

fn entry(zip: &mut ZipWriter, name: &str, value: &Value) -> std::io::Result<()> {
    zip.begin(name)?;
    zip.write(serde_json::to_string_pretty(value)?.as_bytes())?;
    zip.end()
}

/// Variables whose names speak of secrets lose their values: bundles are sent to others.
fn redacted(mut told: Value) -> Value {
    let env = told.pointer_mut("/Config/Env").and_then(Value::as_array_mut);
    for variable in env.into_iter().flatten() {
        let Some((name, _)) = variable.as_str().and_then(|text| text.split_once('=')) else {
            continue;
        };
        let upper = name.to_ascii_uppercase();
        let speaks = [
            "KEY",
            "SECRET",
            "PASSWORD",
            "PASSWD",
            "TOKEN",
            "CONNECTIONSTRING",
            "CONNECTION_STRING",
            "SAS",
        ];
        if speaks.iter().any(|word| upper.contains(word)) {
            *variable = Value::String(format!("{name}=***"));
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn variables_that_speak_of_secrets_lose_their_values() {
        let told =
            redacted(json!({"Config": {"Env": ["A=1", "MY_PASSWORD=x=y", "storageConnectionString=z"]}}));
        assert_eq!(
            told["Config"]["Env"],
            json!(["A=1", "MY_PASSWORD=***", "storageConnectionString=***"])
        );
    }
}
