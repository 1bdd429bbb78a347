//! Types of the routing language (languages.md 2.2, 2.4, 2.5): what is known to be wrong is refused when a route is
//! saved.
//!
//! Application and system properties are strings; values of bodies and twins are of any type and are compared when a
//! message comes.

use std::ops::Range;

use super::expression::{Expression, Function, Operator};
use super::path::JsonPath;
use super::symbols::{Slot, Symbols, SystemName};
use super::syntax::{Form, Node};
use crate::error::QueryError;

/// Which of the language's places a condition stands in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Place {
    /// The messages are twin changes, so `TWIN_CHANGE_INCLUDES` has a meaning.
    pub twin_changes: bool,
    /// The sender's twin cannot be asked for: the edge runtime has none.
    pub no_twin: bool,
}

/// Static type of an expression.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Type {
    Bool,
    Number,
    String,
    Null,
    Undefined,
    /// Known when a message comes.
    Dynamic,
}

impl Type {
    fn name(self) -> &'static str {
        match self {
            Type::Bool => "a Boolean",
            Type::Number => "a number",
            Type::String => "a string",
            Type::Null => "null",
            Type::Undefined => "undefined",
            Type::Dynamic => "a value of the message",
        }
    }

    /// Whether a value of this type may stand where `wanted` is needed.
    fn fits(self, wanted: Type) -> bool {
        self == wanted || self == Type::Dynamic
    }

    /// Whether it may be a truth value.
    fn is_truth(self) -> bool {
        !matches!(self, Type::Number | Type::String)
    }
}

/// Turns a tree into an expression.
pub(super) fn check(
    text: &str,
    node: &Node,
    symbols: &mut Symbols,
    place: Place,
) -> Result<Expression, QueryError> {
    let mut checker = Checker { text, symbols, place };
    let (expression, found) = checker.node(node)?;
    if found.is_truth() {
        return Ok(expression);
    }
    Err(checker.fault(
        node,
        format!("the condition is {}; expected a Boolean", found.name()),
    ))
}

struct Checker<'a> {
    text: &'a str,
    symbols: &'a mut Symbols,
    place: Place,
}

type Checked = Result<(Expression, Type), QueryError>;

