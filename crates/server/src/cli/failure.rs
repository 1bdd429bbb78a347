//! What a failed command tells its caller: a sentence, what to do, and an exit code.

use std::process::ExitCode;

/// Exit codes of the program. Documented in `docs/reference/cli.md`; scripts rely on them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Anything not named below.
    Failed = 1,
    /// The command line or a configuration value is wrong.
    Usage = 2,
    /// The device, module, policy or other resource does not exist.
    NotFound = 3,
    /// The hub did not accept the credential, or it lacks the right.
    Unauthorized = 4,
    /// It exists already, or changed meanwhile.
    Conflict = 5,
    /// The hub cannot be reached, is busy, or the device does not answer.
    Unavailable = 6,
    /// A file of the data directory cannot be read or written, or the event log has failed.
    Storage = 7,
}

impl Kind {
    /// Every code with its meaning, for the reference page.
    pub const TABLE: &'static [(u8, &'static str)] = &[
        (0, "done"),
        (1, "failed for another reason"),
        (2, "the command line or a configuration value is wrong"),
        (3, "the device, module or other resource does not exist"),
        (
            4,
            "the hub did not accept the credential, or the policy lacks the right",
        ),
        (5, "it exists already, or it changed meanwhile (entity tag)"),
        (
            6,
            "the hub cannot be reached, is busy, or the device is not online or did not answer",
        ),
        (
            7,
            "`serve`: a file of the data directory cannot be used, or the event log had failed (a full disk, for example) \
             before the hub was stopped; everything acknowledged is kept",
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

    /// A mistake on the command line.
    #[must_use]
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
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
    let failure = find(error);
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

/// The failure in an error: itself, what was added to it, or a cause.
#[must_use]
pub fn find(error: &anyhow::Error) -> Option<&Failure> {
    let added = error.downcast_ref::<Failure>();
    added.or_else(|| error.chain().find_map(|cause| cause.downcast_ref::<Failure>()))
}

fn is_broken_pipe(cause: &(dyn std::error::Error + 'static)) -> bool {
    cause
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
