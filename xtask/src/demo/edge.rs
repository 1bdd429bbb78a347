//! `cargo xtask demo --edge`: a hub, and an edge device with real containers.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::hub::Hub;
use super::story::Story;
use super::{shorten, text};
use crate::edge::engine::Engine;
use crate::edge::images;
use crate::edge::network::Network;
use crate::edge::registry::{PASSWORD, Registry, USER};
use crate::process::{Service, output};
use crate::{paths, say, setup};

const DEVICE: &str = "demo-edge";
/// How long the story waits for one thing; the first pull of an image is the longest.
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) fn run(keep: bool) -> Result<()> {
    let story = tell(keep)?;
    say(&story.summary());
    if story.failed() > 0 {
        bail!("{} of {} steps of the demo failed", story.failed(), story.steps());
    }
    Ok(())
}

/// Everything that runs for the story, in the order in which it is to end.
struct Site {
    edge: Option<Service>,
    engine: Engine,
    registry: Registry,
    hub: Hub,
    network: Network,
    dir: PathBuf,
}

fn tell(keep: bool) -> Result<Story> {
    setup::containers()?;
    setup::build_holdfast()?;
    setup::build_edge()?;
    let images = images::storage()?;
    let mut story = Story::begin();
    let Some(mut site) = story.step(
        "Start a hub, a registry and an empty machine with a container engine",
        || {
            let site = Site::start(&images)?;
            let detail = format!(
                "hub on {}, registry on {} (with user and password), the machine is network namespace {}",
                site.hub.host(),
                site.registry.address(),
                site.network.namespace()
            );
            Ok((site, detail))
        },
    ) else {
        return Ok(story);
    };
    if site.with_device(&mut story).is_none() {
        say(&format!(
            "The story cannot go on. The device's log:\n{}",
            site.log_tail()
        ));
    } else if keep {
        say(&site.how_to_use());
        site.hub.wait_for_person()?;
    }
    story.step("Stop everything", || {
        site.stop()?;
        Ok(((), "no container, network or process is left".to_owned()))
    });
    Ok(story)
}

impl Site {
    fn start(images: &Path) -> Result<Self> {
        // Short, since paths of unix sockets are.
        let dir = std::env::temp_dir().join(format!("hfd{}", std::process::id()));
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let network = Network::make()?;
        let registry = Registry::start(images, network.address(), &dir.join("registry"), &paths::logs())?;
        let hub = Hub::start_on(network.address())?;
        let address = registry.address();
        let engine = Engine::start(
            &dir.join("e"),
            Some(&network.namespace()),
            Some(&address),
            &paths::logs(),
        )?;
        Ok(Self {
            edge: None,
            engine,
            registry,
            hub,
            network,
            dir,
        })
    }

    /// The part of the story that needs a device. `None` when it could not be told to its end.
    fn with_device(&mut self, story: &mut Story) -> Option<()> {
        story.step("Register an edge device: holdfast edge create", || {
            let config = self.config().display().to_string();
            let args = [
                "edge",
                "create",
                DEVICE,
                "--hostname",
                DEVICE,
                "--config",
                &config,
            ];
            self.hub.text(&args)?;
            Ok(((), format!("{DEVICE}; its configuration is in {config}")))
        })?;
        story.step("Start holdfast-edge on the machine", || {
            self.start_edge()?;
            Ok((
                (),
                "it has provisioned itself and answers `holdfast-edge list`".to_owned(),
            ))
        })?;
        let mut monitor = story.step("Watch the hub's events with `holdfast monitor`", || {
            Ok((self.hub.monitor()?, "watching".to_owned()))
        })?;
        story.step(
            "Deploy a sensor and a Python module: holdfast edge deploy",
            || {
                let file = self.dir.join("deployment.json");
                std::fs::write(&file, self.manifest().to_string())?;
                let content = format!("@{}", file.display());
                // The next step follows it.
                self.hub
                    .text(&["edge", "deploy", DEVICE, "--content", &content, "--wait", "0"])?;
                Ok(((), "the hub has it".to_owned()))
            },
        )?;
        story.step("The device pulls the images and starts the containers", || {
            let modules = self.wait_running()?;
            Ok(((), modules))
        })?;
        story.step(
            "Readings go from the sensor through the Python module to the hub",
            || {
                let line = monitor.wait_lines("an alert in the monitor", PATIENCE, |lines| {
                    lines
                        .iter()
                        .find(|line| line.contains("alert") && line.contains("temperature"))
                        .cloned()
                })?;
                // What the module made of it stands at the end of a long line.
                let shown = line.find("\"alert\"").map_or(line.as_str(), |at| &line[at..]);
                Ok(((), shorten(shown)))
            },
        );
        story.step("Call a direct method of the Python module", || {
            let args = [
                "method",
                "invoke",
                DEVICE,
                "echo",
                "--module",
                "filter",
                "--payload",
                "{\"hello\":1}",
            ];
            let answer = self.hub.json(&[&args[..], &["--output", "json"]].concat())?;
            if answer["status"] != 200 {
                bail!("the answer is {answer}");
            }
            Ok(((), format!("it answered {}", answer["payload"])))
        });
        story.step("Read a module's log from afar: holdfast edge logs", || {
            let log = self
                .hub
                .text(&["edge", "logs", DEVICE, "sensor", "--tail", "2"])?;
            if !log.contains("acknowledged") {
                bail!("it says: {log}");
            }
            Ok(((), shorten(log.trim().lines().last().unwrap_or_default())))
        });
        story.step("Ask for the device's state: holdfast edge status", || {
            let status = self.hub.text(&["edge", "status", DEVICE])?;
            Ok(((), status.trim().replace('\n', "\n    ")))
        });
        story.step("What the daemon costs", || {
            let pid = self.edge.as_ref().context("it does not run")?.pid();
            let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            let line = rollup
                .lines()
                .find(|line| line.starts_with("Pss:"))
                .unwrap_or_default();
            let words: Vec<&str> = line.split_whitespace().collect();
            Ok((
                (),
                format!("{} KiB of memory (PSS)", words.get(1).unwrap_or(&"?")),
            ))
        });
        story.step("Stop the monitor", || {
            monitor.stop(PATIENCE)?;
            Ok(((), "stopped".to_owned()))
        });
        Some(())
    }

