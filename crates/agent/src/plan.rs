//! What has to be done, from what is wanted and what is there (edge.md 3.3). Pure.

use std::collections::BTreeMap;

use crate::restart::Next;

/// A module that should exist.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// Definition that its container has to carry ([`crate::body::definition`]).
    pub definition: String,
    /// Generation id of its identity, when that is known now.
    pub generation: Option<String>,
    /// Lower is started first.
    pub order: u32,
    /// Whether it should run.
    pub running: bool,
}

/// A container that exists.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Present {
    /// It carries the owner label. Others are never touched.
    pub owned: bool,
    /// Definition from which it was made, if it says so.
    pub definition: Option<String>,
    /// Generation id for which it was made, if it says so.
    pub generation: Option<String>,
    /// What its state asks for, its definition being right.
    pub next: Next,
}

/// One thing to do with one module.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// Stop and remove a container that no deployment asks for.
    Remove,
    /// Remove a container that the engine has given up; a later plan makes it again.
    RemoveDead,
    /// Forget the restarts of a module that is removed, changed or well again.
    Forget,
    /// Pull, make, and start if it should run.
    Create {
        /// It should run.
        start: bool,
    },
    /// Pull, stop, remove, make, and start if it should run.
    Replace {
        /// It should run.
        start: bool,
    },
    /// Pull the image and leave everything else for later ([`pulls_first`]).
    Pull,
    /// Start.
    Start {
        /// It counts as a restart.
        counted: bool,
    },
    /// Stop and start.
    Restart {
        /// It counts as a restart.
        counted: bool,
    },
    /// Stop; the deployment wants it so.
    Stop,
}

impl Action {
    /// Label of metrics and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Action::Remove | Action::RemoveDead => "remove",
            Action::Forget => "forget",
            Action::Create { .. } => "create",
            Action::Replace { .. } => "update",
            Action::Pull => "pull",
            Action::Start { .. } => "start",
            Action::Restart { .. } => "restart",
            Action::Stop => "stop",
        }
    }
}

/// A step of a plan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Command {
    /// Module.
    pub module: String,
    /// Group by `startupOrder`; what is removed has 0.
    pub order: u32,
    /// Place within the group.
    pub phase: Phase,
    /// What to do.
    pub action: Action,
}

/// Order within a group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Phase {
    /// Containers of no deployment go first, since they may hold ports and names.
    Remove,
    /// Then what the engine has given up.
    RemoveDead,
    /// Then records of restarts.
    Forget,
    /// Then new modules.
    Create,
    /// Then changed ones.
    Update,
    /// Then those whose state is not what it should be.
    Mend,
    /// Then those whose desired status has changed.
    Status,
    /// Then records of modules that are well again.
    Healthy,
}

/// The plan that leads from `present` to `wanted`, in the order in which its commands are issued.
///
/// Nothing that is right is touched; nothing without the owner label is touched.
#[must_use]
pub fn plan(wanted: &BTreeMap<String, Wanted>, present: &BTreeMap<String, Present>) -> Vec<Command> {
    let mut commands = Vec::new();
    for (name, container) in present {
        if container.owned && !wanted.contains_key(name) {
            commands.push(command(name, 0, Phase::Remove, Action::Remove));
            commands.push(command(name, 0, Phase::Forget, Action::Forget));
        }
    }
    for (name, module) in wanted {
        match present.get(name) {
            None => {
                let start = module.running;
                commands.push(command(
                    name,
                    module.order,
                    Phase::Create,
                    Action::Create { start },
                ));
            }
            // A stranger has the name; making ours says so, as the engine refuses it.
            Some(container) if !container.owned => {
                let start = module.running;
                commands.push(command(
                    name,
                    module.order,
                    Phase::Create,
                    Action::Create { start },
                ));
            }
            Some(container) => existing(&mut commands, name, module, container),
        }
    }
    commands.sort_by_key(|command| (command.order, command.phase));
    commands
}

/// The part of a plan that may be carried out before all images are here, for `ModuleUpdateMode=WaitForAllPulls`: every pull
/// that is still to be made, and what keeps the modules going that are there, as they are. `None` when nothing is to be
/// pulled any more: then the plan holds as a whole.
#[must_use]
pub fn pulls_first(
    commands: &[Command],
    wanted: &BTreeMap<String, Wanted>,
    present: &BTreeMap<String, Present>,
    needs_pull: impl Fn(&str) -> bool,
) -> Option<Vec<Command>> {
    let makes = |command: &Command| matches!(command.action, Action::Create { .. } | Action::Replace { .. });
    let mut first: Vec<Command> = commands
        .iter()
        .filter(|command| makes(command) && needs_pull(&command.module))
        .map(|made| command(&made.module, made.order, made.phase, Action::Pull))
        .collect();
    if first.is_empty() {
        return None;
    }
    let mut unchanged = wanted.clone();
    for (name, module) in &mut unchanged {
        if let Some(there) = present.get(name) {
            module.definition = there.definition.clone().unwrap_or_default();
            module.generation = None;
        }
    }
    let going = plan(&unchanged, present).into_iter();
    first.extend(going.filter(|command| matches!(command.phase, Phase::Mend | Phase::Healthy)));
    Some(first)
}

fn existing(commands: &mut Vec<Command>, name: &str, module: &Wanted, container: &Present) {
    let order = module.order;
    let mut push = |phase, action| commands.push(command(name, order, phase, action));
    if container.next == Next::Discard {
        push(Phase::RemoveDead, Action::RemoveDead);
        push(Phase::Forget, Action::Forget);
        return;
    }
    let changed = container.definition.as_deref() != Some(module.definition.as_str())
        || (module.generation.is_some() && module.generation != container.generation);
    if changed {
        push(Phase::Forget, Action::Forget);
        push(
            Phase::Update,
            Action::Replace {
                start: module.running,
            },
        );
        return;
    }
    match container.next {
        Next::Rest | Next::Wait(_) | Next::Discard => {}
        Next::Start { counted } => push(Phase::Mend, Action::Start { counted }),
        Next::Restart { counted } => push(Phase::Mend, Action::Restart { counted }),
        Next::TurnOn => {
            push(Phase::Forget, Action::Forget);
            push(Phase::Status, Action::Start { counted: false });
        }
        Next::TurnOff => push(Phase::Status, Action::Stop),
        Next::Forget => push(Phase::Healthy, Action::Forget),
    }
}

fn command(module: &str, order: u32, phase: Phase, action: Action) -> Command {
    Command {
        module: module.to_owned(),
        order,
        phase,
        action,
    }
}

#[cfg(test)]
mod tests;
