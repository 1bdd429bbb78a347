//! What the configurations that a device meets mean for its twin and those of its modules. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use holdfast_model::configuration::{Configuration, Content, EDGE_AGENT, EDGE_HUB, Layering};
use holdfast_model::twin::{ConfigurationStatus, ManagedPlan, Twin, Write};

/// Marks plans of deployments: what they wrote stays when a device loses its last one.
const EDGE: &str = "edge:";

/// The plan for a twin for which configurations of its own kind are: the highest rank applies, the others wait.
pub(super) fn single(matching: &[Arc<Configuration>]) -> ManagedPlan {
    let Some(winner) = matching.iter().max_by_key(|one| one.rank()) else {
        return ManagedPlan::default();
    };
    let status = |one: &Arc<Configuration>| {
        let applied = one.id == winner.id;
        (one.id.clone(), status_of(applied))
    };
    ManagedPlan {
        name: winner.plan_name(),
        statuses: matching.iter().map(status).collect(),
        writes: winner.content.writes(),
        keeps_content: false,
    }
}

const fn status_of(applied: bool) -> ConfigurationStatus {
    if applied {
        ConfigurationStatus::Applied
    } else {
        ConfigurationStatus::Targeted
    }
}

/// The deployments of one edge device (edge.md 2.7).
#[derive(Debug, Default)]
pub(super) struct EdgePlan {
    /// The base and the layers above it, lowest rank first; empty without a base.
    chain: Vec<Arc<Configuration>>,
    /// All that match.
    statuses: BTreeMap<String, ConfigurationStatus>,
}

impl EdgePlan {
    /// Chooses among the deployments whose condition the device meets: the base of the highest rank, and the layers
    /// with a priority above it.
    pub(super) fn choose(matching: &[Arc<Configuration>]) -> Self {
        let is_base = |one: &&Arc<Configuration>| one.content.layering() == Layering::Base;
        let base = matching.iter().filter(is_base).max_by_key(|one| one.rank());
        let mut chain: Vec<Arc<Configuration>> = Vec::new();
        if let Some(base) = base {
            chain.push(Arc::clone(base));
            let above = |one: &&Arc<Configuration>| !is_base(one) && one.priority > base.priority;
            chain.extend(matching.iter().filter(above).cloned());
            chain[1..].sort_by(|a, b| a.rank().cmp(&b.rank()));
        }
        let applied: BTreeSet<&str> = chain.iter().map(|one| one.id.as_str()).collect();
        let statuses = matching
            .iter()
            .map(|one| (one.id.clone(), status_of(applied.contains(one.id.as_str()))))
            .collect();
        EdgePlan { chain, statuses }
    }

    /// The modules that the chosen deployments have content for.
    pub(super) fn modules(&self) -> BTreeSet<&str> {
        let modules = self.chain.iter().filter_map(|one| match &one.content {
            Content::Edge(modules) => Some(modules.keys().map(String::as_str)),
            Content::Device(_) | Content::Module(_) => None,
        });
        modules.flatten().collect()
    }

    /// The plan for a module: what the deployments want of it, then what the configurations of modules that it meets
    /// want.
    pub(super) fn module(&self, id: &str, twin: &Twin, own: &[Arc<Configuration>]) -> ManagedPlan {
        let mut plan = self.deployed(id);
        let was_deployed = twin
            .managed
            .as_ref()
            .is_some_and(|managed| managed.plan.starts_with(EDGE));
        let own = single(own);
        plan.keeps_content = self.chain.is_empty() && was_deployed;
        if !own.name.is_empty() {
            plan.name = match plan.name.is_empty() {
                true => own.name,
                false => format!("{};{}", plan.name, own.name),
            };
            plan.statuses.extend(own.statuses);
            plan.writes.extend(own.writes);
        }
        plan
    }

    fn deployed(&self, id: &str) -> ManagedPlan {
        let mut writes: Vec<Write> = Vec::new();
        let mut names = Vec::new();
        let mut statuses = BTreeMap::new();
        for one in &self.chain {
            if let Some(own) = one.content.module_writes().remove(id) {
                writes.extend(own);
                names.push(one.plan_name());
                statuses.insert(one.id.clone(), ConfigurationStatus::Applied);
            }
        }
        if id == EDGE_AGENT || id == EDGE_HUB {
            statuses.clone_from(&self.statuses);
        }
        let name = match names.is_empty() {
            true => String::new(),
            false => format!("{EDGE}{}", names.join(",")),
        };
        ManagedPlan {
            name,
            statuses,
            writes,
            keeps_content: false,
        }
    }
}

/// The same plan for a twin that cannot hold the content: nothing is written, and what would be applied waits.
pub(super) fn without_content(plan: &ManagedPlan, twin: &Twin) -> ManagedPlan {
    ManagedPlan {
        // The name of what is there, so that it stays.
        name: twin
            .managed
            .as_ref()
            .map_or_else(String::new, |managed| managed.plan.clone()),
        statuses: plan
            .statuses
            .keys()
            .map(|id| (id.clone(), ConfigurationStatus::Targeted))
            .collect(),
        writes: Vec::new(),
        keeps_content: true,
    }
}

#[cfg(test)]
mod tests;
