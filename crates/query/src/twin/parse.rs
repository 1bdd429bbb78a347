//! From text to a checked query: the clauses. Expressions are in [`expression`], names in [`names`].
//!
//! Recursive descent over the words. Every error says where it is and what was expected there. Nothing of a text is
//! trusted: its length is bounded before it is looked at, and nesting is counted.

mod expression;
mod names;

use super::ast::{Aggregate, Column, ColumnValue, Order, Path, Projection, Select, Source};
use super::condition::{Condition, Filter};
use super::lex::{Spanned, Symbol, Token, tokens};
use crate::error::QueryError;

pub(super) use names::is_plain_name;

/// Most characters of a query or condition.
pub const TEXT_CHARS_MAX: usize = 8_192;

/// Deepest nesting of parentheses, NOT, signs and functions, and longest run of `+` or `*`.
pub const NESTING_MAX: usize = 64;

/// Most columns of a projection, and most terms of GROUP BY and ORDER BY together.
pub const COLUMNS_MAX: usize = 64;

/// Reads a query.
///
/// # Errors
/// Where it is wrong and what was expected there.
pub fn parse(text: &str) -> Result<Select, QueryError> {
    let mut parser = Parser::new(text)?;
    let select = parser.select()?;
    parser.expect_end("expected the end of the query")?;
    Ok(select)
}

/// Reads a target condition: `*`, nothing, a condition on devices, or `FROM devices.modules WHERE` and a condition.
///
/// # Errors
/// As [`parse`].
pub fn parse_condition(text: &str) -> Result<Condition, QueryError> {
    let mut parser = Parser::new(text)?;
    if *parser.token() == Token::End {
        return Ok(Condition::new(Source::Devices, Filter::None));
    }
    if parser.is_symbol(Symbol::Star) && parser.token_at(1) == Some(&Token::End) {
        return Ok(Condition::new(Source::Devices, Filter::All));
    }
    if parser.is_keyword("SELECT") || parser.is_keyword("WHERE") {
        return Err(parser.error("a target condition is only what follows WHERE, without SELECT and WHERE"));
    }
    if parser.eat_keyword("FROM") {
        parser.source = parser.source_after_from()?;
        if parser.source == Source::Jobs {
            return Err(parser.error_before("a target condition is over devices or devices.modules"));
        }
        let filter = if parser.eat_keyword("WHERE") {
            if parser.is_symbol(Symbol::Star) && parser.token_at(1) == Some(&Token::End) {
                return Ok(Condition::new(parser.source, Filter::All));
            }
            Filter::Expr(parser.expression()?)
        } else if *parser.token() == Token::End {
            Filter::All
        } else {
            return Err(parser.expected("WHERE"));
        };
        parser.expect_end("expected AND, OR or the end of the condition")?;
        return Ok(Condition::new(parser.source, filter));
    }
    let filter = Filter::Expr(parser.expression()?);
    parser.expect_end("expected AND, OR or the end of the condition")?;
    Ok(Condition::new(Source::Devices, filter))
}

