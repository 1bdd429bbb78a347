//! The grammar of the routing language (languages.md 2.2): tokens to a tree, without regard to types.

use std::ops::Range;

use super::token::{Kind, Token, tokens};
use crate::error::QueryError;

/// Parentheses, calls and prefix operators inside each other beyond which a condition is refused, and operators in all:
/// parsing and evaluation recurse.
const DEPTH_MAX: usize = 50;
const OPERATORS_MAX: usize = 500;

/// A place in the tree with its range in the text.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Node {
    pub(super) form: Form,
    pub(super) range: Range<usize>,
}

/// What stands there.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Form {
    String(String),
    Number(f64),
    Bool(bool),
    Null,
    Undefined,
    /// An application property.
    Property(String),
    /// `$…`; in braces it never means an application property.
    Reference {
        name: String,
        braced: bool,
    },
    Unary(&'static str, Box<Node>),
    Binary(&'static str, Box<Node>, Box<Node>),
    Call(String, Vec<Node>),
}

/// Reads a condition. An empty one is `None`.
pub(super) fn parse(text: &str) -> Result<Option<Node>, QueryError> {
    let tokens = tokens(text)?;
    if tokens.is_empty() {
        return Ok(None);
    }
    let mut parser = Parser {
        text,
        tokens,
        at: 0,
        depth: 0,
        operators: 0,
    };
    let node = parser.binary(0)?;
    match parser.tokens.get(parser.at) {
        None => Ok(Some(node)),
        Some(token) => Err(parser.unexpected(Some(token), "an operator or the end")),
    }
}

/// Binary operators from the loosest to the tightest; all associate to the left.
const LEVELS: &[&[&str]] = &[
    &["??"],
    &["OR"],
    &["AND"],
    &["=", "!=", "<>"],
    &["<", "<=", ">", ">="],
    &["+", "-", "||"],
    &["*", "/", "%"],
];

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
    operators: usize,
}

