//! What is wrong with a model or a value, and where.

use std::fmt;

/// Most faults told of one document or twin; more would help nobody.
pub const FAULTS_MAX: usize = 100;

/// One broken rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Where: for models the id of the interface and the way from there (`dtmi:a:b;1 contents[2] "speed" schema`), for
    /// values the path (`reported.thermostat1.target`).
    pub place: String,
    /// Which rule, and what was found instead; no trailing period.
    pub rule: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.place.is_empty() {
            return f.write_str(&self.rule);
        }
        write!(f, "{}: {}", self.place, self.rule)
    }
}

/// Collects faults and knows the place at which the check stands.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    place: String,
    found: Vec<Fault>,
}

impl Faults {
    pub(crate) fn at(place: impl Into<String>) -> Self {
        Faults {
            place: place.into(),
            found: Vec::new(),
        }
    }

    /// Notes a fault at the present place.
    pub(crate) fn note(&mut self, rule: impl Into<String>) {
        if self.found.len() < FAULTS_MAX {
            self.found.push(Fault {
                place: clip(&self.place),
                rule: rule.into(),
            });
        }
    }

    /// Runs a check one step deeper.
    pub(crate) fn within<T>(&mut self, step: fmt::Arguments<'_>, check: impl FnOnce(&mut Self) -> T) -> T {
        use fmt::Write as _;
        let length = self.place.len();
        // Writing to a string does not fail.
        let _ = self.place.write_fmt(step);
        let result = check(self);
        self.place.truncate(length);
        result
    }

    pub(crate) fn into_found(self) -> Vec<Fault> {
        self.found
    }
}

/// A text of a document in a message: not longer than a line.
pub(crate) fn clip(text: &str) -> String {
    const CHARS_MAX: usize = 200;
    match text.char_indices().nth(CHARS_MAX) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}