/// Reads a path of twins, as [`Path`] prints it.
///
/// # Errors
/// As [`parse`].
pub fn parse_path(text: &str) -> Result<Path, QueryError> {
    let mut parser = Parser::new(text)?;
    // Modules have every member that devices have.
    parser.source = Source::Modules;
    let path = parser.path("a path")?;
    parser.expect_end("expected the end of the path")?;
    Ok(path)
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Spanned>,
    at: usize,
    source: Source,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Result<Self, QueryError> {
        if let Some((end, _)) = text.char_indices().nth(TEXT_CHARS_MAX) {
            let message = format!("the text is longer than {TEXT_CHARS_MAX} characters");
            return Err(QueryError::new(text, end..text.len(), message));
        }
        Ok(Parser {
            text,
            tokens: tokens(text)?,
            at: 0,
            source: Source::Devices,
            depth: 0,
        })
    }

    // --- words ---

    fn token(&self) -> &Token {
        self.token_at(0).unwrap_or(&Token::End)
    }

    fn token_at(&self, ahead: usize) -> Option<&Token> {
        self.tokens.get(self.at + ahead).map(|spanned| &spanned.token)
    }

    fn range(&self) -> std::ops::Range<usize> {
        let last = self.text.len()..self.text.len();
        self.tokens
            .get(self.at)
            .map_or(last, |spanned| spanned.range.clone())
    }

    fn range_before(&self) -> std::ops::Range<usize> {
        let before = self.at.checked_sub(1).and_then(|at| self.tokens.get(at));
        before.map_or(0..0, |spanned| spanned.range.clone())
    }

    fn advance(&mut self) {
        // The last token is the end, and stays.
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
    }

    fn is_symbol(&self, symbol: Symbol) -> bool {
        *self.token() == Token::Symbol(symbol)
    }

    fn eat_symbol(&mut self, symbol: Symbol) -> bool {
        let found = self.is_symbol(symbol);
        if found {
            self.advance();
        }
        found
    }

    fn expect_symbol(&mut self, symbol: Symbol) -> Result<(), QueryError> {
        if self.eat_symbol(symbol) {
            Ok(())
        } else {
            Err(self.expected(&format!("`{}`", symbol.text())))
        }
    }

    fn is_keyword(&self, keyword: &str) -> bool {
        matches!(self.token(), Token::Word(word) if word.eq_ignore_ascii_case(keyword))
    }

    fn eat_keyword(&mut self, keyword: &str) -> bool {
        let found = self.is_keyword(keyword);
        if found {
            self.advance();
        }
        found
    }

    fn expect_keyword(&mut self, keyword: &str) -> Result<(), QueryError> {
        if self.eat_keyword(keyword) {
            Ok(())
        } else {
            Err(self.expected(keyword))
        }
    }

    fn expect_end(&self, message: &str) -> Result<(), QueryError> {
        if *self.token() == Token::End {
            Ok(())
        } else {
            Err(self.error(format!("{message}, found {}", self.token().shown())))
        }
    }

    // --- errors ---

    fn error(&self, message: impl Into<String>) -> QueryError {
        QueryError::new(self.text, self.range(), message)
    }

    fn error_before(&self, message: impl Into<String>) -> QueryError {
        QueryError::new(self.text, self.range_before(), message)
    }

    fn error_from(&self, start: usize, message: impl Into<String>) -> QueryError {
        QueryError::new(self.text, start..self.range_before().end.max(start), message)
    }

    fn expected(&self, what: &str) -> QueryError {
        self.error(format!("expected {what}, found {}", self.token().shown()))
    }

    // --- clauses ---

    fn select(&mut self) -> Result<Select, QueryError> {
        self.expect_keyword("SELECT")?;
        let top = self.top()?;
        // Which names exist depends on the source, which comes after the names.
        let projection_at = self.at;
        self.source = self.find_source()?;
        self.at = projection_at;
        let projection_start = self.range().start;
        let projection = self.projection()?;
        let projection_end = self.range_before().end;
        if !self.is_keyword("FROM") {
            return Err(self.expected("`,`, AS or FROM"));
        }
        self.advance();
        self.source_after_from()?;
        let filter = if self.eat_keyword("WHERE") {
            Some(self.expression()?)
        } else {
            None
        };
        let group_by = self.group_by()?;
        let order_by = self.order_by()?;
        self.refuse_other_clauses()?;
        let select = Select {
            source: self.source,
            projection,
            filter,
            group_by,
            top,
            order_by,
            fingerprint: fingerprint(self.text),
        };
        check_projection(&select)
            .map_err(|message| QueryError::new(self.text, projection_start..projection_end, message))?;
        Ok(select)
    }

    fn top(&mut self) -> Result<Option<u64>, QueryError> {
        // `SELECT top FROM …` would be a column; TOP is a keyword, so it never is.
        if !self.eat_keyword("TOP") {
            return Ok(None);
        }
        let parenthesised = self.eat_symbol(Symbol::Open);
        let top = match *self.token() {
            Token::Number(number) if (1.0..=1e15).contains(&number) && number.fract() == 0.0 => number as u64,
            _ => return Err(self.expected("a whole number above 0 after TOP")),
        };
        self.advance();
        if parenthesised {
            self.expect_symbol(Symbol::Close)?;
        }
        Ok(Some(top))
    }

    /// The source that follows the first FROM.
    fn find_source(&mut self) -> Result<Source, QueryError> {
        while !self.is_keyword("FROM") {
            if *self.token() == Token::End {
                self.at = self.tokens.len() - 1;
                return Err(self
                    .error("the query has no FROM; expected FROM devices, devices.modules or devices.jobs"));
            }
            self.advance();
        }
        self.advance();
        self.source_after_from()
    }

    fn source_after_from(&mut self) -> Result<Source, QueryError> {
        const EXPECTED: &str = "devices, devices.modules or devices.jobs after FROM";
        let start = self.range().start;
        if !self.eat_keyword("devices") {
            return Err(self.expected(EXPECTED));
        }
        let source = if self.eat_symbol(Symbol::Dot) {
            if self.eat_keyword("modules") {
                Source::Modules
            } else if self.eat_keyword("jobs") {
                Source::Jobs
            } else {
                self.advance();
                return Err(self.error_from(start, format!("expected {EXPECTED}")));
            }
        } else {
            Source::Devices
        };
        match self.token() {
            Token::Word(word)
                if word.eq_ignore_ascii_case("as") || !names::is_reserved(word) && !is_clause(word) =>
            {
                Err(self.error(format!(
                    "{} has no alias here; write the members without one",
                    source.text()
                )))
            }
            Token::Symbol(Symbol::Comma) => Err(self.error("a query has one source; there are no joins")),
            _ => Ok(source),
        }
    }

    fn projection(&mut self) -> Result<Projection, QueryError> {
        if self.eat_symbol(Symbol::Star) {
            if self.is_symbol(Symbol::Comma) {
                return Err(self.error("`*` stands alone; expected FROM"));
            }
            return Ok(Projection::Document);
        }
        let mut columns: Vec<Column> = Vec::new();
        let mut unnamed = 0;
        loop {
            let start = self.range().start;
            if self.is_keyword("DISTINCT") {
                return Err(self.error("there is no DISTINCT; use GROUP BY"));
            }
            let column = self.column(&mut unnamed)?;
            let clash = columns
                .iter()
                .any(|other| other.name == column.name && other.value != column.value);
            if clash {
                let message = format!(
                    "two columns are called {}; give one of them another name with AS",
                    column.name
                );
                return Err(self.error_from(start, message));
            }
            columns.push(column);
            if columns.len() > COLUMNS_MAX {
                return Err(self.error_from(start, format!("a query has at most {COLUMNS_MAX} columns")));
            }
            if !self.eat_symbol(Symbol::Comma) {
                return Ok(Projection::Columns(columns));
            }
        }
    }

    fn column(&mut self, unnamed: &mut usize) -> Result<Column, QueryError> {
        let (value, default) = match self.aggregate()? {
            Some(aggregate) => (ColumnValue::Aggregate(aggregate), None),
            None => {
                let start = self.range().start;
                let path = self.path("a column (a path such as tags.location), an aggregate or `*`")?;
                if self.is_symbol(Symbol::Open) {
                    return Err(self.error_from(
                        start,
                        "there are no functions in SELECT but COUNT, AVG, SUM, MIN and MAX",
                    ));
                }
                let name = self.written_name(start, &path);
                (ColumnValue::Path(path), Some(name))
            }
        };
        if matches!(
            self.token(),
            Token::Symbol(Symbol::Plus | Symbol::Minus | Symbol::Star | Symbol::Slash | Symbol::Percent)
        ) {
            return Err(self.error("there is no arithmetic in SELECT; expected `,`, AS or FROM"));
        }
        let alias = if self.eat_keyword("AS") {
            Some(self.alias()?)
        } else {
            None
        };
        let name = alias.or(default).unwrap_or_else(|| {
            *unnamed += 1;
            format!("${unnamed}")
        });
        Ok(Column { name, value })
    }

    /// What a column without an alias is called: `id` keeps its short name, all else has its canonical one.
    fn written_name(&self, start: usize, path: &Path) -> String {
        let written = &self.text[start..self.range_before().end];
        if written.eq_ignore_ascii_case("id") {
            "id".to_owned()
        } else {
            path.last_name().to_owned()
        }
    }

    fn alias(&mut self) -> Result<String, QueryError> {
        let alias = match self.token() {
            Token::Word(word) if !is_clause(word) => word.clone(),
            Token::Escaped(name) => name.clone(),
            _ => return Err(self.expected("a name after AS")),
        };
        self.advance();
        Ok(alias)
    }

    fn aggregate(&mut self) -> Result<Option<Aggregate>, QueryError> {
        let Token::Word(word) = self.token() else {
            return Ok(None);
        };
        if self.token_at(1) != Some(&Token::Symbol(Symbol::Open)) {
            return Ok(None);
        }
        let name = word.to_ascii_uppercase();
        let of: fn(Path) -> Aggregate = match name.as_str() {
            "COUNT" => {
                self.advance();
                self.advance();
                self.eat_symbol(Symbol::Star);
                if !self.is_symbol(Symbol::Close) {
                    return Err(
                        self.error("COUNT counts rows; expected COUNT(), with a condition after WHERE")
                    );
                }
                self.advance();
                return Ok(Some(Aggregate::Count));
            }
            "AVG" => Aggregate::Avg,
            "SUM" => Aggregate::Sum,
            "MIN" => Aggregate::Min,
            "MAX" => Aggregate::Max,
            _ => return Ok(None),
        };
        self.advance();
        self.advance();
        let path = self.path(&format!(
            "a path such as properties.reported.temperature in {name}"
        ))?;
        self.expect_symbol(Symbol::Close)?;
        Ok(Some(of(path)))
    }

    fn group_by(&mut self) -> Result<Vec<Path>, QueryError> {
        if !self.eat_keyword("GROUP") {
            return Ok(Vec::new());
        }
        self.expect_keyword("BY")?;
        let mut paths = Vec::new();
        loop {
            paths.push(self.path("a path after GROUP BY")?);
            if paths.len() > COLUMNS_MAX {
                return Err(self.error_before(format!("GROUP BY has at most {COLUMNS_MAX} paths")));
            }
            if !self.eat_symbol(Symbol::Comma) {
                return Ok(paths);
            }
        }
    }

    /// `ORDER BY`, which IoT Hub reserves and does not document: an extension.
    fn order_by(&mut self) -> Result<Vec<Order>, QueryError> {
        const TERMS_MAX: usize = 4;
        if !self.eat_keyword("ORDER") {
            return Ok(Vec::new());
        }
        self.expect_keyword("BY")?;
        let mut terms = Vec::new();
        loop {
            let path = self.path("a path after ORDER BY")?;
            let descending = self.eat_keyword("DESC");
            if !descending {
                self.eat_keyword("ASC");
            }
            terms.push(Order { path, descending });
            if terms.len() > TERMS_MAX {
                return Err(self.error_before(format!("ORDER BY has at most {TERMS_MAX} paths")));
            }
            if !self.eat_symbol(Symbol::Comma) {
                return Ok(terms);
            }
        }
    }

    fn refuse_other_clauses(&self) -> Result<(), QueryError> {
        let Token::Word(word) = self.token() else {
            return Ok(());
        };
        let message = match word.to_ascii_uppercase().as_str() {
            "WHERE" | "GROUP" => {
                "the clauses stand in the order SELECT FROM WHERE GROUP BY ORDER BY, each once"
            }
            "HAVING" => "there is no HAVING; filter rows with WHERE",
            "JOIN" => "there is no JOIN; a query has one source",
            "LIMIT" => "there is no LIMIT; use SELECT TOP n",
            "OFFSET" => "there is no OFFSET; follow the continuation token",
            _ => return Ok(()),
        };
        Err(self.error(message))
    }
}

