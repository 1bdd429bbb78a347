//! States of modules and when they are started again (edge.md 3.4, ADR 0070).
//!
//! Pauses are counted on the monotonic clock from the moment at which an end was seen; only for what ended before this
//! daemon started is the wall clock asked, and when its answer makes no sense (the end lies in the future) the module is
//! started at once. A wrong clock can shorten a pause, never make one endless.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holdfast_model::Timestamp;
use serde::{Deserialize, Serialize};

use crate::manifest::{DesiredStatus, RestartPolicy};
use crate::runtime::{Container, ContainerState, Health};

/// `runtimeStatus` of a module (edge.md 2.6).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RuntimeStatus {
    /// Not known, or no container yet.
    Unknown,
    /// Ended; is started again after a pause.
    Backoff,
    /// Runs.
    Running,
    /// Runs, and its health check fails.
    Unhealthy,
    /// Ended with exit code 0, or never started, or was to be stopped.
    Stopped,
    /// Ended with another exit code and is not started again.
    Failed,
    /// The engine gave it up.
    Dead,
}

impl RuntimeStatus {
    /// As reported.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            RuntimeStatus::Unknown => "unknown",
            RuntimeStatus::Backoff => "backoff",
            RuntimeStatus::Running => "running",
            RuntimeStatus::Unhealthy => "unhealthy",
            RuntimeStatus::Stopped => "stopped",
            RuntimeStatus::Failed => "failed",
            RuntimeStatus::Dead => "dead",
        }
    }
}

/// Limits of starting again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RestartRules {
    /// `MaxRestartCount`: after so many a module stays `failed`. 20.
    pub restarts_max: u32,
    /// `IntensiveCareTimeInMinutes`: a module that ran so long begins anew. 10 minutes.
    pub intensive_care: Duration,
    /// `CoolOffTimeUnitInSeconds`: the first pause; each further one is twice as long. 10 s.
    pub cool_off_unit: Duration,
    /// The longest pause. 300 s.
    pub cool_off_max: Duration,
}

impl Default for RestartRules {
    fn default() -> Self {
        RestartRules {
            restarts_max: 20,
            intensive_care: Duration::from_secs(600),
            cool_off_unit: Duration::from_secs(10),
            cool_off_max: Duration::from_secs(300),
        }
    }
}

impl RestartRules {
    /// The pause before the restart that follows `count` earlier ones.
    #[must_use]
    pub fn cool_off(&self, count: u32) -> Duration {
        self.cool_off_unit
            .saturating_mul(2_u32.saturating_pow(count))
            .min(self.cool_off_max)
    }
}

/// What is kept of a module's restarts, also over restarts of the daemon.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RestartRecord {
    /// Restarts since the module last ran for [`RestartRules::intensive_care`].
    #[serde(default)]
    pub count: u32,
    /// Last of them.
    #[serde(default = "never")]
    pub last: Timestamp,
    /// The deployment wanted it stopped when last looked at, so its end is no failure.
    #[serde(default)]
    pub stopped: bool,
}

const fn never() -> Timestamp {
    Timestamp::NEVER
}

impl Default for RestartRecord {
    fn default() -> Self {
        RestartRecord {
            count: 0,
            last: Timestamp::NEVER,
            stopped: false,
        }
    }
}

/// What is to be done about a module's state, its definition being right.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Next {
    /// Nothing now.
    Rest,
    /// Nothing before this time (milliseconds, monotonic).
    Wait(i64),
    /// It ended: start it.
    Start {
        /// It counts as a restart.
        counted: bool,
    },
    /// Stop and start it.
    Restart {
        /// It counts as a restart.
        counted: bool,
    },
    /// The deployment's `status` has changed to running.
    TurnOn,
    /// The deployment's `status` is stopped and the module runs.
    TurnOff,
    /// It has run long enough: its restarts are forgotten.
    Forget,
    /// The engine gave the container up: it has to be removed.
    Discard,
}

/// State of a module and what follows from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// As reported.
    pub status: RuntimeStatus,
    /// What is to be done.
    pub next: Next,
}

/// All that [`judge`] asks about a module.
#[derive(Clone, Debug)]
pub struct Situation<'a> {
    /// As deployed.
    pub desired: DesiredStatus,
    /// As deployed.
    pub policy: RestartPolicy,
    /// The engine's view.
    pub container: &'a Container,
    /// What is kept of it.
    pub record: &'a RestartRecord,
    /// Since when the container is as it is (milliseconds, monotonic; negative: before the daemon started).
    pub since: i64,
    /// It did not survive the machine's own restart, which is no fault of its own.
    pub rebooted: bool,
}

