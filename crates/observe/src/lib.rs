//! Events, metrics, log set-up and health of Holdfast's own processes.
//!
//! "Telemetry" in this project is device data; what the programs say about themselves is "observe".
//!
//! Every crate that has something to say keeps an `events.rs` with two things:
//!
//! 1. a struct of metrics, made once by the composition root:
//!
//! ```
//! use holdfast_observe::metrics::{Counter, CounterBy, Label, Registry};
//!
//! /// Why a log-in was refused. A label is an enum, so the number of series is known when compiling.
//! #[derive(Clone, Copy, Debug)]
//! pub enum Refusal { BadToken, Disabled }
//!
//! impl Label for Refusal {
//!     const NAME: &'static str = "reason";
//!     const VALUES: &'static [&'static str] = &["bad_token", "disabled"];
//!     fn index(self) -> usize { self as usize }
//! }
//!
//! /// Metrics of log-ins.
//! #[derive(Clone, Debug)]
//! pub struct Metrics {
//!     /// Sessions that began.
//!     pub sessions_started: Counter,
//!     /// Log-ins refused.
//!     pub logins_refused: CounterBy<Refusal>,
//! }
//!
//! impl Metrics {
//!     /// Registers the metrics of this crate.
//!     pub fn register(registry: &mut Registry) -> Self {
//!         Self {
//!             sessions_started: registry.counter("holdfast_sessions_started_total", "Sessions that began"),
//!             logins_refused: registry.counter_by("holdfast_logins_refused_total", "Log-ins refused"),
//!         }
//!     }
//! }
//! ```
//!
//! 2. one struct per happening, which writes its log line and counts its metric together ([`Event`]):
//!
//! ```
//! # use holdfast_observe::metrics::{Counter, Registry};
//! # pub struct Metrics { pub sessions_started: Counter }
//! use holdfast_observe::{Event, tracing};
//!
//! /// A session began.
//! pub struct SessionStarted<'a> {
//!     /// Identity that logged in. In the log line only: never a metric label.
//!     pub identity: &'a str,
//! }
//!
//! impl Event for SessionStarted<'_> {
//!     type Metrics = Metrics;
//!     fn emit(self, metrics: &Metrics) {
//!         metrics.sessions_started.inc();
//!         tracing::debug!(identity = self.identity, "session started");
//!     }
//! }
//! # let metrics = Metrics { sessions_started: Registry::new().counter("holdfast_sessions_started_total", "x") };
//! SessionStarted { identity: "d1" }.emit(&metrics);
//! # assert_eq!(metrics.sessions_started.get(), 1);
//! ```
//!
//! Levels: ERROR asks for a human, WARN is something odd that was handled, INFO is start, stop and change of
//! configuration and never scales with messages or connections, DEBUG and TRACE are for those who look.
//!
//! Architecture invariant: this crate depends on no other crate of the workspace and knows no domain word.

pub mod health;
pub mod logging;
pub mod metrics;
pub mod process;
mod repeats;

pub use health::Health;
pub use metrics::Registry;
pub use repeats::Repeats;
/// The logging front-end, so that a crate needs no dependency of its own for it.
pub use tracing;

/// A happening worth watching: its log line and its metric are emitted together, in one place.
pub trait Event {
    /// The metrics struct of the crate that owns the event.
    type Metrics;

    /// Counts the event and writes its log line.
    fn emit(self, metrics: &Self::Metrics);
}
