//! `holdfast edge deploy`: gives a manifest to a device and follows what becomes of it.

use std::time::{Duration, Instant};

use clap::Args;
use holdfast_program::failure::{Failure, Kind, find};
use holdfast_program::units::Span;
use serde_json::{Value, json};

use super::check::check;
use super::follow::{Goal, Progress, Standing, starts};
use super::modules::print_modules;
use super::state::{Device, unwell};
use crate::cli::client::Client;
use crate::cli::output::{self, Format, line};
use crate::cli::{Global, deployment};

/// How long a deployment is followed unless told otherwise.
const PATIENCE: &str = "5m";
/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// So long every module has to be as wanted; one that ends soon after its start is noticed.
const SETTLED: Duration = Duration::from_secs(5);
/// So long a device may tell that it fails before that is taken for an answer: its first retry comes after 10 seconds.
const FAILING: Duration = Duration::from_secs(30);

#[derive(Args, Debug)]
pub(in crate::cli) struct DeployArgs {
    /// Id of the edge device
    device: String,
    /// Manifest: JSON, @FILE or - for standard input
    #[arg(long, value_name = "JSON")]
    content: String,
    /// Follow the deployment so long, in seconds or as in 10m; 0 does not follow it. By default 5m, if the device is connected;
    /// without a number 5m, also for a device that has yet to connect
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = PATIENCE, value_parser = patience)]
    wait: Option<Duration>,
    /// Send the manifest without looking at its routes and createOptions first
    #[arg(long)]
    no_check: bool,
}

fn patience(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => text.parse::<Span>().map(|span| span.0),
    }
}

impl DeployArgs {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let modules = deployment::modules(&self.content)?;
        if !self.no_check {
            check(&modules)?;
        }
        let client = global.client()?;
        deployment::send(&client, &self.device, &modules)?;
        let device = Device::read(&client, &self.device)?;
        let goal = Goal::after(&modules, &device);
        let mut ending = Ending {
            id: &self.device,
            modules: &modules,
            goal,
            progress: goal.judge(&device),
            device,
            patience: self.wait.unwrap_or_default(),
        };
        let is_nothing_awaited = goal.agent.is_none() && goal.hub.is_none();
        if is_nothing_awaited || self.wait == Some(Duration::ZERO) {
            return ending.given(global.output(), "given");
        }
        if self.wait.is_none() {
            if !ending.is_connected() {
                return ending.given(global.output(), "waiting");
            }
            ending.patience = patience(PATIENCE).map_err(anyhow::Error::msg)?;
        }
        ending.follow(&client)?;
        ending.tell(global.output())
    }
}

/// How far a deployment has come.
struct Ending<'a> {
    id: &'a str,
    modules: &'a Value,
    goal: Goal,
    device: Device,
    progress: Progress,
    patience: Duration,
}