impl Parser<'_> {
    /// An expression whose operators bind at least as tightly as `level`: by climbing, so that only operators that are
    /// there cost a level of recursion.
    fn binary(&mut self, level: usize) -> Result<Node, QueryError> {
        let mut left = self.unary()?;
        while let Some((at, operator)) = self.operator(level) {
            self.operators += 1;
            self.check_bounds()?;
            let right = self.binary(at + 1)?;
            let range = left.range.start..right.range.end;
            let form = Form::Binary(operator, Box::new(left), Box::new(right));
            left = Node { form, range };
        }
        Ok(left)
    }

    /// Takes an operator of `level` or tighter; returns its own level.
    fn operator(&mut self, level: usize) -> Option<(usize, &'static str)> {
        (level..LEVELS.len()).find_map(|at| Some((at, self.symbol(LEVELS[at])?)))
    }

    fn unary(&mut self) -> Result<Node, QueryError> {
        let start = self.place().start;
        // NOT and minus bind tighter than everything with two sides, and NOT looser than minus; either order nests.
        let Some(operator) = self.symbol(&["NOT", "-"]) else {
            return self.primary();
        };
        self.nested(|parser| {
            let operand = parser.unary()?;
            let range = start..operand.range.end;
            let form = Form::Unary(operator, Box::new(operand));
            Ok(Node { form, range })
        })
    }

    fn primary(&mut self) -> Result<Node, QueryError> {
        let Some(token) = self.tokens.get(self.at).cloned() else {
            return Err(self.unexpected(None, "a value, a property, a function or ("));
        };
        self.at += 1;
        let form = match token.kind {
            Kind::String(value) => Form::String(value),
            Kind::Number(value) => Form::Number(value),
            Kind::Bool(value) => Form::Bool(value),
            Kind::Null => Form::Null,
            Kind::Undefined => Form::Undefined,
            Kind::Reference => Form::Reference {
                name: self.text[token.range.clone()].to_owned(),
                braced: false,
            },
            Kind::Name if self.symbol(&["("]).is_some() => return self.call(token.range),
            Kind::Name => Form::Property(self.text[token.range.clone()].to_owned()),
            Kind::Symbol("(") => {
                return self.nested(|parser| {
                    let inner = parser.binary(0)?;
                    let end = parser.expect(")")?;
                    Ok(Node {
                        form: inner.form,
                        range: token.range.start..end,
                    })
                });
            }
            Kind::Symbol("{") => return self.braced(token.range.start),
            Kind::Symbol(_) => {
                return Err(self.unexpected(Some(&token), "a value, a property, a function or ("));
            }
        };
        Ok(Node {
            form,
            range: token.range,
        })
    }

    /// `{$name}`, after the brace.
    fn braced(&mut self, start: usize) -> Result<Node, QueryError> {
        let token = self.tokens.get(self.at).cloned();
        let Some(token) = token.filter(|token| token.kind == Kind::Reference) else {
            return Err(self.unexpected(self.tokens.get(self.at), "a system property such as $contentType"));
        };
        self.at += 1;
        let end = self.expect("}")?;
        Ok(Node {
            form: Form::Reference {
                name: self.text[token.range].to_owned(),
                braced: true,
            },
            range: start..end,
        })
    }

    /// A function's arguments, after the parenthesis.
    fn call(&mut self, name: Range<usize>) -> Result<Node, QueryError> {
        self.nested(|parser| {
            let mut arguments = Vec::new();
            if let Some(end) = parser.end_of_call() {
                return Ok(parser.called(name.clone(), arguments, end));
            }
            loop {
                arguments.push(parser.binary(0)?);
                if parser.symbol(&[","]).is_none() {
                    let end = parser.expect(")")?;
                    return Ok(parser.called(name.clone(), arguments, end));
                }
            }
        })
    }

    fn end_of_call(&mut self) -> Option<usize> {
        let end = self.place().end;
        self.symbol(&[")"]).map(|_| end)
    }

    fn called(&self, name: Range<usize>, arguments: Vec<Node>, end: usize) -> Node {
        Node {
            form: Form::Call(self.text[name.clone()].to_owned(), arguments),
            range: name.start..end,
        }
    }

    /// Takes the next token if it is one of `wanted`.
    fn symbol(&mut self, wanted: &[&'static str]) -> Option<&'static str> {
        let Kind::Symbol(symbol) = self.tokens.get(self.at)?.kind else {
            return None;
        };
        let found = wanted.iter().find(|wanted| **wanted == symbol)?;
        self.at += 1;
        Some(found)
    }

    fn expect(&mut self, wanted: &'static str) -> Result<usize, QueryError> {
        let end = self.place().end;
        match self.symbol(&[wanted]) {
            Some(_) => Ok(end),
            None => Err(self.unexpected(self.tokens.get(self.at), wanted)),
        }
    }

    fn place(&self) -> Range<usize> {
        let end = self.text.len();
        self.tokens
            .get(self.at)
            .map_or(end..end, |token| token.range.clone())
    }

    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T, QueryError>) -> Result<T, QueryError> {
        self.depth += 1;
        self.check_bounds()?;
        let result = parse(self);
        self.depth -= 1;
        result
    }

    fn check_bounds(&self) -> Result<(), QueryError> {
        if self.depth <= DEPTH_MAX && self.operators <= OPERATORS_MAX {
            return Ok(());
        }
        let text = format!(
            "the condition is nested more than {DEPTH_MAX} deep or has more than {OPERATORS_MAX} operators"
        );
        Err(QueryError::new(self.text, self.place(), text))
    }

    fn unexpected(&self, token: Option<&Token>, expected: &str) -> QueryError {
        let Some(token) = token else {
            let end = self.text.len();
            return QueryError::new(
                self.text,
                end..end,
                format!("the condition ends here; expected {expected}"),
            );
        };
        let found = &self.text[token.range.clone()];
        let hint = match found {
            "=" if self.text[..token.range.start].ends_with('=') => "; equality is written =",
            _ if self.spaces_missing(token) => "; operators need spaces around them",
            _ => "",
        };
        QueryError::new(
            self.text,
            token.range.clone(),
            format!("found {found}, expected {expected}{hint}"),
        )
    }

    /// Whether a name next to the token holds what was meant as an operator.
    fn spaces_missing(&self, token: &Token) -> bool {
        let before = self
            .tokens
            .iter()
            .take_while(|other| other.range.start < token.range.start)
            .last();
        [before, Some(token)].into_iter().flatten().any(|token| {
            token.kind == Kind::Name
                && self.text[token.range.clone()].contains(['-', '+', '*', '%', '!', '|'])
        })
    }
}
