//! How an endpoint is doing (languages.md 2.6).

use holdfast_model::Timestamp;

/// States of an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Status {
    /// Nothing was tried yet.
    #[default]
    Unknown,
    /// It takes events.
    Healthy,
    /// It fails, and is tried again and again.
    Unhealthy,
    /// It has failed for longer than events are kept for it; what is too old goes to the dead letters. It is still tried.
    Dead,
}

impl Status {
    /// The contract's spelling.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Status::Unknown => "unknown",
            Status::Healthy => "healthy",
            Status::Unhealthy => "unhealthy",
            Status::Dead => "dead",
        }
    }
}

/// How an endpoint is doing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Health {
    /// Its state.
    pub status: Status,
    /// What it said when it last failed.
    pub last_known_error: Option<String>,
    /// When that was.
    pub last_known_error_at: Option<Timestamp>,
    /// When it last took something.
    pub last_success_at: Option<Timestamp>,
    /// When something was last tried.
    pub last_attempt_at: Option<Timestamp>,
    /// Since when every attempt has failed.
    pub failing_since: Option<Timestamp>,
    /// Events delivered since the hub started.
    pub delivered: u64,
    /// Events given up since the hub started.
    pub dead_lettered: u64,
    /// Events between the dispatcher's place and the end of the log, those of other endpoints included.
    pub lag: u64,
}

impl Health {
    pub(crate) fn succeeded(&mut self, events: u64, now: Timestamp) {
        self.status = Status::Healthy;
        self.failing_since = None;
        self.last_success_at = Some(now);
        self.last_attempt_at = Some(now);
        self.delivered += events;
    }

    /// An attempt has failed; `patience` is how long events are kept for a failing endpoint.
    pub(crate) fn failed(&mut self, error: &str, now: Timestamp, patience: std::time::Duration) {
        let since = *self.failing_since.get_or_insert(now);
        self.status = if now.since(since) >= patience {
            Status::Dead
        } else {
            Status::Unhealthy
        };
        self.last_known_error = Some(error.to_owned());
        self.last_known_error_at = Some(now);
        self.last_attempt_at = Some(now);
    }
}
