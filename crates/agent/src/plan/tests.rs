//! Goal: the order of edge.md 3.3, and that plans converge. Method: cases, and an engine simulated in a map whose commands
//! fail at random; the seed of a failing case is kept by proptest.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::manifest::{DesiredStatus, RestartPolicy};
use crate::restart::{RestartFile, RestartRules, Restarts, Situation, judge};
use crate::runtime::{Container, ContainerState, Health};
use holdfast_model::Timestamp;

fn wanted(definition: &str, order: u32, running: bool) -> Wanted {
    Wanted {
        definition: definition.to_owned(),
        generation: Some("g".to_owned()),
        order,
        running,
    }
}

fn present(definition: &str, next: Next) -> Present {
    Present {
        owned: true,
        definition: Some(definition.to_owned()),
        generation: Some("g".to_owned()),
        next,
    }
}

fn names<T>(entries: impl IntoIterator<Item = (&'static str, T)>) -> BTreeMap<String, T> {
    entries
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

fn texts(commands: &[Command]) -> Vec<String> {
    commands
        .iter()
        .map(|command| format!("{} {}", command.action.name(), command.module))
        .collect()
}

#[test]
fn the_order_of_a_plan() {
    let wanted = names([
        ("added", wanted("a", 1, true)),
        ("changed", wanted("new", 1, true)),
        ("dead", wanted("d", 1, true)),
        ("ended", wanted("e", 1, true)),
        ("first", wanted("f", 0, true)),
        ("healthy", wanted("h", 1, true)),
        ("off", wanted("o", 1, false)),
        ("right", wanted("r", 1, true)),
        ("waits", wanted("w", 1, true)),
        ("later", wanted("l", 2, true)),
    ]);
    let present = names([
        ("changed", present("old", Next::Rest)),
        ("dead", present("d", Next::Discard)),
        ("ended", present("e", Next::Start { counted: true })),
        ("healthy", present("h", Next::Forget)),
        ("off", present("o", Next::TurnOff)),
        ("orphan", present("x", Next::Rest)),
        ("right", present("r", Next::Rest)),
        ("waits", present("w", Next::Wait(5))),
    ]);
    assert_eq!(
        texts(&plan(&wanted, &present)),
        [
            "remove orphan",
            "forget orphan",
            "create first",
            "remove dead",
            "forget changed",
            "forget dead",
            "create added",
            "update changed",
            "start ended",
            "stop off",
            "forget healthy",
            "create later",
        ]
        .map(str::to_owned)
        .into_iter()
        // Removals of orphans come in group 0, with "first" behind them.
        .collect::<Vec<_>>()
    );
}

#[test]
fn generations_and_definitions() {
    let module = wanted("d", 0, true);
    let case = |container: Present| plan(&names([("m", module.clone())]), &names([("m", container)]));
    assert!(case(present("d", Next::Rest)).is_empty());
    let other = Present {
        generation: Some("before".to_owned()),
        ..present("d", Next::Rest)
    };
    assert_eq!(texts(&case(other.clone())), ["forget m", "update m"]);
    let unknown = Wanted {
        generation: None,
        ..module.clone()
    };
    assert!(
        plan(&names([("m", unknown)]), &names([("m", other)])).is_empty(),
        "offline nobody knows better"
    );
    let unlabelled = Present {
        definition: None,
        ..present("d", Next::Rest)
    };
    assert_eq!(texts(&case(unlabelled)), ["forget m", "update m"]);
}

#[test]
fn strangers_are_not_touched() {
    let stranger = Present {
        owned: false,
        ..present("x", Next::Discard)
    };
    let there = names([("stranger", stranger)]);
    assert!(plan(&BTreeMap::new(), &there).is_empty());
    let wanted = names([("stranger", wanted("d", 0, true))]);
    assert_eq!(texts(&plan(&wanted, &there)), ["create stranger"]);
}

/// A container of the simulated engine.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Simulated {
    owned: bool,
    definition: String,
    generation: String,
    state: ContainerState,
    exit_code: i64,
    sick: bool,
    touched: u32,
}

#[derive(Clone, Debug)]
struct Module {
    definition: String,
    order: u32,
    running: bool,
    policy: RestartPolicy,
}

fn states() -> impl Strategy<Value = ContainerState> {
    prop_oneof![
        Just(ContainerState::Created),
        Just(ContainerState::Running),
        Just(ContainerState::Paused),
        Just(ContainerState::Exited),
        Just(ContainerState::Dead),
    ]
}

fn containers() -> impl Strategy<Value = BTreeMap<String, Simulated>> {
    let one = (any::<bool>(), 0_u8..3, 0_u8..2, states(), 0_i64..3, any::<bool>()).prop_map(
        |(owned, definition, generation, state, exit_code, sick)| Simulated {
            owned,
            definition: format!("d{definition}"),
            generation: format!("g{generation}"),
            state,
            exit_code,
            sick,
            touched: 0,
        },
    );
    prop::collection::btree_map("[a-f]", one, 0..6)
}

fn modules() -> impl Strategy<Value = BTreeMap<String, Module>> {
    let policy = prop_oneof![
        Just(RestartPolicy::Never),
        Just(RestartPolicy::OnFailure),
        Just(RestartPolicy::OnUnhealthy),
        Just(RestartPolicy::Always),
    ];
    let one =
        (0_u8..3, 0_u32..3, any::<bool>(), policy).prop_map(|(definition, order, running, policy)| Module {
            definition: format!("d{definition}"),
            order,
            running,
            policy,
        });
    prop::collection::btree_map("[a-f]", one, 0..6)
}

/// The agent's part in miniature: judge, plan, carry out with commands that fail as told.
struct Simulation {
    modules: BTreeMap<String, Module>,
    containers: BTreeMap<String, Simulated>,
    restarts: Restarts,
    failures: Vec<bool>,
    now: i64,
}

impl Simulation {
    fn container(name: &str, simulated: &Simulated) -> Container {
        Container {
            name: name.to_owned(),
            id: format!("{name}{}", simulated.touched),
            image: String::new(),
            image_id: String::new(),
            labels: BTreeMap::new(),
            state: simulated.state,
            health: simulated.sick.then_some(Health::Unhealthy),
            exit_code: simulated.exit_code,
            started_at: None,
            finished_at: None,
            pid: None,
        }
    }

    fn plan(&mut self) -> Vec<Command> {
        let listed: Vec<Container> = self
            .containers
            .iter()
            .filter(|(_, simulated)| simulated.owned)
            .map(|(name, simulated)| Self::container(name, simulated))
            .collect();
        self.restarts
            .see(listed.iter(), Timestamp::from_seconds(1_000), self.now);
        let mut present = BTreeMap::new();
        for (name, simulated) in &self.containers {
            let module = self.modules.get(name);
            let record = self.restarts.record(name);
            let situation = Situation {
                desired: match module {
                    Some(module) if module.running => DesiredStatus::Running,
                    _ => DesiredStatus::Stopped,
                },
                policy: module.map_or(RestartPolicy::Never, |module| module.policy),
                container: &Self::container(name, simulated),
                record: &record,
                since: self.restarts.since(name),
                rebooted: false,
            };
            let verdict = judge(&situation, &RestartRules::default(), self.now);
            present.insert(
                name.clone(),
                Present {
                    owned: simulated.owned,
                    definition: Some(simulated.definition.clone()),
                    generation: Some(simulated.generation.clone()),
                    next: verdict.next,
                },
            );
        }
        let wanted = self
            .modules
            .iter()
            .map(|(name, module)| {
                if !module.running {
                    self.restarts.wanted_stopped(name);
                }
                let wanted = Wanted {
                    definition: module.definition.clone(),
                    generation: Some("g0".to_owned()),
                    order: module.order,
                    running: module.running,
                };
                (name.clone(), wanted)
            })
            .collect();
        plan(&wanted, &present)
    }

    /// Each step of a command may fail and leaves what was done until then.
    fn carry_out(&mut self, command: &Command) {
        let name = &command.module;
        if let Some(simulated) = self.containers.get_mut(name)
            && !matches!(command.action, Action::Forget | Action::Pull)
        {
            simulated.touched += 1;
        }
        let start = match command.action {
            Action::Forget => return self.restarts.forget(name),
            // Only [`pulls_first`] makes them.
            Action::Pull => return,
            Action::Remove | Action::RemoveDead => {
                if !self.fails() {
                    self.containers.remove(name);
                }
                return;
            }
            Action::Stop => {
                if !self.fails() {
                    self.set(name, ContainerState::Exited, 137);
                }
                return;
            }
            Action::Create { start } | Action::Replace { start } => {
                if matches!(command.action, Action::Replace { .. }) {
                    if self.fails() {
                        return;
                    }
                    self.containers.remove(name);
                }
                if self.fails() || self.containers.contains_key(name) {
                    return;
                }
                let made = Simulated {
                    owned: true,
                    definition: self.modules[name].definition.clone(),
                    generation: "g0".to_owned(),
                    state: ContainerState::Created,
                    exit_code: 0,
                    sick: false,
                    touched: 1,
                };
                self.containers.insert(name.clone(), made);
                start
            }
            Action::Start { counted } | Action::Restart { counted } => {
                self.restarts
                    .started(name, counted, Timestamp::from_seconds(1_000));
                true
            }
        };
        if start && !self.fails() {
            self.set(name, ContainerState::Running, 0);
        }
    }

    fn set(&mut self, name: &str, state: ContainerState, exit_code: i64) {
        let simulated = self.containers.get_mut(name).expect("there is such a container");
        simulated.state = state;
        simulated.exit_code = exit_code;
        simulated.sick = false;
    }

    fn fails(&mut self) -> bool {
        self.failures.pop().unwrap_or(false)
    }
}

proptest! {
    #[test]
    fn converges_from_any_state(
        modules in modules(),
        containers in containers(),
        failures in prop::collection::vec(any::<bool>(), 0..40),
    ) {
        let before = containers.clone();
        let mut simulation = Simulation {
            modules,
            containers,
            restarts: Restarts::new(RestartFile::default(), ""),
            failures,
            now: 0,
        };
        let mut idle = 0;
        let mut rounds = 0;
        while idle < 3 {
            let commands = simulation.plan();
            let idles = commands.iter().all(|command| matches!(command.action, Action::Forget)
                // A name that a stranger holds is asked for again and again, and refused.
                || simulation.containers.get(&command.module).is_some_and(|c| !c.owned));
            idle = if idles { idle + 1 } else { 0 };
            for command in &commands {
                simulation.carry_out(command);
            }
            simulation.now += 300_000;
            rounds += 1;
            prop_assert!(rounds < 200, "no end: {commands:?}");
        }
        for (name, module) in &simulation.modules {
            let container = &simulation.containers[name];
            if !container.owned {
                continue;
            }
            prop_assert_eq!(&container.definition, &module.definition);
            prop_assert_eq!(&container.generation, "g0");
            let is_running = container.state == ContainerState::Running;
            let stays_ended = module.policy == RestartPolicy::Never && container.state == ContainerState::Exited;
            prop_assert!(is_running == module.running || stays_ended, "{name}: {container:?}");
        }
        let there: BTreeSet<&String> = simulation.containers.iter().filter(|(_, c)| c.owned).map(|(name, _)| name).collect();
        prop_assert!(there.iter().all(|name| simulation.modules.contains_key(*name)));
        // Strangers are as they were, besides attempts to take their names, which the engine refuses.
        for (name, container) in before.iter().filter(|(_, container)| !container.owned) {
            let mut after = simulation.containers[name].clone();
            after.touched = 0;
            prop_assert_eq!(&after, container);
            if !simulation.modules.contains_key(name) {
                prop_assert_eq!(simulation.containers[name].touched, 0);
            }
        }
    }

    #[test]
    fn what_is_right_is_left_alone(modules in modules(), extra in containers()) {
        let mut containers = extra;
        for (name, module) in &modules {
            let state = if module.running { ContainerState::Running } else { ContainerState::Exited };
            containers.insert(name.clone(), Simulated {
                owned: true, definition: module.definition.clone(), generation: "g0".to_owned(), state,
                exit_code: 0, sick: false, touched: 0,
            });
        }
        let mut simulation = Simulation {
            modules, containers, restarts: Restarts::new(RestartFile::default(), ""), failures: Vec::new(), now: 0,
        };
        for _ in 0..5 {
            for command in simulation.plan() {
                simulation.carry_out(&command);
            }
            simulation.now += 300_000;
        }
        for name in simulation.modules.keys() {
            prop_assert_eq!(simulation.containers[name].touched, 0, "{} was touched", name);
        }
    }

    #[test]
    fn plans_are_in_order(modules in modules(), containers in containers()) {
        let mut simulation = Simulation {
            modules, containers, restarts: Restarts::new(RestartFile::default(), ""), failures: Vec::new(), now: 0,
        };
        let commands = simulation.plan();
        let ranks: Vec<(u32, Phase)> = commands.iter().map(|command| (command.order, command.phase)).collect();
        prop_assert!(ranks.is_sorted());
        let mut engine: Vec<&str> = commands.iter().filter(|c| c.action != Action::Forget).map(|c| c.module.as_str()).collect();
        let all = engine.len();
        engine.sort_unstable();
        engine.dedup();
        prop_assert_eq!(engine.len(), all, "one command of the engine per module");
    }
}
