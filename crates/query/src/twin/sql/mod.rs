//! Plans as SQL. The tree is the same for every dialect; the tests are each dialect's own.
//!
//! Constants are always parameters. What stands in the text besides are the dialect's own words and the quoted paths
//! into JSON documents, which is how an index over such a path can be found.

pub mod postgres;
pub mod sqlite;

#[cfg(test)]
mod tests;

use super::plan::{Predicate, Test};

/// A parameter.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Param {
    Text(String),
    Number(f64),
    Integer(i64),
}

/// Parameters in the order of their numbers, from 1.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Params(pub Vec<Param>);

impl Params {
    /// Adds a parameter and returns its number.
    pub fn push(&mut self, param: Param) -> usize {
        self.0.push(param);
        self.0.len()
    }
}

/// How one database says tests.
pub trait Dialect {
    /// A condition that is true exactly where the test is (false or null elsewhere); `None` if it cannot be said.
    fn test(&self, test: &Test, params: &mut Params) -> Option<String>;

    /// Whether the test can be said.
    fn can(&self, test: &Test) -> bool {
        self.test(test, &mut Params::default()).is_some()
    }
}

/// The condition of a predicate, all of whose tests the dialect can say.
pub fn condition(dialect: &dyn Dialect, predicate: &Predicate, params: &mut Params) -> String {
    let joined = |terms: &[Predicate], word: &str, params: &mut Params| {
        let terms: Vec<String> = terms
            .iter()
            .map(|term| condition(dialect, term, params))
            .collect();
        format!("({})", terms.join(word))
    };
    match predicate {
        Predicate::Constant(value) => if *value { "(1 = 1)" } else { "(1 = 0)" }.to_owned(),
        Predicate::And(terms) => joined(terms, " AND ", params),
        Predicate::Or(terms) => joined(terms, " OR ", params),
        // A plan holds no test that cannot be said; should one get here, letting the row through is the safe side.
        Predicate::Test(test) => dialect.test(test, params).unwrap_or_else(|| "(1 = 1)".to_owned()),
    }
}

/// The least text above every text that begins with `prefix`, if there is one: a range that an index can serve.
#[must_use]
pub fn after_prefix(prefix: &str) -> Option<String> {
    let mut text = prefix.to_owned();
    while let Some(last) = text.pop() {
        let next = match last {
            '\u{D7FF}' => Some('\u{E000}'),
            char::MAX => None,
            other => char::from_u32(other as u32 + 1),
        };
        if let Some(next) = next {
            text.push(next);
            return Some(text);
        }
    }
    None
}
