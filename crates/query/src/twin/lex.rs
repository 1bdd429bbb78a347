//! Words of a query with their places.

use std::ops::Range;

use crate::error::QueryError;

/// One word.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Token {
    /// A name, a keyword or a function: letters, digits, `_`, perhaps a leading `$`.
    Word(String),
    /// `[[any text]]`.
    Escaped(String),
    /// A decimal or hexadecimal number.
    Number(f64),
    /// A quoted text, escapes resolved.
    String(String),
    /// Anything else: operators and brackets.
    Symbol(Symbol),
    /// The end of the text.
    End,
}

/// Operators and brackets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Symbol {
    Open,
    Close,
    OpenBracket,
    CloseBracket,
    Comma,
    Dot,
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    Plus,
    Minus,
    Star,
    Slash,
    Percent,
}

impl Symbol {
    pub(super) fn text(self) -> &'static str {
        match self {
            Symbol::Open => "(",
            Symbol::Close => ")",
            Symbol::OpenBracket => "[",
            Symbol::CloseBracket => "]",
            Symbol::Comma => ",",
            Symbol::Dot => ".",
            Symbol::Equal => "=",
            Symbol::NotEqual => "!=",
            Symbol::Less => "<",
            Symbol::LessEqual => "<=",
            Symbol::Greater => ">",
            Symbol::GreaterEqual => ">=",
            Symbol::Plus => "+",
            Symbol::Minus => "-",
            Symbol::Star => "*",
            Symbol::Slash => "/",
            Symbol::Percent => "%",
        }
    }
}

impl Token {
    /// The token as an error message shows it.
    pub(super) fn shown(&self) -> String {
        match self {
            Token::Word(word) => format!("`{word}`"),
            Token::Escaped(name) => format!("`[[{name}]]`"),
            Token::Number(number) => format!("the number {number}"),
            Token::String(_) => "a text".to_owned(),
            Token::Symbol(symbol) => format!("`{}`", symbol.text()),
            Token::End => "the end of the query".to_owned(),
        }
    }
}

/// A token and the bytes it stands on.
#[derive(Clone, Debug)]
pub(super) struct Spanned {
    pub(super) token: Token,
    pub(super) range: Range<usize>,
}

