//! Conditions of message routes (languages.md section 2).
//!
//! [`Condition::compile`] refuses what can never be right, with its place; references are numbered in a [`Symbols`] that
//! all conditions of a route table share, so that a message is looked at once and not once per route. [`Condition::decide`]
//! is pure: it asks a [`Lookup`] and nothing else.

mod body;
mod check;
mod edge;
mod evaluate;
mod expression;
mod path;
mod sample;
mod symbols;
mod syntax;
mod token;

#[cfg(test)]
mod tests;

pub use body::{BodyFault, parse as parse_body};
pub use check::Place;
pub use edge::{EDGE_ROUTE_BYTES_MAX, EdgeRoute, Sink};
pub use evaluate::Lookup;
pub use path::JsonPath;
pub use sample::Sample;
pub use symbols::{Slot, SlottedProperties, Symbols, SystemName};

use crate::error::QueryError;
use evaluate::Truth;
use expression::Expression;

/// Longest condition, bytes.
pub const CONDITION_BYTES_MAX: usize = 8_192;

/// What a condition says about a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The message takes the route.
    True,
    /// It does not.
    False,
    /// It does not, because something that the condition asks for is missing or of another type.
    Undefined,
}

/// A checked condition.
#[derive(Clone, PartialEq, Debug)]
pub struct Condition {
    expression: Expression,
}

impl Condition {
    /// Reads and checks a condition. An empty one is undefined for every message.
    ///
    /// # Errors
    /// With the place of the first fault: a token, the grammar, types, arities, paths, bounds.
    pub fn compile(text: &str, symbols: &mut Symbols, place: Place) -> Result<Self, QueryError> {
        if text.len() > CONDITION_BYTES_MAX {
            let message = format!("the condition is longer than {CONDITION_BYTES_MAX} bytes");
            return Err(QueryError::new(text, CONDITION_BYTES_MAX..text.len(), message));
        }
        let expression = match syntax::parse(text)? {
            None => Expression::Undefined,
            Some(tree) => check::check(text, &tree, symbols, place)?,
        };
        Ok(Condition { expression })
    }

    /// What it says about every message, if it asks for nothing.
    #[must_use]
    pub fn constant(&self) -> Option<Outcome> {
        match self.expression {
            Expression::Bool(true) => Some(Outcome::True),
            Expression::Bool(false) | Expression::Null => Some(Outcome::False),
            Expression::Undefined => Some(Outcome::Undefined),
            _ => None,
        }
    }

    /// What it says about a message.
    #[must_use]
    pub fn decide(&self, message: &dyn Lookup) -> Outcome {
        match evaluate::truth(&self.expression, message) {
            Truth::True => Outcome::True,
            Truth::False | Truth::Null => Outcome::False,
            Truth::Undefined | Truth::Other => Outcome::Undefined,
        }
    }
}
