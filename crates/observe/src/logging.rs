//! Log set-up: structured lines on standard error, as text for people or JSON for collectors.
//!
//! Standard output is for what a command was asked for. Secrets are kept out of log lines where they are
//! made: types that hold keys print no content in their `Debug`.

use std::io::{self, IsTerminal};
use std::str::FromStr;
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// One line of text per event, coloured on a terminal.
    #[default]
    Text,
    /// One JSON object per event.
    Json,
}

impl FromStr for Format {
    type Err = InitError;

    fn from_str(text: &str) -> Result<Self, InitError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(InitError::Format(text.to_owned())),
        }
    }
}

/// What to log, and how.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// How log lines look.
    pub format: Format,
    /// What is logged: a level, or directives such as `info,holdfast_heads=debug`.
    pub filter: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            format: Format::Text,
            filter: "info".to_owned(),
        }
    }
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The format is not a known one.
    #[error("log format {0:?} is neither text nor json")]
    Format(String),
    /// The filter does not parse.
    #[error("cannot read the log filter {filter:?} (example: info,holdfast_heads=debug)")]
    Filter {
        /// The filter as given.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Logging was set up before in this process.
    #[error("logging is already set up in this process")]
    Again,
}

/// Sets up logging for this process. Called once, by a binary's `main`.
///
/// # Errors
/// When the filter does not parse, or logging is already set up.
pub fn init(config: &LogConfig) -> Result<(), InitError> {
    let unreadable = |source| InitError::Filter {
        filter: config.filter.clone(),
        source,
    };
    let filter: Targets = config.filter.parse().map_err(unreadable)?;
    let lines = match config.format {
        Format::Text => {
            let ansi = io::stderr().is_terminal();
            tracing_subscriber::fmt::layer()
                .with_writer(io::stderr)
                .with_ansi(ansi)
                .boxed()
        }
        Format::Json => tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(io::stderr)
            .boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .map_err(|_| InitError::Again)
}

/// Sets up logging for tests: lines of DEBUG and above, shown only for tests that fail. May be called by
/// every test.
pub fn init_for_tests() {
    // An error means that another test was first, which is as good.
    let _ = tracing_subscriber::fmt()
        .with_max_level(Level::DEBUG)
        .with_test_writer()
        .try_init();
}

/// Log lines of WARN and ERROR kept in memory, so that a test can fail on those it did not expect.
#[derive(Clone, Debug, Default)]
pub struct Captured(Arc<Mutex<Vec<String>>>);

impl Captured {
    /// The lines so far, as `LEVEL target: message field=value`.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.0.lock().clone()
    }

    /// Panics when a line holds none of the expected texts.
    ///
    /// # Panics
    /// That is its purpose.
    #[track_caller]
    pub fn assert_only(&self, expected: &[&str]) {
        let odd: Vec<String> = self
            .lines()
            .into_iter()
            .filter(|line| !expected.iter().any(|text| line.contains(text)))
            .collect();
        assert!(
            odd.is_empty(),
            "unexpected warnings or errors in the log:\n{}",
            odd.join("\n")
        );
    }
}

/// Captures WARN and ERROR lines of the *current thread* until the guard is dropped. Meant for tests with
/// `#[tokio::test]` of one thread, or without a runtime.
#[must_use]
pub fn capture() -> (Captured, tracing::subscriber::DefaultGuard) {
    let captured = Captured::default();
    let guard = tracing_subscriber::registry()
        .with(CaptureLayer(captured.clone()))
        .set_default();
    (captured, guard)
}

struct CaptureLayer(Captured);

impl<S: Subscriber> Layer<S> for CaptureLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        if *metadata.level() > Level::WARN {
            return;
        }
        let mut line = Line(format!("{} {}:", metadata.level(), metadata.target()));
        event.record(&mut line);
        self.0.0.lock().push(line.0);
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0.push_str(&format!(" {value:?}"));
        } else {
            self.0.push_str(&format!(" {}={value:?}", field.name()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_parse() {
        assert_eq!("json".parse::<Format>().unwrap(), Format::Json);
        assert_eq!("text".parse::<Format>().unwrap(), Format::Text);
        assert_eq!(
            "xml".parse::<Format>().unwrap_err().to_string(),
            r#"log format "xml" is neither text nor json"#
        );
    }

    #[test]
    fn a_bad_filter_is_named() {
        let config = LogConfig {
            filter: "holdfast=loud".to_owned(),
            ..LogConfig::default()
        };
        let error = init(&config).unwrap_err();
        assert!(error.to_string().contains("holdfast=loud"), "{error}");
    }

    #[test]
    fn tests_may_all_call_init() {
        init_for_tests();
        init_for_tests();
    }

    #[test]
    fn captures_warnings_and_errors_only() {
        let (captured, _guard) = capture();
        tracing::info!("fine");
        tracing::warn!(bytes = 3, "odd");
        tracing::error!("bad");
        let lines = captured.lines();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].starts_with("WARN ") && lines[0].contains("odd") && lines[0].contains("bytes=3"));
        captured.assert_only(&["odd", "bad"]);
    }

    #[test]
    #[should_panic(expected = "unexpected warnings")]
    fn an_unexpected_error_fails_the_test() {
        let (captured, _guard) = capture();
        tracing::error!("bad");
        captured.assert_only(&["odd"]);
    }
}