/// The engine's state in the words of edge.md 3.4, health included.
#[must_use]
pub fn engine_status(container: &Container) -> RuntimeStatus {
    match container.state {
        ContainerState::Running if container.health == Some(Health::Unhealthy) => RuntimeStatus::Unhealthy,
        ContainerState::Running => RuntimeStatus::Running,
        ContainerState::Created | ContainerState::Paused | ContainerState::Restarting => {
            RuntimeStatus::Stopped
        }
        ContainerState::Exited | ContainerState::Removing if container.exit_code == 0 => {
            RuntimeStatus::Stopped
        }
        ContainerState::Exited | ContainerState::Removing => RuntimeStatus::Failed,
        ContainerState::Dead => RuntimeStatus::Dead,
        ContainerState::Unknown => RuntimeStatus::Unknown,
    }
}

/// Decides about one module. Pure; `now` is monotonic milliseconds.
#[must_use]
pub fn judge(situation: &Situation<'_>, rules: &RestartRules, now: i64) -> Verdict {
    let status = engine_status(situation.container);
    let verdict = |status, next| Verdict { status, next };
    if status == RuntimeStatus::Dead {
        return verdict(status, Next::Discard);
    }
    let state = situation.container.state;
    if situation.desired == DesiredStatus::Stopped {
        return match state {
            ContainerState::Running | ContainerState::Paused | ContainerState::Restarting => {
                verdict(status, Next::TurnOff)
            }
            // It was to be stopped: the signal that ended it makes no failure.
            ContainerState::Exited => verdict(RuntimeStatus::Stopped, Next::Rest),
            _ => verdict(status, Next::Rest),
        };
    }
    match state {
        ContainerState::Running => running(situation, rules, now),
        ContainerState::Created => verdict(status, Next::Start { counted: false }),
        // `start` does not wake a paused container.
        ContainerState::Paused => verdict(status, Next::Restart { counted: false }),
        ContainerState::Exited => ended(situation, rules, now),
        // The engine is at it.
        ContainerState::Restarting
        | ContainerState::Removing
        | ContainerState::Dead
        | ContainerState::Unknown => verdict(status, Next::Rest),
    }
}

fn running(situation: &Situation<'_>, rules: &RestartRules, now: i64) -> Verdict {
    if situation.container.health == Some(Health::Unhealthy) {
        return match situation.policy {
            RestartPolicy::Never | RestartPolicy::OnFailure => Verdict {
                status: RuntimeStatus::Unhealthy,
                next: Next::Rest,
            },
            RestartPolicy::OnUnhealthy | RestartPolicy::Always => again(
                situation,
                rules,
                rules.cool_off(situation.record.count),
                now,
                Next::Restart { counted: true },
            ),
        };
    }
    let next = if situation.record.stopped {
        Next::Forget
    } else if situation.record.count > 0 {
        let until = situation.since.saturating_add(millis(rules.intensive_care));
        if now >= until {
            Next::Forget
        } else {
            Next::Wait(until)
        }
    } else {
        Next::Rest
    };
    Verdict {
        status: RuntimeStatus::Running,
        next,
    }
}

fn ended(situation: &Situation<'_>, rules: &RestartRules, now: i64) -> Verdict {
    let status = engine_status(situation.container);
    let count = situation.record.count;
    if situation.record.stopped {
        return Verdict {
            status: RuntimeStatus::Stopped,
            next: Next::TurnOn,
        };
    }
    if situation.policy == RestartPolicy::Never {
        return Verdict {
            status,
            next: Next::Rest,
        };
    }
    if situation.rebooted {
        return Verdict {
            status,
            next: Next::Start { counted: false },
        };
    }
    let start = Next::Start { counted: true };
    if situation.container.exit_code == 0 && situation.policy != RestartPolicy::Always {
        // A good end is followed by a start at once; when that becomes a habit, by pauses, but it never becomes a failure.
        return match count.checked_sub(1) {
            None => Verdict {
                status: RuntimeStatus::Stopped,
                next: start,
            },
            Some(earlier) => after(situation, rules.cool_off(earlier), now, start),
        };
    }
    again(situation, rules, rules.cool_off(count), now, start)
}

fn again(
    situation: &Situation<'_>,
    rules: &RestartRules,
    pause: Duration,
    now: i64,
    action: Next,
) -> Verdict {
    if situation.record.count >= rules.restarts_max {
        return Verdict {
            status: RuntimeStatus::Failed,
            next: Next::Rest,
        };
    }
    after(situation, pause, now, action)
}

fn after(situation: &Situation<'_>, pause: Duration, now: i64, action: Next) -> Verdict {
    let due = situation.since.saturating_add(millis(pause));
    Verdict {
        status: RuntimeStatus::Backoff,
        next: if now >= due { action } else { Next::Wait(due) },
    }
}

pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// What is kept on disk of all modules.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RestartFile {
    /// Id of the machine's run in which this was written.
    #[serde(default)]
    pub boot: String,
    /// By module name.
    #[serde(default)]
    pub modules: BTreeMap<String, RestartRecord>,
}

/// What was seen of a container when last looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Seen {
    id: String,
    state: ContainerState,
    health: Option<Health>,
    started_at: Option<Timestamp>,
    finished_at: Option<Timestamp>,
    since: i64,
}

