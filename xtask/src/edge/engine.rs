//! A private container engine.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process::{Service, output};

const PATIENCE: Duration = Duration::from_secs(60);

/// A running `dockerd`. Stopped when dropped, and its containers with it.
pub(crate) struct Engine {
    service: Service,
    dir: PathBuf,
}

impl Engine {
    /// Starts an engine that keeps everything below `dir`, in a network namespace if one is named. It leaves the machine's
    /// packet filter and its forwarding alone, and makes no bridge of its own.
    /// Images come from loopback without TLS, and from `insecure_registry`.
    pub(crate) fn start(
        dir: &Path,
        namespace: Option<&str>,
        insecure_registry: Option<&str>,
        log_dir: &Path,
    ) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let mut command = match namespace {
            Some(namespace) => {
                let mut command = Command::new("nsenter");
                command
                    .arg(format!("--net=/run/netns/{namespace}"))
                    .arg("dockerd");
                command
            }
            None => Command::new("dockerd"),
        };
        let host = format!("unix://{}", dir.join("engine.sock").display());
        command.arg("--data-root").arg(dir.join("data"));
        command.arg("--exec-root").arg(dir.join("exec"));
        command.arg("--pidfile").arg(dir.join("engine.pid"));
        command.args([
            "--host",
            &host,
            "--bridge=none",
            "--iptables=false",
            "--ip-forward=false",
        ]);
        command.args(["--ip-masq=false", "--log-level=warn"]);
        if let Some(registry) = insecure_registry {
            command.args(["--insecure-registry", registry]);
        }
        // Whether the machine has a configuration of its own or not.
        std::fs::write(dir.join("daemon.json"), "{}").context("cannot write the engine's configuration")?;
        command.arg("--config-file").arg(dir.join("daemon.json"));
        let service = Service::start("dockerd", &mut command, log_dir)?;
        let mut engine = Self {
            service,
            dir: dir.to_owned(),
        };
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = output(
            engine
                .docker()
                .args(["version", "--format", "{{.Server.Version}}"]),
        ) {
            if !engine.service.is_running() {
                bail!("dockerd ended at its start:\n{}", engine.service.log_tail());
            }
            if Instant::now() > deadline {
                return Err(error.context("dockerd does not answer"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(engine)
    }

    /// Where it listens.
    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.dir.join("engine.sock").display())
    }

    /// The `docker` command, aimed at this engine and with no settings of the person who runs us.
    pub(crate) fn docker(&self) -> Command {
        let mut command = Command::new("docker");
        command
            .env("DOCKER_HOST", self.host())
            .env("DOCKER_CONFIG", self.dir.join("config"))
            // The builder that needs nothing but the engine.
            .env("DOCKER_BUILDKIT", "0");
        command
    }

    /// Removes containers and networks, then stops the engine.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let containers = output(self.docker().args(["ps", "--all", "--quiet"]))?;
        for container in containers.split_whitespace() {
            output(self.docker().args(["rm", "--force", "--volumes", container]))?;
        }
        output(self.docker().args(["network", "prune", "--force"]))?;
        self.service.stop(PATIENCE)?;
        Ok(())
    }
}
