//! Tokens of the routing language (languages.md 2.2).
//!
//! The longest match wins, and of two equally long ones the more special kind. Identifiers take nearly everything, so
//! `a-b`, `3-4` and `x||y` are one name each: operators stand between spaces.

use std::ops::Range;

use crate::error::QueryError;

/// Characters that end an identifier.
const SEPARATORS: &str = "()<>@,;:\\\"/[]?={} \t\r\n";
/// Characters that end a reference with a `$`; brackets belong to it.
const REFERENCE_SEPARATORS: &str = "()<>@,;:\\\"/?={} \t\r\n";

/// What a token is.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Kind {
    /// `'…'` or `"…"`, unescaped.
    String(String),
    /// Decimal, real or hexadecimal.
    Number(f64),
    /// `true`, `false`.
    Bool(bool),
    /// `null`.
    Null,
    /// `undefined`.
    Undefined,
    /// `AND`, `OR`, `NOT`, `=`, `(`, …: in upper case.
    Symbol(&'static str),
    /// A name: property or function.
    Name,
    /// `$…`.
    Reference,
}

/// A token with its place in the text.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) range: Range<usize>,
}

/// Symbols, longer ones before those they begin with.
const SYMBOLS: &[&str] = &[
    "!=", "<>", "<=", ">=", "||", "??", "=", "<", ">", "+", "-", "*", "/", "%", "(", ")", ",", "{", "}",
];

/// All tokens of a text.
pub(super) fn tokens(text: &str) -> Result<Vec<Token>, QueryError> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        if first.is_ascii_whitespace() {
            at += first.len_utf8();
        } else if let Some(comment) = rest.strip_prefix("/*") {
            let Some(end) = comment.find("*/") else {
                return Err(QueryError::new(
                    text,
                    at..text.len(),
                    "the comment has no end; expected */",
                ));
            };
            at += end + 4;
        } else {
            let (kind, length) = longest(rest).map_err(|fault| fault.at(text, at))?;
            tokens.push(Token {
                kind,
                range: at..at + length,
            });
            at += length;
        }
    }
    Ok(tokens)
}

/// A fault inside a token, counted from its start.
struct Fault {
    range: Range<usize>,
    message: String,
}

impl Fault {
    fn at(self, text: &str, offset: usize) -> QueryError {
        QueryError::new(
            text,
            self.range.start + offset..self.range.end + offset,
            self.message,
        )
    }
}

/// The token at the start of `text`, which is not empty.
fn longest(text: &str) -> Result<(Kind, usize), Fault> {
    let name = text.find(|c| SEPARATORS.contains(c)).unwrap_or(text.len());
    let reference = reference_length(text);
    if reference > name {
        return Ok((Kind::Reference, reference));
    }
    if text.starts_with(['\'', '"']) {
        let (value, length) = string(text)?;
        // A name may begin with an apostrophe and go on after the closing one.
        if length >= name {
            return Ok((Kind::String(value), length));
        }
    }
    if let Some((value, length)) = number(text)
        && length >= name
    {
        return Ok((Kind::Number(value), length));
    }
    let symbol = SYMBOLS.iter().find(|symbol| text.starts_with(**symbol));
    if let Some(symbol) = symbol
        && symbol.len() >= name
    {
        return Ok((Kind::Symbol(symbol), symbol.len()));
    }
    if reference == name && reference > 0 {
        return Ok((Kind::Reference, reference));
    }
    if name == 0 {
        let wrong = text.chars().next().unwrap_or(' ');
        return Err(Fault {
            range: 0..wrong.len_utf8(),
            message: format!("{wrong:?} has no meaning here"),
        });
    }
    Ok((word(&text[..name]), name))
}

fn reference_length(text: &str) -> usize {
    let Some(rest) = text.strip_prefix('$') else {
        return 0;
    };
    match rest
        .find(|c| REFERENCE_SEPARATORS.contains(c))
        .unwrap_or(rest.len())
    {
        0 => 0,
        length => length + 1,
    }
}

fn word(text: &str) -> Kind {
    match text {
        "true" => return Kind::Bool(true),
        "false" => return Kind::Bool(false),
        "null" => return Kind::Null,
        "undefined" => return Kind::Undefined,
        _ => {}
    }
    ["AND", "OR", "NOT"]
        .into_iter()
        .find(|keyword| text.eq_ignore_ascii_case(keyword))
        .map_or(Kind::Name, Kind::Symbol)
}

/// A quoted text with its length in the source.
fn string(text: &str) -> Result<(String, usize), Fault> {
    let mut chars = text.char_indices();
    let quote = chars.next().map(|(_, quote)| quote);
    let mut value = String::new();
    while let Some((at, c)) = chars.next() {
        if Some(c) == quote {
            return Ok((value, at + 1));
        }
        if c != '\\' {
            value.push(c);
            continue;
        }
        let escaped = chars.next();
        match escaped.map(|(_, escaped)| escaped) {
            Some(escaped @ ('\'' | '"' | '\\')) => value.push(escaped),
            Some('u') => {
                let digits = text.get(at + 2..at + 6);
                let decoded = digits
                    .and_then(|digits| u32::from_str_radix(digits, 16).ok())
                    .and_then(char::from_u32);
                let Some(decoded) = decoded else {
                    return Err(Fault {
                        range: at..at + 2,
                        message: "expected four hexadecimal digits of a character after \\u".to_owned(),
                    });
                };
                value.push(decoded);
                let _ = chars.nth(3);
            }
            _ => {
                return Err(Fault {
                    range: at..at + 1 + escaped.map_or(0, |(_, escaped)| escaped.len_utf8()),
                    message: "unknown escape; known are \\' \\\" \\\\ and \\uXXXX".to_owned(),
                });
            }
        }
    }
    Err(Fault {
        range: 0..text.len(),
        message: "the text has no end; expected a closing quote".to_owned(),
    })
}

/// A number with its length in the source: `-?digits`, `-?digits?.digits`, either with an exponent, or `0x` digits.
fn number(text: &str) -> Option<(f64, usize)> {
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let length = digits
            .find(|c: char| !c.is_ascii_hexdigit())
            .unwrap_or(digits.len());
        // The original reads 64 bits and goes on with a double.
        #[allow(clippy::cast_precision_loss)]
        return i64::from_str_radix(&digits[..length], 16)
            .ok()
            .map(|value| (value as f64, length + 2));
    }
    let digits = |from: usize| {
        let rest = &text[from..];
        rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())
    };
    let start = usize::from(text.starts_with('-'));
    let mut end = start + digits(start);
    let mut any = end > start;
    if text[end..].starts_with('.') && digits(end + 1) > 0 {
        end += 1 + digits(end + 1);
        any = true;
    }
    if any && text[end..].starts_with(['e', 'E']) {
        let sign = usize::from(text[end + 1..].starts_with(['+', '-']));
        let exponent = digits(end + 1 + sign);
        if exponent > 0 {
            end += 1 + sign + exponent;
        }
    }
    if !any {
        return None;
    }
    text[..end].parse().ok().map(|value| (value, end))
}