/// Splits `text`; the last token is [`Token::End`]. The caller has bounded the length of `text`.
pub(super) fn tokens(text: &str) -> Result<Vec<Spanned>, QueryError> {
    let mut lexer = Lexer { text, at: 0 };
    let mut tokens = Vec::new();
    loop {
        lexer.skip_white();
        let start = lexer.at;
        let token = lexer.next()?;
        let end = token == Token::End;
        tokens.push(Spanned {
            token,
            range: start..lexer.at,
        });
        if end {
            return Ok(tokens);
        }
    }
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl Lexer<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn skip_white(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
    }

    fn error(&self, range: Range<usize>, message: impl Into<String>) -> QueryError {
        QueryError::new(self.text, range, message)
    }

    fn next(&mut self) -> Result<Token, QueryError> {
        let Some(first) = self.peek() else {
            return Ok(Token::End);
        };
        match first {
            '\'' | '"' => self.string(first),
            '0'..='9' => self.number(),
            '.' if self.rest()[1..].starts_with(|c: char| c.is_ascii_digit()) && !self.follows_name() => {
                self.number()
            }
            '[' if self.rest().starts_with("[[") => self.escaped(),
            '$' | '_' => Ok(self.word()),
            letter if letter.is_alphabetic() => Ok(self.word()),
            _ => self.symbol(first),
        }
    }

    /// Whether the character before is part of a name, so that a dot continues a path.
    fn follows_name(&self) -> bool {
        self.text[..self.at]
            .chars()
            .next_back()
            .is_some_and(|c| is_word(c) || c == ']')
    }

    fn word(&mut self) -> Token {
        let rest = self.rest();
        let length = rest
            .char_indices()
            .find(|(at, c)| !(is_word(*c) || (*at == 0 && *c == '$')))
            .map_or(rest.len(), |(at, _)| at);
        let word = rest[..length].to_owned();
        self.at += length;
        Token::Word(word)
    }

    fn escaped(&mut self) -> Result<Token, QueryError> {
        let start = self.at;
        let Some(length) = self.rest()[2..].find("]]") else {
            return Err(self.error(start..self.text.len(), "the name after `[[` has no closing `]]`"));
        };
        let name = self.rest()[2..2 + length].to_owned();
        self.at += length + 4;
        if name.is_empty() {
            return Err(self.error(start..self.at, "expected a name between `[[` and `]]`"));
        }
        Ok(Token::Escaped(name))
    }

    fn number(&mut self) -> Result<Token, QueryError> {
        let start = self.at;
        let rest = self.rest();
        let length = number_length(rest);
        let text = &rest[..length];
        let tail = rest[length..].chars().next();
        let value = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(digits) => u64::from_str_radix(digits, 16).ok().map(|value| value as f64),
            None => text.parse::<f64>().ok().filter(|value| value.is_finite()),
        };
        self.at += length;
        let value = value.ok_or_else(|| {
            self.error(
                start..self.at,
                "expected a number: decimal digits, or 0x and up to 16 hexadecimal digits",
            )
        })?;
        if let Some(tail) = tail.filter(|c| is_word(*c)) {
            let end = self.at + tail.len_utf8();
            return Err(self.error(
                start..end,
                "a name cannot begin with a digit; write it as [[name]] or quote a text",
            ));
        }
        Ok(Token::Number(value))
    }

    fn string(&mut self, quote: char) -> Result<Token, QueryError> {
        let start = self.at;
        self.at += 1;
        let mut out = String::new();
        loop {
            let Some(c) = self.peek() else {
                return Err(self.error(start..self.at, format!("the text has no closing {quote}")));
            };
            let at = self.at;
            self.at += c.len_utf8();
            if c == quote {
                return Ok(Token::String(out));
            }
            if c == '\\' {
                out.push(self.escape(at)?);
            } else {
                out.push(c);
            }
        }
    }

    /// The character after a backslash at `start`.
    fn escape(&mut self, start: usize) -> Result<char, QueryError> {
        const EXPECTED: &str = "after \\ expected one of ' \" \\ or u and four hexadecimal digits";
        let Some(c) = self.peek() else {
            return Err(self.error(start..self.at, EXPECTED));
        };
        self.at += c.len_utf8();
        match c {
            '\'' | '"' | '\\' => Ok(c),
            'u' => {
                let high = self.hex(start)?;
                // A character outside the basic plane is a pair of escapes.
                let code = if (0xD800..0xDC00).contains(&high) && self.rest().starts_with("\\u") {
                    self.at += 2;
                    let low = self.hex(start)?;
                    if (0xDC00..0xE000).contains(&low) {
                        0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00)
                    } else {
                        high
                    }
                } else {
                    high
                };
                char::from_u32(code)
                    .ok_or_else(|| self.error(start..self.at, "this \\u escape is no character"))
            }
            _ => Err(self.error(start..self.at, EXPECTED)),
        }
    }

    fn hex(&mut self, start: usize) -> Result<u32, QueryError> {
        let digits = self
            .rest()
            .get(..4)
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        let value = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let value =
            value.ok_or_else(|| self.error(start..self.at, "after \\u expected four hexadecimal digits"))?;
        self.at += 4;
        Ok(value)
    }

    fn symbol(&mut self, first: char) -> Result<Token, QueryError> {
        let second = self.rest()[first.len_utf8()..].chars().next();
        let (symbol, length) = match (first, second) {
            ('<', Some('=')) => (Symbol::LessEqual, 2),
            ('<', Some('>')) | ('!', Some('=')) => (Symbol::NotEqual, 2),
            ('>', Some('=')) => (Symbol::GreaterEqual, 2),
            ('=', Some('=')) => {
                return Err(self.error(self.at..self.at + 2, "there is no operator `==`; use `=`"));
            }
            ('&', Some('&')) => {
                return Err(self.error(self.at..self.at + 2, "there is no operator `&&`; use AND"));
            }
            ('|', Some('|')) => {
                return Err(self.error(self.at..self.at + 2, "there is no operator `||`; use OR"));
            }
            ('(', _) => (Symbol::Open, 1),
            (')', _) => (Symbol::Close, 1),
            ('[', _) => (Symbol::OpenBracket, 1),
            (']', _) => (Symbol::CloseBracket, 1),
            (',', _) => (Symbol::Comma, 1),
            ('.', _) => (Symbol::Dot, 1),
            ('=', _) => (Symbol::Equal, 1),
            ('<', _) => (Symbol::Less, 1),
            ('>', _) => (Symbol::Greater, 1),
            ('+', _) => (Symbol::Plus, 1),
            ('-', _) => (Symbol::Minus, 1),
            ('*', _) => (Symbol::Star, 1),
            ('/', _) => (Symbol::Slash, 1),
            ('%', _) => (Symbol::Percent, 1),
            ('!', _) => {
                return Err(self.error(self.at..self.at + 1, "expected `!=`, or NOT before a condition"));
            }
            (';', _) => {
                return Err(self.error(
                    self.at..self.at + 1,
                    "a query has no `;` and there is one at a time",
                ));
            }
            (other, _) => {
                let end = self.at + other.len_utf8();
                return Err(self.error(
                    self.at..end,
                    format!(
                        "{other:?} has no meaning here; names with such characters are written as [[name]]"
                    ),
                ));
            }
        };
        self.at += length;
        Ok(Token::Symbol(symbol))
    }
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// Length of the number that `text` begins with: `0x` digits, or digits with a fraction and an exponent.
fn number_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let digits = |from: usize| bytes.iter().skip(from).take_while(|b| b.is_ascii_digit()).count();
    if text.len() > 2 && bytes[0] == b'0' && bytes[1].eq_ignore_ascii_case(&b'x') {
        return 2 + bytes[2..].iter().take_while(|b| b.is_ascii_hexdigit()).count();
    }
    let mut length = digits(0);
    if bytes.get(length) == Some(&b'.') {
        let fraction = digits(length + 1);
        if fraction > 0 {
            length += 1 + fraction;
        }
    }
    if bytes.get(length).is_some_and(|b| b.eq_ignore_ascii_case(&b'e')) {
        let sign = usize::from(bytes.get(length + 1).is_some_and(|b| matches!(b, b'+' | b'-')));
        let exponent = digits(length + 1 + sign);
        if exponent > 0 {
            length += 1 + sign + exponent;
        }
    }
    length
}