impl Ending<'_> {
    fn is_connected(&self) -> bool {
        self.device.agent["connectionState"] == "Connected"
    }

    fn module_ids(&self) -> Vec<&str> {
        let modules = self.modules.as_object();
        modules
            .into_iter()
            .flat_map(|all| all.keys())
            .map(String::as_str)
            .collect()
    }

    /// Looks until the device has given its last word, or time is up.
    fn follow(&mut self, client: &Client) -> anyhow::Result<()> {
        let begun = Instant::now();
        let (mut settled, mut failing) = (Standing::new(begun), Standing::new(begun));
        let spinner = output::spinner();
        loop {
            self.progress = self.goal.judge(&self.device);
            let now = Instant::now();
            let is_done = self.progress == Progress::Done;
            let settled = settled.look(is_done.then(|| starts(&self.device)), now);
            let is_failing = matches!(self.progress, Progress::Failing { .. });
            let failing = failing.look(is_failing.then_some(()), now);
            let is_last_word = match self.progress {
                Progress::Awaited(_) | Progress::Unwell { .. } => false,
                Progress::Done => settled >= SETTLED,
                Progress::Failing { .. } => failing >= FAILING,
                Progress::Refused { .. }
                | Progress::TakenBack { .. }
                | Progress::HubRefused { .. }
                | Progress::Superseded { .. } => true,
            };
            let left = self.patience.saturating_sub(begun.elapsed());
            if is_last_word || left.is_zero() {
                spinner.finish_and_clear();
                return Ok(());
            }
            spinner.set_message(self.so_far());
            std::thread::sleep(LOOK.min(left));
            match Device::read(client, self.id) {
                Ok(device) => self.device = device,
                // The manifest is with the hub; one that is away for a moment is asked again.
                Err(error) if find(&error).is_some_and(|failure| failure.kind == Kind::Unavailable) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The modules that are not as wanted, in words.
    fn unwell(&self) -> Option<String> {
        let modules = self.device.modules();
        let texts: Vec<String> = unwell(&modules)
            .into_iter()
            .map(|(name, text)| format!("{name} is {text}"))
            .collect();
        (!texts.is_empty()).then(|| texts.join("; "))
    }

    /// For the line that changes.
    fn so_far(&self) -> String {
        let text = match &self.progress {
            // Pulls have their progress in the descriptions of modules.
            Progress::Awaited(text) => self.unwell().unwrap_or_else(|| text.clone()),
            Progress::Unwell { all, .. } => all.clone(),
            Progress::Failing { code, description } => format!("code {code}: {description}"),
            _ => "every module is as wanted; seeing whether they stay so".to_owned(),
        };
        if self.is_connected() {
            text
        } else {
            format!("{} is not connected; {text}", self.id)
        }
    }

    /// The manifest is with the hub, and that is all that can be said.
    fn given(&self, format: Format, result: &str) -> anyhow::Result<()> {
        let (id, ids) = (self.id, self.module_ids().join(", "));
        let mut sentence = format!("manifest given to {id} ({ids})");
        if result == "waiting" {
            let seen = match self.device.agent["lastActivityTime"].as_str() {
                Some(at) if !at.starts_with("0001-") => format!("last seen {at}"),
                _ => "never seen".to_owned(),
            };
            sentence.push_str(&format!(
                "; the device is not connected ({seen}) and takes it when it connects"
            ));
        }
        sentence.push_str(&format!("; what becomes of it: holdfast edge status {id}"));
        format.outcome(&sentence, &self.object(result, ""))
    }

    fn object(&self, result: &str, description: &str) -> Value {
        json!({
            "deviceId": self.id,
            "modules": self.module_ids(),
            "result": result,
            "description": description,
            "status": self.device.status(),
        })
    }

    /// Prints what has become of it; a failure unless all is well.
    fn tell(&self, format: Format) -> anyhow::Result<()> {
        let (result, failure) = self.judgement();
        let description = failure.as_ref().map_or("", |failure| &failure.message);
        match format {
            Format::Json => format.object(&self.object(result, description))?,
            Format::Table => {
                if failure.is_none() {
                    line(&format!("{} runs the deployment{}", self.id, self.versions()))?;
                }
                print_modules(&self.device.modules())?;
            }
        }
        failure.map_or(Ok(()), |failure| Err(failure.into()))
    }

    /// In brackets, with a space in front.
    fn versions(&self) -> String {
        let versions: Vec<String> = [(super::AGENT, self.goal.agent), (super::HUB, self.goal.hub)]
            .into_iter()
            .filter_map(|(module, version)| Some(format!("{module} version {}", version?)))
            .collect();
        format!(" ({})", versions.join(", "))
    }

    /// A word for scripts, and what to tell people unless all is well.
    fn judgement(&self) -> (&'static str, Option<Failure>) {
        let (id, versions) = (self.id, self.versions());
        let within = Span(self.patience);
        let failed = |text: String, hint: String| Some(Failure::new(Kind::Failed, text).hint(hint));
        match &self.progress {
            Progress::Done => ("done", None),
            Progress::Refused { code, description }
            | Progress::Failing {
                code: code @ (400 | 412 | 417),
                description,
            } => (
                "refused",
                failed(
                    format!("{id} refused the deployment{versions}, code {code}: {description}"),
                    "its modules are as they were before; correct the manifest and deploy it again".to_owned(),
                ),
            ),
            Progress::TakenBack { description } => (
                "takenBack",
                failed(
                    format!("{id} gave the deployment{versions} up: {description}"),
                    "the deployment before runs again; correct the manifest and deploy it again".to_owned(),
                ),
            ),
            Progress::Failing { code, description } => (
                "failing",
                failed(
                    format!("{id} cannot carry out the deployment{versions}, code {code}: {description}"),
                    format!(
                        "the device goes on trying: mend what it names (image, registry, credentials, engine), or correct the manifest and deploy it again; how it stands: holdfast edge status {id}"
                    ),
                ),
            ),
            Progress::Unwell { module, all } => (
                "unwell",
                failed(
                    format!("{id} has the deployment{versions}, but not all of its modules are as wanted after {within}: {all}"),
                    format!(
                        "what the module wrote: holdfast edge logs {id} {module}; the device may yet go back to the deployment before: holdfast edge status {id}"
                    ),
                ),
            ),
            Progress::HubRefused { code, description } => (
                "hubRefused",
                failed(
                    format!("the edge hub of {id} did not take all of its configuration{versions}, code {code}: {description}"),
                    "the modules run, and routes that compile are in force; correct those of $edgeHub and deploy the manifest again".to_owned(),
                ),
            ),
            Progress::Superseded { module, version } => (
                "superseded",
                Some(
                    Failure::new(
                        Kind::Conflict,
                        format!("another deployment came for {id}{versions}: {module} is to have version {version} now"),
                    )
                    .hint("automatic deployments write over what is given to one device: holdfast deployment list"),
                ),
            ),
            Progress::Awaited(text) => ("timedOut", Some(self.timed_out(text, &within))),
        }
    }

    fn timed_out(&self, text: &str, within: &Span) -> Failure {
        let (id, versions) = (self.id, self.versions());
        let mut message =
            format!("{id} has not carried out the deployment{versions} within {within}: {text}");
        if let Some(unwell) = self.unwell() {
            message.push_str(&format!("; {unwell}"));
        }
        let hint = if self.is_connected() {
            format!(
                "it may still be pulling images; how it stands: holdfast edge status {id}; to wait longer: --wait"
            )
        } else {
            format!(
                "it is not connected, and takes the deployment when it is: start holdfast-edge on the device, and look there with `holdfast-edge check`; when it was last seen: holdfast edge status {id}"
            )
        };
        Failure::new(Kind::Unavailable, message).hint(hint)
    }
}
