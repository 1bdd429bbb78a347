//! What has become of a deployment, by what its device reports (edge.md 2.6, 6.2).

use std::time::Duration;

use holdfast_model::Timestamp;
use serde_json::Value;

use super::state::{Device, unwell};
use super::{AGENT, HUB};

/// The versions of desired properties that are waited for; `None` when the manifest says nothing of that module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Goal {
    pub agent: Option<u64>,
    pub hub: Option<u64>,
}

/// What has become of a deployment until now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Progress {
    /// The device has not told yet; what of it is waited for.
    Awaited(String),
    /// It has carried it out, but these modules are not as wanted; the first of them by name.
    Unwell { module: String, all: String },
    /// It could not carry it out, and may try again.
    Failing { code: i64, description: String },
    /// It will not carry it out, and has left everything as it was.
    Refused { code: i64, description: String },
    /// It has gone back to the deployment before.
    TakenBack { description: String },
    /// The modules are as wanted; the edge hub did not take all of its configuration.
    HubRefused { code: i64, description: String },
    /// Somebody has deployed something else meanwhile.
    Superseded { module: &'static str, version: u64 },
    /// Everything is as wanted.
    Done,
}

impl Goal {
    /// What is waited for after a manifest for these modules was put into the twins.
    pub(super) fn after(modules: &Value, device: &Device) -> Self {
        let version = |module: &str, twin: &Value| modules.get(module).and_then(|_| desired_version(twin));
        Goal {
            agent: version(AGENT, &device.agent),
            hub: version(HUB, &device.hub),
        }
    }

    /// What the device tells of it.
    pub(super) fn judge(self, device: &Device) -> Progress {
        for (module, goal, twin) in [(AGENT, self.agent, &device.agent), (HUB, self.hub, &device.hub)] {
            if let (Some(goal), Some(version)) = (goal, desired_version(twin))
                && version > goal
            {
                return Progress::Superseded { module, version };
            }
        }
        if let Some(progress) = self.agent.and_then(|goal| of_agent(goal, device)) {
            return progress;
        }
        self.hub
            .filter(|_| hub_is_wanted(device))
            .and_then(|goal| of_hub(goal, device))
            .unwrap_or(Progress::Done)
    }
}

fn desired_version(twin: &Value) -> Option<u64> {
    twin["properties"]["desired"]["$version"].as_u64()
}

/// What a system module says of its last desired properties.
struct Told<'a> {
    version: Option<u64>,
    code: Option<i64>,
    description: &'a str,
}

impl<'a> Told<'a> {
    fn by(twin: &'a Value) -> Self {
        let reported = &twin["properties"]["reported"];
        Told {
            version: reported["lastDesiredVersion"].as_u64(),
            code: reported["lastDesiredStatus"]["code"].as_i64(),
            description: reported["lastDesiredStatus"]["description"]
                .as_str()
                .unwrap_or_default(),
        }
    }

    fn awaited(&self, module: &str, goal: u64) -> Progress {
        let so_far = match (self.version, self.code) {
            (Some(version), Some(code)) => format!("so far it tells of {version} (code {code})"),
            _ => "it has told nothing yet".to_owned(),
        };
        Progress::Awaited(format!(
            "waiting for {module} to tell of version {goal}; {so_far}"
        ))
    }
}

/// What is to be said of the agent; `None` when all is well.
fn of_agent(goal: u64, device: &Device) -> Option<Progress> {
    let told = Told::by(&device.agent);
    let description = told.description.to_owned();
    let is_refusal = matches!(told.code, Some(400 | 412 | 417));
    if told.version != Some(goal) {
        // Agents of others tell of a refused deployment under the version before it (edge.md 2.6). It may also be the one
        // before that is told of just now; then the next word follows soon.
        if let (true, Some(code)) = (is_refusal && told_since_deployed(&device.agent), told.code) {
            return Some(Progress::Failing { code, description });
        }
        return Some(told.awaited(AGENT, goal));
    }
    match told.code {
        Some(200) => of_modules(device),
        Some(code) if is_refusal => Some(Progress::Refused { code, description }),
        Some(500) if description.contains("was taken back") => Some(Progress::TakenBack { description }),
        None | Some(406) => Some(told.awaited(AGENT, goal)),
        Some(code) => Some(Progress::Failing { code, description }),
    }
}

