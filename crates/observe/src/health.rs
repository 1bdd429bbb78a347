//! Readiness and liveness of a process, by named components.
//!
//! Ready means: send work here. It is so when at least one component is known, all are well and the process
//! is not draining. Alive means: do not restart. It is so until [`Health::fail`] is called, which is
//! for what only a restart can heal, such as a failed fsync.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;

/// Shared by the components, which report, and the `/healthz` and `/readyz` handlers, which ask.
#[derive(Clone, Debug, Default)]
pub struct Health {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    components: BTreeMap<&'static str, Result<(), String>>,
    draining: bool,
    failure: Option<String>,
}

/// The state of all components at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Whether work may be sent here.
    pub ready: bool,
    /// Whether the process is worth keeping.
    pub alive: bool,
    /// Whether the process is shutting down.
    pub draining: bool,
    /// What made the process fail for good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Each component, by name.
    pub components: Vec<Component>,
}

/// One component in a [`Snapshot`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Component {
    /// Its name, for example `log` or `mqtt-listener`.
    pub name: &'static str,
    /// Whether it is well.
    pub ok: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Health {
    /// No component yet, so not ready.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Announces a component that is still starting, so that readiness waits for it.
    pub fn expect(&self, component: &'static str) {
        self.state
            .lock()
            .components
            .entry(component)
            .or_insert_with(|| Err("starting".to_owned()));
    }

    /// Reports a component well, or not and why. Logs when that changes.
    pub fn set(&self, component: &'static str, state: Result<(), String>) {
        let before = self.state.lock().components.insert(component, state.clone());
        // The lock is released before the log line is written.
        if before.as_ref() == Some(&state) {
            return;
        }
        match (before, state) {
            (_, Err(reason)) => tracing::warn!(component, reason, "component is not well"),
            (Some(Err(_)), Ok(())) => tracing::info!(component, "component is well"),
            (_, Ok(())) => {}
        }
    }

    /// Says that the process is shutting down: still alive, no longer ready.
    pub fn drain(&self) {
        self.state.lock().draining = true;
    }

    /// Says that only a restart can help. The first reason is kept.
    pub fn fail(&self, reason: impl Into<String>) {
        let reason = reason.into();
        tracing::error!(reason, "the process must be restarted");
        self.state.lock().failure.get_or_insert(reason);
    }

    /// Whether work may be sent here.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.state.lock().is_ready()
    }

    /// Whether the process is worth keeping.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.state.lock().failure.is_none()
    }

    /// The state of all components now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let state = self.state.lock();
        let components = state.components.iter().map(|(name, state)| Component {
            name,
            ok: state.is_ok(),
            reason: state.as_ref().err().cloned(),
        });
        Snapshot {
            ready: state.is_ready(),
            alive: state.failure.is_none(),
            draining: state.draining,
            failure: state.failure.clone(),
            components: components.collect(),
        }
    }
}

impl State {
    fn is_ready(&self) -> bool {
        self.failure.is_none()
            && !self.draining
            && !self.components.is_empty()
            && self.components.values().all(Result::is_ok)
    }
}

impl Snapshot {
    /// The snapshot as the JSON body of `/readyz`.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Booleans and strings: serialization has nothing to fail on.
        serde_json::to_string(self).unwrap_or_else(|_| "{}".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_every_component() {
        let health = Health::new();
        assert!(!health.is_ready(), "nothing known yet");
        health.expect("store");
        health.set("listener", Ok(()));
        assert!(!health.is_ready(), "the store is starting");
        health.set("store", Ok(()));
        health.expect("store");
        assert!(health.is_ready());
        health.clone().set("store", Err("disk full".to_owned()));
        assert!(!health.is_ready());
        assert!(health.is_alive());
    }

    #[test]
    fn draining_is_alive_but_not_ready() {
        let health = Health::new();
        health.set("store", Ok(()));
        health.drain();
        assert!(!health.is_ready());
        assert!(health.is_alive());
    }

    #[test]
    fn the_first_failure_stays() {
        let health = Health::new();
        health.set("store", Ok(()));
        health.fail("fsync of the log failed");
        health.fail("later");
        assert!(!health.is_ready());
        assert!(!health.is_alive());
        assert_eq!(
            health.snapshot().failure.as_deref(),
            Some("fsync of the log failed")
        );
    }

    #[test]
    fn snapshot_as_json() {
        let health = Health::new();
        health.set("store", Ok(()));
        health.set("log", Err("disk full".to_owned()));
        assert_eq!(
            health.snapshot().to_json(),
            r#"{"ready":false,"alive":true,"draining":false,"components":[{"name":"log","ok":false,"reason":"disk full"},{"name":"store","ok":true}]}"#
        );
    }
}
