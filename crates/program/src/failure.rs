//! What a failed command tells its caller: a sentence, what to do, and an exit code.

use std::process::ExitCode;

/// Exit codes, the same in both programs. `docs/reference/cli.md` and `docs/reference/edge-cli.md` say in each one's words
/// what they mean; scripts rely on them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Anything not named below.
    Failed = 1,
    /// The command line or a configuration value is wrong.
    Usage = 2,
    /// The device, module, policy or other resource does not exist.
    NotFound = 3,
    /// The credential was not accepted, or it lacks the right.
    Unauthorized = 4,
    /// It exists already, or changed meanwhile.
    Conflict = 5,
    /// The other side cannot be reached, is busy or does not answer.
    Unavailable = 6,
    /// A file that the program keeps cannot be read or written.
    Storage = 7,
    /// The device has been provisioned anew and its daemon must start with a fresh state. Service managers do not count it
    /// as a failure (`RestartForceExitStatus=153`).
    Reprovisioned = 153,
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

    /// Says what to do, instead of what was said before.
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
    eprintln!("{}", describe(error));
    ExitCode::from(find(error).map_or(Kind::Failed, |failure| failure.kind) as u8)
}

/// The error, its causes and the hint, each on a line of its own.
fn describe(error: &anyhow::Error) -> String {
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
    if let Some(hint) = find(error).and_then(|failure| failure.hint.as_deref()) {
        text.push_str(&format!("\n  hint: {hint}"));
    }
    text
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

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use anyhow::Context as _;

    use super::*;

    #[test]
    fn causes_and_the_hint_are_told_once() {
        let cause: Result<(), Error> = Err(Error::other("the disk is gone"));
        let error = cause
            .context("cannot read the key: the disk is gone")
            .context(Failure::storage("cannot start").hint("look at the disk"))
            .unwrap_err();
        assert_eq!(
            describe(&error),
            "error: cannot start\n  because: cannot read the key: the disk is gone\n  hint: look at the disk"
        );
    }

    #[test]
    fn a_failure_is_found_wherever_it_stands() {
        let itself = anyhow::Error::new(Failure::usage("x"));
        let below = anyhow::Error::new(Failure::usage("x")).context("while starting");
        let added = anyhow::Error::new(Error::other("y")).context(Failure::usage("x"));
        for error in [itself, below, added] {
            assert_eq!(
                find(&error).map(|failure| failure.kind),
                Some(Kind::Usage),
                "{error:?}"
            );
        }
        assert!(find(&anyhow::anyhow!("x")).is_none());
    }

    #[test]
    fn exit_codes_are_those_of_the_failure() {
        let code = |error: anyhow::Error| format!("{:?}", report(&error));
        let expected = |code: u8| format!("{:?}", ExitCode::from(code));
        assert_eq!(code(Failure::new(Kind::NotFound, "x").into()), expected(3));
        assert_eq!(code(anyhow::anyhow!("x")), expected(1));
        let gone = anyhow::Error::new(Error::from(ErrorKind::BrokenPipe)).context("cannot print");
        assert_eq!(code(gone), expected(0));
    }
}