/// Whether the agent's status was reported after the desired properties were written.
fn told_since_deployed(agent: &Value) -> bool {
    let properties = &agent["properties"];
    let at = |metadata: &Value| metadata["$lastUpdated"].as_str().and_then(Timestamp::parse);
    let written = at(&properties["desired"]["$metadata"]);
    let told = at(&properties["reported"]["$metadata"]["lastDesiredStatus"]);
    matches!((written, told), (Some(written), Some(told)) if told >= written)
}

fn of_modules(device: &Device) -> Option<Progress> {
    let rows = device.modules();
    let unwell = unwell(&rows);
    let (module, _) = unwell.first()?;
    let all: Vec<String> = unwell
        .iter()
        .map(|(name, text)| format!("{name} is {text}"))
        .collect();
    Some(Progress::Unwell {
        module: (*module).to_owned(),
        all: all.join("; "),
    })
}

fn hub_is_wanted(device: &Device) -> bool {
    let hub = &device.agent["properties"]["desired"]["systemModules"]["edgeHub"];
    hub.is_object() && hub["status"] != "stopped"
}

fn of_hub(goal: u64, device: &Device) -> Option<Progress> {
    let told = Told::by(&device.hub);
    match (told.version, told.code) {
        (Some(version), Some(200)) if version == goal => None,
        (Some(version), Some(code)) if version == goal => Some(Progress::HubRefused {
            code,
            description: told.description.to_owned(),
        }),
        _ => Some(told.awaited(HUB, goal)),
    }
}

/// How often each module was started, to notice one that does not stay up.
pub(super) fn starts(device: &Device) -> Vec<(String, Value, Value)> {
    device
        .modules()
        .into_iter()
        .map(|mut module| {
            let name = module["moduleId"].as_str().unwrap_or_default().to_owned();
            (
                name,
                module["restartCount"].take(),
                module["lastStartTimeUtc"].take(),
            )
        })
        .collect()
}

/// How long something has been so.
#[derive(Debug)]
pub(super) struct Standing<T> {
    what: Option<T>,
    since: std::time::Instant,
}

impl<T: PartialEq> Standing<T> {
    pub(super) fn new(now: std::time::Instant) -> Self {
        Standing {
            what: None,
            since: now,
        }
    }

