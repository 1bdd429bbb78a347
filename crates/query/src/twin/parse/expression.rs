//! Expressions, loosest operator first: OR, AND, NOT, comparison and IN, `+ -`, `* / %`, sign.

use super::names::{is_reserved, nearest};
use super::{NESTING_MAX, Parser};
use crate::error::QueryError;
use crate::twin::ast::{ArithmeticOp, CompareOp, Expr, Literal, TextTest, TypeTest};
use crate::twin::lex::{Symbol, Token};

/// Functions as they are written, for suggestions.
const FUNCTIONS: &[&str] = &[
    "STARTSWITH",
    "ENDSWITH",
    "CONTAINS",
    "ARRAY_CONTAINS",
    "IS_DEFINED",
    "IS_NULL",
    "IS_BOOL",
    "IS_NUMBER",
    "IS_STRING",
    "IS_OBJECT",
    "IS_ARRAY",
    "IS_PRIMITIVE",
];

const OPERAND: &str = "a path, a constant, a function or `(`";

impl Parser<'_> {
    pub(super) fn expression(&mut self) -> Result<Expr, QueryError> {
        self.nested(|parser| {
            let mut terms = vec![parser.and()?];
            while parser.eat_keyword("OR") {
                terms.push(parser.and()?);
            }
            Ok(joined(terms, Expr::Or))
        })
    }

    fn nested<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, QueryError>) -> Result<T, QueryError> {
        self.depth += 1;
        if self.depth > NESTING_MAX {
            return Err(self.error(format!(
                "the expression is nested deeper than {NESTING_MAX} levels"
            )));
        }
        let result = read(self);
        self.depth -= 1;
        result
    }

    fn and(&mut self) -> Result<Expr, QueryError> {
        let mut terms = vec![self.not()?];
        while self.eat_keyword("AND") {
            terms.push(self.not()?);
        }
        Ok(joined(terms, Expr::And))
    }

    fn not(&mut self) -> Result<Expr, QueryError> {
        if self.eat_keyword("NOT") {
            return self.nested(|parser| Ok(Expr::Not(Box::new(parser.not()?))));
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Result<Expr, QueryError> {
        let left = self.sum()?;
        let negated_in = self.is_keyword("NOT")
            && matches!(self.token_at(1), Some(Token::Word(word)) if word.eq_ignore_ascii_case("IN"));
        if negated_in || self.is_keyword("NOT_IN") {
            return Err(self.error("expected NIN for \"not in\""));
        }
        if self.is_keyword("IN") || self.is_keyword("NIN") {
            let negated = self.is_keyword("NIN");
            self.advance();
            if self.is_symbol(Symbol::Open) {
                return Err(self.error("the values after IN and NIN stand in square brackets: IN ['a', 'b']"));
            }
            let list = self.array()?;
            return Ok(Expr::In {
                value: Box::new(left),
                list,
                negated,
            });
        }
        if self.is_keyword("LIKE") {
            return Err(self.error("there is no LIKE; use STARTSWITH(path, 'text')"));
        }
        if self.is_keyword("BETWEEN") {
            return Err(self.error("there is no BETWEEN; use >= and <="));
        }
        if self.is_keyword("IS") {
            return Err(self.error("there is no IS; use = null, or IS_DEFINED(path)"));
        }
        let Some(op) = self.compare_op() else {
            return Ok(left);
        };
        self.advance();
        let right = self.sum()?;
        if self.compare_op().is_some() {
            return Err(self.error("comparisons do not follow each other; join them with AND"));
        }
        Ok(Expr::Compare {
            op,
            left: Box::new(left),
            right: Box::new(right),
        })
    }

    fn compare_op(&self) -> Option<CompareOp> {
        let Token::Symbol(symbol) = self.token() else {
            return None;
        };
        Some(match symbol {
            Symbol::Equal => CompareOp::Equal,
            Symbol::NotEqual => CompareOp::NotEqual,
            Symbol::Less => CompareOp::Less,
            Symbol::LessEqual => CompareOp::LessEqual,
            Symbol::Greater => CompareOp::Greater,
            Symbol::GreaterEqual => CompareOp::GreaterEqual,
            _ => return None,
        })
    }

    fn sum(&mut self) -> Result<Expr, QueryError> {
        self.chain(Self::product, |symbol| match symbol {
            Symbol::Plus => Some(ArithmeticOp::Add),
            Symbol::Minus => Some(ArithmeticOp::Subtract),
            _ => None,
        })
    }

    fn product(&mut self) -> Result<Expr, QueryError> {
        self.chain(Self::sign, |symbol| match symbol {
            Symbol::Star => Some(ArithmeticOp::Multiply),
            Symbol::Slash => Some(ArithmeticOp::Divide),
            Symbol::Percent => Some(ArithmeticOp::Remainder),
            _ => None,
        })
    }

    fn chain(
        &mut self,
        operand: fn(&mut Self) -> Result<Expr, QueryError>,
        op_of: fn(Symbol) -> Option<ArithmeticOp>,
    ) -> Result<Expr, QueryError> {
        let mut left = operand(self)?;
        let mut length = 0;
        loop {
            let op = match self.token() {
                Token::Symbol(symbol) => op_of(*symbol),
                _ => None,
            };
            let Some(op) = op else {
                return Ok(left);
            };
            length += 1;
            if length > NESTING_MAX {
                // The tree is as deep as the chain is long.
                return Err(self.error(format!("more than {NESTING_MAX} operands in a row")));
            }
            self.advance();
            let right = operand(self)?;
            left = Expr::Arithmetic {
                op,
                left: Box::new(left),
                right: Box::new(right),
            };
        }
    }

    fn sign(&mut self) -> Result<Expr, QueryError> {
        if !self.eat_symbol(Symbol::Minus) {
            return self.primary();
        }
        self.nested(|parser| {
            Ok(match parser.sign()? {
                Expr::Literal(Literal::Number(number)) => Expr::Literal(Literal::Number(-number)),
                other => Expr::Negate(Box::new(other)),
            })
        })
    }

    fn primary(&mut self) -> Result<Expr, QueryError> {
        if let Some(literal) = self.literal() {
            return Ok(Expr::Literal(literal));
        }
        if self.eat_symbol(Symbol::Open) {
            if self.is_keyword("SELECT") {
                return Err(self.error("there are no queries inside queries"));
            }
            let inner = self.expression()?;
            if !self.is_symbol(Symbol::Close) {
                return Err(self.expected("an operator or `)`"));
            }
            self.advance();
            return Ok(inner);
        }
        if self.is_symbol(Symbol::OpenBracket) {
            return Err(self.error("values in square brackets stand only after IN and NIN"));
        }
        if self.token_at(1) == Some(&Token::Symbol(Symbol::Open))
            && let Token::Word(word) = self.token()
        {
            let name = word.to_ascii_uppercase();
            // `deviceId IN (…)` is caught where IN is read.
            if !matches!(name.as_str(), "AND" | "OR" | "NOT" | "IN" | "NIN") {
                return self.nested(|parser| parser.call(&name));
            }
        }
        Ok(Expr::Path(self.path(OPERAND)?))
    }

    fn literal(&mut self) -> Option<Literal> {
        let literal = match self.token() {
            Token::Number(number) => Literal::Number(*number),
            Token::String(text) => Literal::String(text.clone()),
            Token::Word(word) if word.eq_ignore_ascii_case("true") => Literal::Bool(true),
            Token::Word(word) if word.eq_ignore_ascii_case("false") => Literal::Bool(false),
            Token::Word(word) if word.eq_ignore_ascii_case("null") => Literal::Null,
            Token::Word(word) if word.eq_ignore_ascii_case("undefined") => Literal::Undefined,
            _ => return None,
        };
        self.advance();
        Some(literal)
    }

    /// `[constant, …]`.
    fn array(&mut self) -> Result<Vec<Literal>, QueryError> {
        self.expect_symbol(Symbol::OpenBracket)?;
        let mut list = Vec::new();
        if self.eat_symbol(Symbol::CloseBracket) {
            return Ok(list);
        }
        loop {
            let negative = self.eat_symbol(Symbol::Minus);
            match self.literal() {
                Some(Literal::Number(number)) if negative => list.push(Literal::Number(-number)),
                Some(literal) if !negative => list.push(literal),
                _ => return Err(self.expected("a constant between `[` and `]`")),
            }
            if !self.eat_symbol(Symbol::Comma) {
                if !self.is_symbol(Symbol::CloseBracket) {
                    return Err(self.expected("`,` or `]`"));
                }
                self.advance();
                return Ok(list);
            }
        }
    }

    fn call(&mut self, name: &str) -> Result<Expr, QueryError> {
        let start = self.range().start;
        let unknown = |parser: &Self, message: String| Err(parser.error(message));
        match name {
            "STARTS_WITH" => {
                return unknown(
                    self,
                    "STARTS_WITH is of routing queries; here use STARTSWITH".into(),
                );
            }
            "ENDS_WITH" => return unknown(self, "ENDS_WITH is of routing queries; here use ENDSWITH".into()),
            "COUNT" | "AVG" | "SUM" | "MIN" | "MAX" => {
                return unknown(self, format!("{name} stands in SELECT, not in a condition"));
            }
            _ if !FUNCTIONS.contains(&name) => {
                let mut message = format!("there is no function {name}");
                if let Some(near) = nearest(name, FUNCTIONS) {
                    message.push_str(&format!("; did you mean {near}?"));
                } else if !is_reserved(name) {
                    message.push_str(&format!("; there are {}", FUNCTIONS.join(", ")));
                }
                return unknown(self, message);
            }
            _ => {}
        }
        self.advance();
        self.expect_symbol(Symbol::Open)?;
        let expr = match name {
            "IS_DEFINED" => Expr::IsDefined(self.path("a path in IS_DEFINED")?),
            "ARRAY_CONTAINS" => {
                let array = self.path("the path of an array in ARRAY_CONTAINS")?;
                self.separator("ARRAY_CONTAINS(path, value)")?;
                let value = Box::new(self.expression()?);
                Expr::ArrayContains { array, value }
            }
            "STARTSWITH" => self.text_test(TextTest::StartsWith, "STARTSWITH(text, prefix)")?,
            "ENDSWITH" => self.text_test(TextTest::EndsWith, "ENDSWITH(text, suffix)")?,
            "CONTAINS" => self.text_test(TextTest::Contains, "CONTAINS(text, part)")?,
            _ => {
                let test = match name {
                    "IS_NULL" => TypeTest::Null,
                    "IS_BOOL" => TypeTest::Bool,
                    "IS_NUMBER" => TypeTest::Number,
                    "IS_STRING" => TypeTest::String,
                    "IS_OBJECT" => TypeTest::Object,
                    "IS_ARRAY" => TypeTest::Array,
                    _ => TypeTest::Primitive,
                };
                Expr::IsType(test, Box::new(self.expression()?))
            }
        };
        if self.is_symbol(Symbol::Comma) {
            return Err(self.error_from(start, format!("{name} has too many arguments")));
        }
        self.expect_symbol(Symbol::Close)?;
        Ok(expr)
    }

    fn text_test(&mut self, test: TextTest, form: &str) -> Result<Expr, QueryError> {
        let text = Box::new(self.expression()?);
        self.separator(form)?;
        let part = Box::new(self.expression()?);
        Ok(Expr::Text { test, text, part })
    }

    fn separator(&mut self, form: &str) -> Result<(), QueryError> {
        if self.eat_symbol(Symbol::Comma) {
            Ok(())
        } else {
            Err(self.expected(&format!("`,`: the form is {form}")))
        }
    }
}

/// Several terms under one operator; a single one stays as it is.
fn joined(mut terms: Vec<Expr>, join: fn(Vec<Expr>) -> Expr) -> Expr {
    match terms.pop() {
        Some(only) if terms.is_empty() => only,
        Some(last) => {
            terms.push(last);
            join(terms)
        }
        None => Expr::Literal(Literal::Undefined),
    }
}
