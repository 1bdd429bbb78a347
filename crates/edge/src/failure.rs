//! What a failed command tells its caller: a sentence, what to do, and an exit code.

use std::process::ExitCode;

/// Exit codes of the program. Documented in `docs/reference/edge-cli.md`; scripts rely on them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Anything not named below; also what `check` ends with when a check failed.
    Failed = 1,
    /// The command line or a configuration value is wrong.
    Usage = 2,
    /// There is no such module.
    NotFound = 3,
    /// The daemon or the hub does not let the caller in.
    Unauthorized = 4,
    /// The daemon, the engine or the hub cannot be reached.
    Unavailable = 6,
    /// A file of the daemon cannot be read or written.
    Storage = 7,
    /// `run`: the device has been provisioned anew and the daemon must start with a fresh state. Service managers do
    /// not count it as a failure (`RestartForceExitStatus=153`).
    Reprovisioned = 153,
}

impl Kind {
    /// Every code with its meaning, for the reference page.
    pub const TABLE: &'static [(u8, &'static str)] = &[
        (0, "done"),
        (1, "failed for another reason; `check`: a check failed"),
        (2, "the command line or a configuration value is wrong"),
        (3, "there is no such module"),
        (4, "the daemon or the hub does not let the caller in"),
        (6, "the daemon, the container engine or the hub cannot be reached"),
        (7, "a file of the daemon cannot be read or written"),
        (
            153,
            "`run`: the device was provisioned anew, start the daemon again",
        ),
    ];
}

/// A failure with a hint for the person at the terminal.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Decides the exit code.
    pub kind: Kind,
    /// What happened.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure without a hint.
    #[must_use]
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Failure {
            kind,
            message: message.into(),
            hint: None,
        }
    }

    /// A mistake on the command line or in the configuration.
    #[must_use]
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// A file that cannot be used.
    #[must_use]
    pub fn storage(message: impl Into<String>) -> Self {
        Self::new(Kind::Storage, message)
    }

    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Prints a failure to standard error and says how to exit.
#[must_use]
pub fn report(error: &anyhow::Error) -> ExitCode {
    // A reader that went away (`| head`) is no failure.
    if error.chain().any(is_broken_pipe) {
        return ExitCode::SUCCESS;
    }
    let failure = error.chain().find_map(|cause| cause.downcast_ref::<Failure>());
    let mut text = format!("error: {error}");
    let mut last = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // Some libraries repeat their source in their own text.
        if !last.contains(&cause) {
            text.push_str(&format!("\n  because: {cause}"));
        }
        last = cause;
    }
    if let Some(hint) = failure.and_then(|failure| failure.hint.as_deref()) {
        text.push_str(&format!("\n  hint: {hint}"));
    }
    eprintln!("{text}");
    ExitCode::from(failure.map_or(Kind::Failed, |failure| failure.kind) as u8)
}

fn is_broken_pipe(cause: &(dyn std::error::Error + 'static)) -> bool {
    cause
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
