//! Command line flags, read one by one; what is left at the end is refused.

use anyhow::{Context, Result, bail};

/// The arguments of one command.
pub(crate) struct Args {
    command: &'static str,
    rest: Vec<String>,
    /// What stood after `--`, for a program that the command runs.
    passed_on: Vec<String>,
}

impl Args {
    pub(crate) fn new(command: &'static str, mut rest: Vec<String>) -> Self {
        let passed_on = match rest.iter().position(|arg| arg == "--") {
            Some(at) => rest.split_off(at).split_off(1),
            None => Vec::new(),
        };
        Self {
            command,
            rest,
            passed_on,
        }
    }

    /// Takes a flag without value; says whether it was there.
    pub(crate) fn flag(&mut self, name: &str) -> bool {
        let before = self.rest.len();
        self.rest.retain(|arg| arg != name);
        self.rest.len() != before
    }

    /// Takes `--name VALUE` or `--name=VALUE`.
    pub(crate) fn value(&mut self, name: &str) -> Result<Option<String>> {
        let prefix = format!("{name}=");
        if let Some(at) = self.rest.iter().position(|arg| arg.starts_with(&prefix)) {
            return Ok(Some(self.rest.remove(at).split_off(prefix.len())));
        }
        let Some(at) = self.rest.iter().position(|arg| arg == name) else {
            return Ok(None);
        };
        self.rest.remove(at);
        if at >= self.rest.len() {
            bail!("{name} needs a value; see cargo xtask {} --help", self.command);
        }
        Ok(Some(self.rest.remove(at)))
    }

    /// Takes a value that is a number.
    pub(crate) fn number(&mut self, name: &str) -> Result<Option<u64>> {
        self.value(name)?
            .map(|text| {
                text.parse()
                    .with_context(|| format!("{name} needs a whole number, not {text:?}"))
            })
            .transpose()
    }

    /// Takes the next plain word.
    pub(crate) fn word(&mut self) -> Option<String> {
        let at = self.rest.iter().position(|arg| !arg.starts_with('-'))?;
        Some(self.rest.remove(at))
    }

    /// Refuses whatever was not taken; returns what stood after `--`.
    pub(crate) fn finish(self) -> Result<Vec<String>> {
        if let Some(arg) = self.rest.first() {
            bail!(
                "cargo xtask {} does not know {arg:?}; see cargo xtask {0} --help",
                self.command
            );
        }
        Ok(self.passed_on)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(text: &str) -> Args {
        Args::new("test", text.split_whitespace().map(str::to_owned).collect())
    }

    #[test]
    fn takes_flags_values_and_words() {
        let mut args = args("--long --only rust ingest --seconds=5 -- -x --long");
        assert!(args.flag("--long"));
        assert!(!args.flag("--keep"));
        assert_eq!(args.value("--only").unwrap().as_deref(), Some("rust"));
        assert_eq!(args.number("--seconds").unwrap(), Some(5));
        assert_eq!(args.word().as_deref(), Some("ingest"));
        assert_eq!(args.finish().unwrap(), ["-x", "--long"]);
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        assert!(
            args("--lnog")
                .finish()
                .unwrap_err()
                .to_string()
                .contains("--lnog")
        );
        assert!(args("--only").value("--only").is_err());
        assert!(args("--seconds x").number("--seconds").is_err());
    }
}