impl Checker<'_> {
    fn node(&mut self, node: &Node) -> Checked {
        Ok(match &node.form {
            Form::String(value) => (Expression::String(value.as_str().into()), Type::String),
            Form::Number(value) => (Expression::Number(*value), Type::Number),
            Form::Bool(value) => (Expression::Bool(*value), Type::Bool),
            Form::Null => (Expression::Null, Type::Null),
            Form::Undefined => (Expression::Undefined, Type::Undefined),
            Form::Property(name) => {
                let slot = self.slot(node, |symbols| symbols.property(name))?;
                (Expression::Property(slot), Type::String)
            }
            Form::Reference { name, braced } => self.reference(node, name, *braced)?,
            Form::Unary(operator, operand) => self.unary(operator, operand)?,
            Form::Binary(operator, left, right) => self.binary(node, operator, left, right)?,
            Form::Call(name, arguments) => self.call(node, name, arguments)?,
        })
    }

    fn reference(&mut self, node: &Node, name: &str, braced: bool) -> Checked {
        let (meant, found) = self.meant(node, name)?;
        if braced {
            return Ok((meant, found));
        }
        // An application property of that very name comes first.
        let slot = self.slot(node, |symbols| symbols.property(name))?;
        Ok((Expression::Sigil(slot, Box::new(meant)), found))
    }

    /// What a `$name` means if it is no application property.
    fn meant(&mut self, node: &Node, name: &str) -> Checked {
        if let Some(path) = strip_prefix(name, "$body.") {
            let path = self.path(node, path)?;
            let slot = self.slot(node, |symbols| symbols.body(path))?;
            return Ok((Expression::Body(slot), Type::Dynamic));
        }
        if let Some(path) = strip_prefix(name, "$twin.") {
            return self.twin(node, path);
        }
        for (prefix, example) in [("$body", "$body.temperature"), ("$twin", "$twin.tags.site")] {
            if name.eq_ignore_ascii_case(prefix) || strip_prefix(name, &format!("{prefix}[")).is_some() {
                return Err(self.fault(node, format!("{prefix} needs a path, such as {example}")));
            }
        }
        match SystemName::parse(&name[1..]) {
            Some(system) => {
                let slot = self.slot(node, |symbols| symbols.system(system))?;
                Ok((Expression::System(slot), Type::String))
            }
            // Not a system property this hub knows; a message may still carry a property of that name.
            None => Ok((Expression::Undefined, Type::String)),
        }
    }

    fn twin(&mut self, node: &Node, path: &str) -> Checked {
        if self.place.no_twin {
            return Err(self.fault(node, "conditions of edge routes cannot ask for $twin"));
        }
        let path = self.path(node, path)?;
        if !matches!(path.first(), "tags" | "properties") {
            let text = "expected $twin.tags, $twin.properties.desired or $twin.properties.reported";
            return Err(self.fault(node, text));
        }
        let slot = self.slot(node, |symbols| symbols.twin(path))?;
        Ok((Expression::Twin(slot), Type::Dynamic))
    }

    fn path(&self, node: &Node, path: &str) -> Result<JsonPath, QueryError> {
        JsonPath::parse(path).ok_or_else(|| {
            self.fault(
                node,
                "the path is not names with at most one index each, such as a.b[0].c; operators need spaces around them",
            )
        })
    }

    fn slot(
        &mut self,
        node: &Node,
        intern: impl FnOnce(&mut Symbols) -> Option<Slot>,
    ) -> Result<Slot, QueryError> {
        intern(self.symbols)
            .ok_or_else(|| self.fault(node, "the routes refer to too many different properties"))
    }

    fn unary(&mut self, operator: &str, operand: &Node) -> Checked {
        let (inner, found) = self.node(operand)?;
        if operator == "NOT" {
            if !found.is_truth() {
                return Err(self.operand(operand, found, "NOT", "a Boolean"));
            }
            return Ok((Expression::Not(Box::new(inner)), Type::Bool));
        }
        if !found.fits(Type::Number) {
            return Err(self.operand(operand, found, "-", "a number"));
        }
        Ok((Expression::Negate(Box::new(inner)), Type::Number))
    }

    fn binary(&mut self, node: &Node, symbol: &str, left: &Node, right: &Node) -> Checked {
        let (left_value, left_type) = self.node(left)?;
        let (right_value, right_type) = self.node(right)?;
        let Some(operator) = Operator::parse(symbol) else {
            return Err(self.fault(node, format!("unknown operator {symbol}")));
        };
        let each = [(left, left_type), (right, right_type)];
        let found = match operator {
            Operator::Add
            | Operator::Subtract
            | Operator::Multiply
            | Operator::Divide
            | Operator::Remainder => {
                self.all(each, symbol, Type::Number)?;
                Type::Number
            }
            Operator::Concatenate => {
                self.all(each, symbol, Type::String)?;
                Type::String
            }
            Operator::And | Operator::Or => {
                if let Some((operand, found)) = each.into_iter().find(|(_, found)| !found.is_truth()) {
                    return Err(self.operand(operand, found, symbol, "a Boolean"));
                }
                Type::Bool
            }
            Operator::Coalesce => self.same(node, symbol, left_type, right_type)?,
            _ => {
                self.same(node, symbol, left_type, right_type)?;
                Type::Bool
            }
        };
        let expression = Expression::Binary(operator, Box::new(left_value), Box::new(right_value));
        Ok((expression, found))
    }

    fn all(&self, each: [(&Node, Type); 2], symbol: &str, wanted: Type) -> Result<(), QueryError> {
        match each.into_iter().find(|(_, found)| !found.fits(wanted)) {
            None => Ok(()),
            Some((node, found)) => Err(self.operand(node, found, symbol, wanted.name())),
        }
    }

    /// The common type of both sides; null and undefined go with every type.
    fn same(&self, node: &Node, symbol: &str, left: Type, right: Type) -> Result<Type, QueryError> {
        match (left, right) {
            _ if left == right => Ok(left),
            (Type::Null | Type::Undefined, other) | (other, Type::Null | Type::Undefined) => Ok(other),
            (Type::Dynamic, _) | (_, Type::Dynamic) => Ok(Type::Dynamic),
            _ => {
                let (left, right) = (left.name(), right.name());
                let hint = if [left, right].contains(&Type::Number.name()) {
                    "; properties are strings, as_number(name) makes a number of one"
                } else {
                    ""
                };
                let text = format!("invalid operands: {symbol} cannot compare {left} with {right}{hint}");
                Err(self.fault(node, text))
            }
        }
    }

    fn call(&mut self, node: &Node, name: &str, arguments: &[Node]) -> Checked {
        if name.eq_ignore_ascii_case("TWIN_CHANGE_INCLUDES") {
            return self.twin_change_includes(node, arguments);
        }
        let Some(function) = Function::parse(name) else {
            return Err(self.unknown_function(node, name));
        };
        let signature = function.signature();
        if !signature.counts.contains(&arguments.len()) {
            let (from, to) = (signature.counts.start(), signature.counts.end());
            let wanted = match (from, to) {
                _ if from == to => format!("{from}"),
                (_, &usize::MAX) => format!("at least {from}"),
                _ => format!("{from} to {to}"),
            };
            let text = format!("{name} takes {wanted} arguments, {} given", arguments.len());
            return Err(self.fault(node, text));
        }
        let mut values = Vec::with_capacity(arguments.len());
        for (at, argument) in arguments.iter().enumerate() {
            let (value, found) = self.node(argument)?;
            let wanted = signature.argument(at);
            let fits = match wanted {
                Argument::Any => true,
                Argument::Number => found.fits(Type::Number) || found == Type::Undefined,
                Argument::String => found.fits(Type::String) || matches!(found, Type::Undefined | Type::Null),
                Argument::NumberOrString => !matches!(found, Type::Bool),
            };
            if !fits {
                return Err(self.operand(argument, found, name, wanted.name()));
            }
            values.push(value);
        }
        let found = match signature.result {
            Argument::Number => Type::Number,
            Argument::String => Type::String,
            _ => Type::Bool,
        };
        Ok((Expression::Call(function, values), found))
    }

    fn twin_change_includes(&mut self, node: &Node, arguments: &[Node]) -> Checked {
        if !self.place.twin_changes {
            return Err(self.fault(
                node,
                "TWIN_CHANGE_INCLUDES needs a route whose source is twin changes",
            ));
        }
        let path = match arguments {
            [
                Node {
                    form: Form::Property(path) | Form::String(path),
                    ..
                },
            ] => JsonPath::parse(path),
            _ => None,
        };
        let known = |path: &JsonPath| {
            let text = path.to_string();
            ["tags.", "properties.desired.", "properties.reported."]
                .iter()
                .any(|prefix| text.starts_with(prefix))
        };
        let Some(path) = path.filter(known) else {
            let text = "expected one path that begins with tags, properties.desired or properties.reported";
            return Err(self.fault(node, text));
        };
        Ok((Expression::ChangeIncludes(path), Type::Bool))
    }

    fn unknown_function(&self, node: &Node, name: &str) -> QueryError {
        let plain = name.replace('_', "");
        let meant = Function::NAMES
            .iter()
            .find(|(known, _)| known.replace('_', "").eq_ignore_ascii_case(&plain));
        let hint = meant.map_or(String::new(), |(known, _)| format!("; did you mean {known}?"));
        let range: Range<usize> = node.range.start..node.range.start + name.len();
        QueryError::new(self.text, range, format!("there is no function {name}{hint}"))
    }

    fn operand(&self, node: &Node, found: Type, operator: &str, wanted: &str) -> QueryError {
        let hint = match (wanted, found) {
            ("a number", Type::String) => "; as_number(name) makes a number of a property",
            ("a Boolean", Type::String) => "; compare it, for example name = 'value'",
            _ => "",
        };
        let found = found.name();
        self.fault(
            node,
            format!("invalid operands: {operator} needs {wanted} and this is {found}{hint}"),
        )
    }

    fn fault(&self, node: &Node, message: impl Into<String>) -> QueryError {
        QueryError::new(self.text, node.range.clone(), message)
    }
}

/// `text` after `prefix`, which is in lower case and compared without regard to case.
fn strip_prefix<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let start = text.get(..prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then(|| &text[prefix.len()..])
}

/// What a function takes in a place, or gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Argument {
    Any,
    Number,
    String,
    NumberOrString,
}

impl Argument {
    fn name(self) -> &'static str {
        match self {
            Argument::Any => "a value",
            Argument::Number => "a number",
            Argument::String => "a string",
            Argument::NumberOrString => "a number or a string",
        }
    }
}
