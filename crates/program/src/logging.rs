//! Logs as the configuration asks for them: the section `[observe]`, the same in both programs.

use holdfast_observe::logging::{self, LogConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line of text per happening.
    #[default]
    Text,
    /// One JSON object per happening.
    Json,
}

/// What the process says about itself on standard error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LogSection {
    /// How log lines look: one line of text per happening, or one JSON object.
    pub format: LogFormat,
    /// What is logged: a level (`error`, `warn`, `info`, `debug`, `trace`), or directives for parts of the program such
    /// as `info,holdfast_heads=debug`.
    pub filter: String,
}

impl Default for LogSection {
    fn default() -> Self {
        LogSection {
            format: LogFormat::Text,
            filter: "info".to_owned(),
        }
    }
}

impl LogSection {
    /// Sets up logging for this process. Called once.
    ///
    /// # Errors
    /// When the filter is none, with what to write instead.
    pub fn start(&self) -> Result<(), Failure> {
        let config = LogConfig {
            format: match self.format {
                LogFormat::Text => logging::Format::Text,
                LogFormat::Json => logging::Format::Json,
            },
            filter: self.filter.clone(),
        };
        logging::init(&config).map_err(|error| {
            let cause = std::error::Error::source(&error);
            let because = cause.map_or(String::new(), |cause| format!(": {cause}"));
            Failure::usage(format!("{error}{because}"))
                .hint("--log info, or observe.filter = \"info\" in the configuration")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Kind;

    #[test]
    fn a_filter_that_is_none_is_a_mistake_of_the_caller() {
        let section = LogSection {
            filter: "holdfast=loud".to_owned(),
            ..LogSection::default()
        };
        let failure = section.start().unwrap_err();
        assert_eq!(failure.kind, Kind::Usage);
        // The filter, and what is wrong with it.
        assert!(failure.message.contains("\"holdfast=loud\""), "{failure}");
        assert!(failure.message.contains("): "), "{failure}");
        assert!(failure.hint.is_some());
    }
}
