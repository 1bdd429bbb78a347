//! Checked conditions and their functions (languages.md 2.5).

use std::cmp::Ordering;
use std::ops::RangeInclusive;

use super::check::Argument;
use super::path::JsonPath;
use super::symbols::Slot;

/// An expression whose types have been checked.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Expression {
    String(Box<str>),
    Number(f64),
    Bool(bool),
    Null,
    Undefined,
    /// An application property.
    Property(Slot),
    /// The application property if the message has it, else the rest.
    Sigil(Slot, Box<Expression>),
    System(Slot),
    Body(Slot),
    Twin(Slot),
    Not(Box<Expression>),
    Negate(Box<Expression>),
    Binary(Operator, Box<Expression>, Box<Expression>),
    Call(Function, Vec<Expression>),
    ChangeIncludes(JsonPath),
}

/// Operators with two sides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Operator {
    Multiply,
    Divide,
    Remainder,
    Add,
    Subtract,
    Concatenate,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Equal,
    NotEqual,
    And,
    Or,
    Coalesce,
}

impl Operator {
    pub(super) fn parse(symbol: &str) -> Option<Self> {
        Some(match symbol {
            "*" => Operator::Multiply,
            "/" => Operator::Divide,
            "%" => Operator::Remainder,
            "+" => Operator::Add,
            "-" => Operator::Subtract,
            "||" => Operator::Concatenate,
            "<" => Operator::Less,
            "<=" => Operator::LessOrEqual,
            ">" => Operator::Greater,
            ">=" => Operator::GreaterOrEqual,
            "=" => Operator::Equal,
            "!=" | "<>" => Operator::NotEqual,
            "AND" => Operator::And,
            "OR" => Operator::Or,
            "??" => Operator::Coalesce,
            _ => return None,
        })
    }

    /// Whether it gives true, false or neither, whatever its sides are.
    pub(super) fn gives_truth(self) -> bool {
        matches!(self, Operator::And | Operator::Or) || self.is_comparison()
    }

    fn is_comparison(self) -> bool {
        matches!(
            self,
            Operator::Equal
                | Operator::NotEqual
                | Operator::Less
                | Operator::LessOrEqual
                | Operator::Greater
                | Operator::GreaterOrEqual
        )
    }

    /// Whether a comparison holds for sides in this order; false for other operators.
    pub(super) fn holds(self, order: Ordering) -> bool {
        match self {
            Operator::Equal => order == Ordering::Equal,
            Operator::NotEqual => order != Ordering::Equal,
            Operator::Less => order == Ordering::Less,
            Operator::LessOrEqual => order != Ordering::Greater,
            Operator::Greater => order == Ordering::Greater,
            Operator::GreaterOrEqual => order != Ordering::Less,
            _ => false,
        }
    }
}

/// Functions; names are taken in any case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Function {
    Abs,
    Exp,
    Power,
    Square,
    Sqrt,
    Ceiling,
    Floor,
    Sign,
    AsNumber,
    IsBool,
    IsNumber,
    IsString,
    IsNull,
    IsDefined,
    IsArray,
    IsObject,
    IsPrimitive,
    Concat,
    Length,
    Lower,
    Upper,
    Substring,
    IndexOf,
    StartsWith,
    EndsWith,
    Contains,
}

/// Arguments and result of a function.
pub(super) struct Signature {
    pub(super) counts: RangeInclusive<usize>,
    first: Argument,
    others: Argument,
    pub(super) result: Argument,
}

impl Signature {
    pub(super) fn argument(&self, at: usize) -> Argument {
        if at == 0 { self.first } else { self.others }
    }
}

impl Function {
    pub(super) const NAMES: &'static [(&'static str, Function)] = &[
        ("ABS", Function::Abs),
        ("EXP", Function::Exp),
        ("POWER", Function::Power),
        ("SQUARE", Function::Square),
        ("SQRT", Function::Sqrt),
        ("CEILING", Function::Ceiling),
        ("FLOOR", Function::Floor),
        ("SIGN", Function::Sign),
        ("AS_NUMBER", Function::AsNumber),
        ("IS_BOOL", Function::IsBool),
        ("IS_NUMBER", Function::IsNumber),
        ("IS_STRING", Function::IsString),
        ("IS_NULL", Function::IsNull),
        ("IS_DEFINED", Function::IsDefined),
        ("IS_ARRAY", Function::IsArray),
        ("IS_OBJECT", Function::IsObject),
        ("IS_PRIMITIVE", Function::IsPrimitive),
        ("CONCAT", Function::Concat),
        ("LENGTH", Function::Length),
        ("LOWER", Function::Lower),
        ("UPPER", Function::Upper),
        ("SUBSTRING", Function::Substring),
        ("INDEX_OF", Function::IndexOf),
        ("STARTS_WITH", Function::StartsWith),
        ("ENDS_WITH", Function::EndsWith),
        ("CONTAINS", Function::Contains),
    ];

    pub(super) fn parse(name: &str) -> Option<Self> {
        Self::NAMES
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, function)| *function)
    }

    pub(super) fn signature(self) -> Signature {
        use Argument::{Any, Number, NumberOrString, String};
        let (counts, first, others, result) = match self {
            Function::Abs
            | Function::Exp
            | Function::Square
            | Function::Sqrt
            | Function::Ceiling
            | Function::Floor
            | Function::Sign => (1..=1, Number, Number, Number),
            Function::Power => (2..=2, Number, Number, Number),
            Function::AsNumber => (1..=1, NumberOrString, NumberOrString, Number),
            Function::IsBool
            | Function::IsNumber
            | Function::IsString
            | Function::IsNull
            | Function::IsDefined
            | Function::IsArray
            | Function::IsObject
            | Function::IsPrimitive => (1..=1, Any, Any, Any),
            Function::Concat => (2..=usize::MAX, String, String, String),
            Function::Length => (1..=1, String, String, Number),
            Function::Lower | Function::Upper => (1..=1, String, String, String),
            Function::Substring => (2..=3, String, Number, String),
            Function::IndexOf => (2..=2, String, String, Number),
            Function::StartsWith | Function::EndsWith | Function::Contains => (2..=2, String, String, Any),
        };
        Signature {
            counts,
            first,
            others,
            result,
        }
    }
}