/// Keeps records and the times at which containers changed.
#[derive(Debug)]
pub struct Restarts {
    records: BTreeMap<String, RestartRecord>,
    boot: String,
    seen: BTreeMap<String, Seen>,
    /// The machine was started since the file was written, and containers have not been looked at yet.
    booted: bool,
    rebooted: BTreeSet<String>,
    dirty: bool,
}

impl Restarts {
    /// Goes on from what is kept. `boot` is the id of the machine's current run.
    #[must_use]
    pub fn new(kept: RestartFile, boot: &str) -> Self {
        let booted = kept.boot != boot;
        Restarts {
            records: kept.modules,
            boot: boot.to_owned(),
            seen: BTreeMap::new(),
            booted,
            rebooted: BTreeSet::new(),
            dirty: booted,
        }
    }

    /// Notes what the engine runs. `wall` is asked only about containers that are seen for the first time.
    pub fn see<'a>(
        &mut self,
        containers: impl Iterator<Item = &'a Container> + Clone,
        wall: Timestamp,
        now: i64,
    ) {
        if self.booted {
            self.booted = false;
            self.rebooted = containers
                .clone()
                .filter(|container| container.state == ContainerState::Exited)
                .map(|container| container.name.clone())
                .collect();
        }
        let mut seen = BTreeMap::new();
        for container in containers {
            if container.state == ContainerState::Running {
                self.rebooted.remove(&container.name);
            }
            let since = match self.seen.get(&container.name) {
                Some(before) if before.is(container) => before.since,
                Some(_) => now,
                None => first_seen(container, wall, now),
            };
            seen.insert(container.name.clone(), Seen::new(container, since));
        }
        self.seen = seen;
    }

    /// Notes the state of one module that is seen besides the others.
    pub fn see_one(&mut self, container: &Container, wall: Timestamp, now: i64) {
        let since = match self.seen.get(&container.name) {
            Some(before) if before.is(container) => before.since,
            Some(_) => now,
            None => first_seen(container, wall, now),
        };
        let seen = Seen::new(container, since);
        self.seen.insert(container.name.clone(), seen);
    }

    /// The record of a module.
    #[must_use]
    pub fn record(&self, module: &str) -> RestartRecord {
        self.records.get(module).cloned().unwrap_or_default()
    }

    /// Since when a container is as it is.
    #[must_use]
    pub fn since(&self, module: &str) -> i64 {
        self.seen.get(module).map_or(0, |seen| seen.since)
    }

    /// Whether a module ended because the machine did.
    #[must_use]
    pub fn rebooted(&self, module: &str) -> bool {
        self.rebooted.contains(module)
    }

    /// A module is started; it counts, or it does not.
    pub fn started(&mut self, module: &str, counted: bool, wall: Timestamp) {
        self.rebooted.remove(module);
        if counted {
            let record = self.records.entry(module.to_owned()).or_default();
            record.count = record.count.saturating_add(1);
            record.last = wall;
            record.stopped = false;
            self.dirty = true;
        } else if let Some(record) = self.records.get_mut(module)
            && record.stopped
        {
            record.stopped = false;
            self.dirty = true;
        }
    }

    /// The deployment wants a module stopped.
    pub fn wanted_stopped(&mut self, module: &str) {
        let record = self.records.entry(module.to_owned()).or_default();
        let stopped = RestartRecord {
            stopped: true,
            ..RestartRecord::default()
        };
        if *record != stopped {
            *record = stopped;
            self.dirty = true;
        }
    }

    /// Forgets what was kept of a module.
    pub fn forget(&mut self, module: &str) {
        self.rebooted.remove(module);
        if self.records.remove(module).is_some() {
            self.dirty = true;
        }
    }

    /// What has to be written, if anything has changed since the last call.
    pub fn take_changes(&mut self) -> Option<RestartFile> {
        std::mem::take(&mut self.dirty).then(|| RestartFile {
            boot: self.boot.clone(),
            modules: self.records.clone(),
        })
    }
}

impl Seen {
    fn new(container: &Container, since: i64) -> Self {
        Seen {
            id: container.id.clone(),
            state: container.state,
            health: container.health,
            started_at: container.started_at,
            finished_at: container.finished_at,
            since,
        }
    }

    /// A container that failed, was started and failed again between two looks has changed, too.
    fn is(&self, container: &Container) -> bool {
        let unhealthy = |health| health == Some(Health::Unhealthy);
        self.id == container.id
            && self.state == container.state
            && unhealthy(self.health) == unhealthy(container.health)
            && self.started_at == container.started_at
            && self.finished_at == container.finished_at
    }
}

fn first_seen(container: &Container, wall: Timestamp, now: i64) -> i64 {
    let at = match container.state {
        ContainerState::Running => container.started_at,
        _ => container.finished_at,
    };
    match at {
        Some(at) if at <= wall => now.saturating_sub(millis(wall.since(at))),
        // The clock was set back: a start counts from now, an end is over.
        _ if container.state == ContainerState::Running => now,
        _ => i64::MIN / 2,
    }
}

#[cfg(test)]
mod tests;
