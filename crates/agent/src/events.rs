//! What the agent says in the log. Deployments are rare and modules few, so INFO is right for their changes.

use holdfast_observe::tracing;

pub(crate) fn deployment_accepted(version: u64, modules: usize) {
    tracing::info!(version, modules, "a deployment was accepted");
}

pub(crate) fn nothing_deployed() {
    tracing::info!("nothing is deployed to this device");
}

pub(crate) fn deployment_refused(version: u64, description: &str) {
    tracing::error!(
        version,
        description,
        "the deployment is refused; modules go on as they are"
    );
}

pub(crate) fn deployment_done(version: u64) {
    tracing::info!(version, "the deployment is carried out");
}

pub(crate) fn deployment_good(version: u64) {
    tracing::info!(version, "the deployment is healthy and kept as the last good one");
}

pub(crate) fn deployment_taken_back(version: u64, good: u64, reason: &str) {
    tracing::error!(
        version,
        good,
        reason,
        "the deployment is taken back to the last good one"
    );
}

pub(crate) fn deployment_not_healthy(version: u64, reason: &str) {
    tracing::error!(
        version,
        reason,
        "the deployment did not become healthy; there is no other to go back to"
    );
}

pub(crate) fn command_begins(module: &str, action: &str) {
    tracing::info!(module, action, "command");
}

pub(crate) fn command_failed(module: &str, action: &str, problem: &str, again_in_seconds: u64) {
    tracing::error!(module, action, problem, again_in_seconds, "a command failed");
}

pub(crate) fn hub_failed(action: &str, problem: &str) {
    tracing::error!(
        action,
        problem,
        "the edge hub does not run; it is started again as its restart policy says, modules go on"
    );
}

pub(crate) fn engine_lost(problem: &str) {
    tracing::error!(
        problem,
        "the container engine cannot be used; modules that run go on, trying again every 5 s"
    );
}

pub(crate) fn engine_back() {
    tracing::info!("the container engine is back");
}

pub(crate) fn state_not_written(problem: &str) {
    tracing::error!(
        problem,
        "the agent's state cannot be written; trying again in 30 s"
    );
}