/// Whether a word begins a clause.
fn is_clause(word: &str) -> bool {
    const CLAUSES: &[&str] = &[
        "SELECT", "FROM", "WHERE", "GROUP", "ORDER", "HAVING", "JOIN", "LIMIT", "OFFSET",
    ];
    CLAUSES.iter().any(|clause| clause.eq_ignore_ascii_case(word))
}

/// Rules between the clauses; the message of the one that is broken.
fn check_projection(select: &Select) -> Result<(), String> {
    let aggregated = select.is_aggregated();
    let Projection::Columns(columns) = &select.projection else {
        return if aggregated {
            Err("`*` does not go with GROUP BY; name the paths of GROUP BY and aggregates".into())
        } else if select.source == Source::Jobs && !select.order_by.is_empty() {
            Err("devices.jobs has no ORDER BY".into())
        } else {
            Ok(())
        };
    };
    if select.source == Source::Jobs {
        return Err("devices.jobs takes `SELECT *` only: no columns, aggregates or GROUP BY".into());
    }
    if !aggregated {
        return Ok(());
    }
    if !select.order_by.is_empty() {
        return Err("ORDER BY does not go with aggregates or GROUP BY".into());
    }
    for column in columns {
        if let ColumnValue::Path(path) = &column.value
            && !select.group_by.contains(path)
        {
            return Err(format!(
                "{path} stands beside an aggregate, so it must be in GROUP BY too"
            ));
        }
    }
    Ok(())
}

/// FNV-1a: the same on every machine and release, which a continuation token needs.
fn fingerprint(text: &str) -> u64 {
    super::stable_hash(text.trim().as_bytes())
}