    /// The device's configuration.
    fn config(&self) -> PathBuf {
        self.dir.join("edge.toml")
    }

    fn start_edge(&mut self) -> Result<()> {
        // Where the engine is and where sockets go: what on a machine of its own stands as by default.
        let dir = self.dir.display();
        let places = format!(
            "\n[engine]\nsocket = \"{}\"\n\
             [api]\nworkload = \"unix://{dir}/workload.sock\"\nmanagement = \"unix://{dir}/mgmt.sock\"\n",
            self.engine.host()
        );
        let mut file = File::options()
            .append(true)
            .open(self.config())
            .context("cannot open the configuration")?;
        file.write_all(places.as_bytes())?;
        let mut command = self.network.inside(&paths::edge());
        command
            .arg("run")
            .arg("--home")
            .arg(self.dir.join("home"))
            .arg("--config")
            .arg(self.config());
        let mut service = Service::start("holdfast-edge", &mut command, &paths::logs())?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut list = self.network.inside(&paths::edge());
            list.arg("list").arg("--config").arg(self.config());
            match output(&mut list) {
                Ok(_) => break,
                Err(_) if !service.is_running() => bail!("holdfast-edge ended:\n{}", service.log_tail()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
        self.edge = Some(service);
        Ok(())
    }

    fn manifest(&self) -> Value {
        let registry = self.registry.address();
        let module = |image: &str, env: Value| {
            json!({
                "type": "docker", "version": "1.0", "status": "running", "restartPolicy": "always",
                "settings": {"image": format!("{registry}/{image}"), "createOptions": "{}"}, "env": env,
            })
        };
        let sensor = module(
            "holdfast-simulated-sensor:1",
            json!({"MessageCount": {"value": -1}, "MessageDelay": {"value": "00:00:01"}}),
        );
        json!({"modulesContent": {
            "$edgeAgent": {"properties.desired": {
                "schemaVersion": "1.1",
                "runtime": {"type": "docker", "settings": {"registryCredentials": {
                    "demo": {"address": registry, "username": USER, "password": PASSWORD}}}},
                "systemModules": {
                    "edgeAgent": {"type": "docker", "settings": {"image": "holdfast-edge"}},
                    "edgeHub": {"type": "docker", "status": "running", "restartPolicy": "always",
                                "settings": {"image": "holdfast-edge"}},
                },
                "modules": {"sensor": sensor, "filter": module("python-module:1", json!({}))},
            }},
            "$edgeHub": {"properties.desired": {
                "schemaVersion": "1.1",
                "routes": {
                    "sensorToFilter": "FROM /messages/modules/sensor/outputs/temperatureOutput \
                                       INTO BrokeredEndpoint(\"/modules/filter/inputs/readings\")",
                    "alertsToHub": "FROM /messages/modules/filter/outputs/alerts INTO $upstream",
                },
                "storeAndForwardConfiguration": {"timeToLiveSecs": 7200},
            }},
        }})
    }

    /// Waits until both modules are reported as running; a line about each.
    fn wait_running(&self) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let twin = self.hub.json(&[
                "twin",
                "show",
                DEVICE,
                "--module",
                "$edgeAgent",
                "--output",
                "json",
            ])?;
            let reported = &twin["properties"]["reported"];
            let running = |name: &str| reported["modules"][name]["runtimeStatus"] == "running";
            if running("sensor") && running("filter") && reported["lastDesiredStatus"]["code"] == 200 {
                let lines = ["sensor", "filter"].map(|name| {
                    let module = &reported["modules"][name];
                    format!("{name} runs {}", text(&module["settings"], "image"))
                });
                return Ok(lines.join(", "));
            }
            if Instant::now() > deadline {
                bail!(
                    "after {PATIENCE:?} the device reports {reported}\n{}",
                    self.log_tail()
                );
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn log_tail(&self) -> String {
        self.edge.as_ref().map(Service::log_tail).unwrap_or_default()
    }

    fn how_to_use(&self) -> String {
        let namespace = self.network.namespace();
        format!(
            "{}\nOn the machine:\n  nsenter --net=/run/netns/{namespace} {} list --config {}\n  DOCKER_HOST={} docker ps",
            self.hub.how_to_use(),
            paths::edge().display(),
            self.config().display(),
            self.engine.host(),
        )
    }

    fn stop(&mut self) -> Result<()> {
        if let Some(mut edge) = self.edge.take() {
            let status = edge.stop(Duration::from_secs(60))?;
            if !status.success() {
                bail!("holdfast-edge ended with {status}\n{}", edge.log_tail());
            }
        }
        self.engine.stop()?;
        self.hub.stop()?;
        self.hub.remove_data();
        std::fs::remove_dir_all(&self.dir).with_context(|| format!("cannot remove {}", self.dir.display()))
    }
}