    /// How long it has been `what`, which it is now; nothing when it is `None`.
    pub(super) fn look(&mut self, what: Option<T>, now: std::time::Instant) -> Duration {
        if what.is_none() || self.what != what {
            self.what = what;
            self.since = now;
        }
        now.saturating_duration_since(self.since)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::state::tests::device;
    use super::*;

    const GOAL: Goal = Goal {
        agent: Some(4),
        hub: Some(7),
    };

    /// A device that tells this of version 4, with all modules as wanted.
    fn telling(version: u64, code: i64, description: &str) -> Device {
        let mut device = device();
        let reported = &mut device.agent["properties"]["reported"];
        reported["lastDesiredVersion"] = version.into();
        reported["lastDesiredStatus"] = json!({"code": code, "description": description});
        reported["modules"] = json!({
            "sensor": {"runtimeStatus": "running", "restartCount": 0, "exitCode": 0},
            "late": {"runtimeStatus": "stopped", "exitCode": 0},
        });
        device.agent["properties"]["desired"]["systemModules"]["edgeHub"] = json!({"status": "running"});
        device.agent["properties"]["reported"]["systemModules"]["edgeHub"] =
            json!({"runtimeStatus": "running"});
        device.hub["properties"]["reported"]["lastDesiredStatus"] = json!({"code": 200, "description": ""});
        device
    }

    fn awaits(progress: &Progress, module: &str) -> bool {
        matches!(progress, Progress::Awaited(text) if text.contains(module))
    }

    #[test]
    fn done_when_both_tell_of_it_and_every_module_is_as_wanted() {
        assert_eq!(GOAL.judge(&telling(4, 200, "")), Progress::Done);
    }

    #[test]
    fn what_was_told_of_the_version_before_does_not_count() {
        for code in [200, 400, 500] {
            let progress = GOAL.judge(&telling(3, code, "old"));
            assert!(awaits(&progress, "$edgeAgent"), "{progress:?}");
        }
        let mut device = telling(4, 200, "");
        device.hub["properties"]["reported"]["lastDesiredVersion"] = 6.into();
        assert!(awaits(&GOAL.judge(&device), "$edgeHub"));
        device.agent["properties"]["reported"] = json!({});
        assert!(awaits(&GOAL.judge(&device), "nothing yet"));
    }

    #[test]
    fn refusals_of_other_agents_are_told_under_the_version_before() {
        let mut device = telling(3, 400, "no");
        for (at, is_refusal) in [("2026-03-01T09:59:59Z", false), ("2026-03-01T10:00:01Z", true)] {
            device.agent["properties"]["reported"]["$metadata"] =
                json!({"lastDesiredStatus": {"$lastUpdated": at}});
            let progress = GOAL.judge(&device);
            assert_eq!(
                matches!(progress, Progress::Failing { code: 400, .. }),
                is_refusal,
                "{progress:?}"
            );
        }
    }

    #[test]
    fn every_code_has_its_meaning() {
        let judge = |code, text: &str| GOAL.judge(&telling(4, code, text));
        let description = "x".to_owned();
        for code in [400, 412, 417] {
            let description = description.clone();
            assert_eq!(judge(code, "x"), Progress::Refused { code, description });
        }
        assert_eq!(
            judge(500, "x"),
            Progress::Failing {
                code: 500,
                description
            }
        );
        assert!(awaits(&judge(406, "Agent is not running"), "$edgeAgent"));
        let text = "Deployment 4 was taken back to deployment 3: broken does not run";
        let description = text.to_owned();
        assert_eq!(judge(500, text), Progress::TakenBack { description });
    }

    #[test]
    fn modules_come_before_the_edge_hub() {
        let mut device = telling(4, 200, "");
        let status = json!({"code": 400, "description": "route up: no"});
        device.hub["properties"]["reported"]["lastDesiredStatus"] = status;
        let description = "route up: no".to_owned();
        assert_eq!(
            GOAL.judge(&device),
            Progress::HubRefused {
                code: 400,
                description
            }
        );
        device.agent["properties"]["reported"]["modules"]["sensor"]["runtimeStatus"] = "backoff".into();
        let progress = GOAL.judge(&device);
        assert!(
            matches!(&progress, Progress::Unwell { module, .. } if module == "sensor"),
            "{progress:?}"
        );
    }

    #[test]
    fn an_edge_hub_that_is_not_wanted_tells_nothing() {
        let mut device = telling(4, 200, "");
        device.hub["properties"]["reported"] = json!({});
        device.agent["properties"]["desired"]["systemModules"]["edgeHub"] = json!({"status": "stopped"});
        device.agent["properties"]["reported"]["systemModules"]["edgeHub"] =
            json!({"runtimeStatus": "stopped"});
        assert_eq!(GOAL.judge(&device), Progress::Done);
    }

    #[test]
    fn another_deployment_ends_the_waiting() {
        let mut device = telling(3, 200, "");
        device.agent["properties"]["desired"]["$version"] = 5.into();
        let superseded = |module, version| Progress::Superseded { module, version };
        assert_eq!(GOAL.judge(&device), superseded("$edgeAgent", 5));
        device.agent["properties"]["desired"]["$version"] = 4.into();
        device.hub["properties"]["desired"]["$version"] = 8.into();
        assert_eq!(GOAL.judge(&device), superseded("$edgeHub", 8));
    }

    #[test]
    fn a_manifest_without_system_modules_has_nothing_to_wait_for() {
        let goal = Goal::after(&json!({"sensor": {}}), &device());
        assert_eq!(
            goal,
            Goal {
                agent: None,
                hub: None
            }
        );
        assert_eq!(goal.judge(&device()), Progress::Done);
        assert_eq!(
            Goal::after(&json!({"$edgeAgent": {}, "$edgeHub": {}}), &device()),
            GOAL
        );
    }

    #[test]
    fn standing_begins_anew_with_every_change() {
        let start = std::time::Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut standing = Standing::new(start);
        assert_eq!(standing.look(Some(1), at(1)), Duration::ZERO);
        assert_eq!(standing.look(Some(1), at(4)), Duration::from_secs(3));
        assert_eq!(standing.look(Some(2), at(5)), Duration::ZERO);
        assert_eq!(standing.look(None, at(6)), Duration::ZERO);
        assert_eq!(standing.look(None, at(9)), Duration::ZERO);
        assert_eq!(standing.look(Some(2), at(10)), Duration::ZERO);
    }
}
