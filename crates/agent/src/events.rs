//! What the agent says in the log. Deployments are rare and modules few, so INFO is right for their changes; what is tried
//! again and again is told once and then summed up.

use holdfast_observe::{Repeats, tracing};

/// Whose repeats are not told apart.
const AGENT: &str = "$edgeAgent";

static COMMAND_FAILED: Repeats = Repeats::new();
static STATE_NOT_WRITTEN: Repeats = Repeats::new();
static TWIN_NOT_READ: Repeats = Repeats::new();
static REPORT_NOT_ANSWERED: Repeats = Repeats::new();
static REPORT_REFUSED: Repeats = Repeats::new();
static HUB_LOST: Repeats = Repeats::new();
static IDENTITY_LEFT: Repeats = Repeats::new();
static IDENTITY_UNKNOWN: Repeats = Repeats::new();
static IMAGE_NOT_PULLED: Repeats = Repeats::new();

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
    if let Some(times) = COMMAND_FAILED.happened(&format!("{module} {action} {problem}")) {
        tracing::error!(
            module,
            action,
            problem,
            again_in_seconds,
            times,
            "a command failed"
        );
    }
}

/// The hub cannot be reached any more.
pub(crate) fn hub_lost(cause: &str) {
    if let Some(times) = HUB_LOST.happened(AGENT) {
        tracing::info!(
            cause,
            times,
            "the hub cannot be reached; modules go on as deployed"
        );
    }
}

pub(crate) fn hub_back() {
    if HUB_LOST.over(AGENT).is_some() {
        tracing::info!("the hub can be reached again");
    }
}

pub(crate) fn twin_not_read(problem: &str, again_in_seconds: i64) {
    if let Some(times) = TWIN_NOT_READ.happened(AGENT) {
        tracing::warn!(
            problem,
            again_in_seconds,
            times,
            "the twin of the agent cannot be read"
        );
    }
}

pub(crate) fn twin_read() {
    let _ = TWIN_NOT_READ.over(AGENT);
}

pub(crate) fn report_not_answered(cause: &str) {
    if let Some(times) = REPORT_NOT_ANSWERED.happened(AGENT) {
        tracing::warn!(
            cause,
            times,
            "a report was not answered; the twin is read again before the next"
        );
    }
}

pub(crate) fn report_refused(cause: &str, shortened: bool) {
    if let Some(times) = REPORT_REFUSED.happened(cause) {
        tracing::error!(cause, shortened, times, "the hub refused a report");
    }
}

pub(crate) fn report_taken() {
    let _ = REPORT_NOT_ANSWERED.over(AGENT);
}

pub(crate) fn identity_left(module: &str, problem: &str) {
    if let Some(times) = IDENTITY_LEFT.happened(module) {
        tracing::warn!(
            module,
            problem,
            times,
            "the identity of a removed module is still with the hub; trying again when it can be reached"
        );
    }
}

pub(crate) fn identity_unknown(module: &str, problem: &str) {
    if let Some(times) = IDENTITY_UNKNOWN.happened(module) {
        tracing::warn!(
            module,
            problem,
            times,
            "the identity of a module that runs is not known"
        );
    }
}

pub(crate) fn image_not_pulled(module: &str, image: &str, problem: &str) {
    if let Some(times) = IMAGE_NOT_PULLED.happened(&format!("{module} {image}")) {
        tracing::warn!(
            module,
            image,
            problem,
            times,
            "the image cannot be pulled; the one that is here is taken"
        );
    }
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
    if let Some(times) = STATE_NOT_WRITTEN.happened(AGENT) {
        tracing::error!(
            problem,
            times,
            "the agent's state cannot be written; trying again in 30 s"
        );
    }
}
