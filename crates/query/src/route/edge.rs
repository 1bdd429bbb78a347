//! Routes of an edge hub (edge.md 6.4): `[SELECT *] FROM source [WHERE condition] INTO sink`.

use super::{Condition, Place, Symbols};
use crate::error::QueryError;

/// Longest text of a route, bytes.
pub const EDGE_ROUTE_BYTES_MAX: usize = 8_192;

const TWIN_CHANGES: &str = "/twinchangenotifications/";

/// A compiled route.
#[derive(Clone, PartialEq, Debug)]
pub struct EdgeRoute {
    /// Prefix of the paths of its messages, in lower case, with a slash at its end: `/messages/modules/m/`. `/` is every
    /// message.
    pub source: String,
    /// Which of them it takes.
    pub condition: Condition,
    /// Where they go.
    pub sink: Sink,
}

/// Where a route of an edge hub leads.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Sink {
    /// `$upstream`: the hub above.
    Upstream,
    /// `BrokeredEndpoint("/modules/{module}/inputs/{input}")` of the same device.
    Input {
        /// Module id, case as written.
        module: String,
        /// Input, case as written.
        input: String,
    },
}

impl EdgeRoute {
    /// Reads and checks a route.
    ///
    /// # Errors
    /// With the place of the first fault in `text`.
    pub fn compile(text: &str, symbols: &mut Symbols) -> Result<Self, QueryError> {
        if text.len() > EDGE_ROUTE_BYTES_MAX {
            let message = format!("the route is longer than {EDGE_ROUTE_BYTES_MAX} bytes");
            return Err(QueryError::new(text, EDGE_ROUTE_BYTES_MAX..text.len(), message));
        }
        let mut reader = Reader { text, at: 0 };
        reader.blank();
        if reader.word("SELECT") {
            reader.blank();
            if !reader.take("*") {
                return Err(reader.expected("* after SELECT"));
            }
            reader.blank();
        }
        if !reader.word("FROM") {
            return Err(reader.expected("FROM"));
        }
        let source = reader.source()?;
        reader.blank();
        let condition = if reader.word("WHERE") {
            let start = reader.at;
            let end = reader.find_into()?;
            reader.at = end;
            let place = Place {
                twin_changes: TWIN_CHANGES.starts_with(&source) || source.starts_with(TWIN_CHANGES),
                no_twin: true,
            };
            // Blanks in front, so that places in errors are those in the route.
            let mut padded: String = text[..start]
                .chars()
                .map(|c| if c == '\n' { c } else { ' ' })
                .collect();
            padded.push_str(&text[start..end]);
            Condition::compile(&padded, symbols, place)?
        } else {
            Condition::compile("true", symbols, Place::default())?
        };
        reader.blank();
        if !reader.word("INTO") {
            return Err(reader.expected("WHERE or INTO"));
        }
        let sink = reader.sink()?;
        reader.blank();
        if reader.at < text.len() {
            return Err(reader.expected("the end of the route"));
        }
        Ok(EdgeRoute {
            source,
            condition,
            sink,
        })
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn take(&mut self, symbol: &str) -> bool {
        let found = self.rest().starts_with(symbol);
        self.at += if found { symbol.len() } else { 0 };
        found
    }

    /// Takes a keyword, in any case, that does not go on as a longer word.
    fn word(&mut self, keyword: &str) -> bool {
        let found = starts_with_word(self.rest(), keyword);
        self.at += if found { keyword.len() } else { 0 };
        found
    }

    /// Steps over white space and comments. `/*` begins a comment only if that ends somewhere, since it is also the
    /// source of every message.
    fn blank(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start();
            self.at += rest.len() - trimmed.len();
            match trimmed.strip_prefix("/*").and_then(|comment| comment.find("*/")) {
                Some(end) => self.at += end + 4,
                None => return,
            }
        }
    }

    /// A path, to the next white space.
    fn source(&mut self) -> Result<String, QueryError> {
        self.blank();
        let start = self.at;
        let length = self.rest().find(char::is_whitespace).unwrap_or(self.rest().len());
        let path = &self.rest()[..length];
        let known = |c: char| c == '/' || c == '*' || !"()<>@,;:\\\"[]?={}".contains(c);
        if !path.starts_with('/') || path.contains("//") || !path.chars().all(known) {
            return Err(self.expected("a source such as /messages/* or /messages/modules/name/outputs/*"));
        }
        self.at = start + length;
        let mut source = path.to_ascii_lowercase();
        if source.ends_with('*') {
            source.pop();
        }
        if !source.ends_with('/') {
            source.push('/');
        }
        Ok(source)
    }

    /// Where the keyword INTO stands behind a condition: the last one outside of texts and comments.
    fn find_into(&self) -> Result<usize, QueryError> {
        let mut found = None;
        let mut at = self.at;
        let mut before = ' ';
        while let Some(c) = self.text[at..].chars().next() {
            let rest = &self.text[at..];
            let length = match c {
                '\'' | '"' if !is_name(before) => text_length(rest)
                    .ok_or_else(|| QueryError::new(self.text, at..self.text.len(), "the text has no end"))?,
                '/' => rest
                    .strip_prefix("/*")
                    .and_then(|comment| comment.find("*/"))
                    .map_or(1, |end| end + 4),
                _ => {
                    if !is_name(before) && starts_with_word(rest, "INTO") {
                        found = Some(at);
                    }
                    c.len_utf8()
                }
            };
            before = c;
            at += length;
        }
        found.ok_or_else(|| {
            let end = self.text.len();
            QueryError::new(self.text, end..end, "the route ends here; expected INTO")
        })
    }

    fn sink(&mut self) -> Result<Sink, QueryError> {
        self.blank();
        if self.word("$upstream") {
            return Ok(Sink::Upstream);
        }
        let start = self.at;
        if !self.word("BrokeredEndpoint") {
            return Err(self.expected("$upstream or BrokeredEndpoint(\"/modules/name/inputs/name\")"));
        }
        self.blank();
        if !self.take("(") {
            return Err(self.expected("("));
        }
        self.blank();
        let rest = self.rest();
        let length = Some(rest)
            .filter(|rest| rest.starts_with(['\'', '"']))
            .and_then(text_length)
            .ok_or_else(|| self.expected("a text such as \"/modules/name/inputs/name\""))?;
        let path = &rest[1..length - 1];
        self.at += length;
        self.blank();
        if !self.take(")") {
            return Err(self.expected(")"));
        }
        let segments: Vec<&str> = path.split('/').collect();
        match segments[..] {
            ["", modules, module, inputs, input]
                if modules.eq_ignore_ascii_case("modules")
                    && inputs.eq_ignore_ascii_case("inputs")
                    && !module.is_empty()
                    && !input.is_empty() =>
            {
                Ok(Sink::Input {
                    module: module.to_owned(),
                    input: input.to_owned(),
                })
            }
            _ => Err(QueryError::new(
                self.text,
                start..self.at,
                "the endpoint must be /modules/{module}/inputs/{input}",
            )),
        }
    }

    fn expected(&self, what: &str) -> QueryError {
        let rest = self.rest();
        let length = rest.find(char::is_whitespace).unwrap_or(rest.len());
        let found = match &rest[..length] {
            "" => "the route ends here".to_owned(),
            found => format!("found {found}"),
        };
        QueryError::new(
            self.text,
            self.at..self.at + length,
            format!("{found}; expected {what}"),
        )
    }
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '$' | '.' | '-')
}

fn starts_with_word(text: &str, word: &str) -> bool {
    let same = text
        .get(..word.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(word));
    same && !text[word.len()..].chars().next().is_some_and(is_name)
}

/// Length of a quoted text with its quotes.
fn text_length(text: &str) -> Option<usize> {
    let quote = text.chars().next()?;
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(text: &str) -> EdgeRoute {
        EdgeRoute::compile(text, &mut Symbols::default()).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn every_form_of_the_grammar() {
        let upstream = |text: &str, source: &str| {
            let route = route(text);
            assert_eq!(
                (route.source.as_str(), &route.sink),
                (source, &Sink::Upstream),
                "{text}"
            );
        };
        upstream("FROM /* INTO $upstream", "/");
        upstream("FROM /messages/* INTO $upstream", "/messages/");
        upstream(
            "select * from /MESSAGES/modules/Temp/* into $UPSTREAM",
            "/messages/modules/temp/",
        );
        upstream("FROM /messages INTO $upstream", "/messages/");
        upstream(
            "/* all */ FROM /messages/modules/m/outputs/* /* c */ WHERE a = 'INTO' INTO $upstream /* end */",
            "/messages/modules/m/outputs/",
        );
        upstream(
            "FROM /messages/* WHERE NOT IS_DEFINED($connectionModuleId) INTO $upstream",
            "/messages/",
        );
        upstream(
            "FROM /twinChangeNotifications WHERE twin_change_includes(properties.reported.a) INTO $upstream",
            "/twinchangenotifications/",
        );
        upstream(
            "FROM\n/messages/*\nWHERE\n$body.x > 3\nINTO\n$upstream",
            "/messages/",
        );
        for text in [
            "FROM /messages/* INTO BrokeredEndpoint(\"/modules/Filter/inputs/In-1\")",
            "FROM /messages/* INTO brokeredendpoint ( '/modules/Filter/inputs/In-1' )",
        ] {
            let sink = Sink::Input {
                module: "Filter".to_owned(),
                input: "In-1".to_owned(),
            };
            assert_eq!(route(text).sink, sink, "{text}");
        }
        // A star in the middle is a name.
        assert_eq!(
            route("FROM /messages/modules/*/outputs/* INTO $upstream").source,
            "/messages/modules/*/outputs/"
        );
    }

    #[test]
    fn faults_have_their_place_in_the_route() {
        let mut symbols = Symbols::default();
        for (text, line, column) in [
            ("", 1, 1),
            ("FROM messages INTO $upstream", 1, 6),
            ("FROM /messages/*", 1, 17),
            ("FROM /messages/* INTO nowhere", 1, 23),
            ("FROM /messages/* INTO $upstream x", 1, 33),
            ("FROM /messages/* INTO $upstreams", 1, 23),
            ("FROM /messages/* WHERE a = 3 INTO $upstream", 1, 24),
            ("FROM /messages/*\nWHERE a = 3 INTO $upstream", 2, 7),
            ("FROM /messages/* WHERE a = 'x INTO $upstream", 1, 28),
            ("FROM /messages/* WHERE $twin.tags.a = 1 INTO $upstream", 1, 24),
            ("FROM /messages/* INTO BrokeredEndpoint(\"/modules/a\")", 1, 23),
            (
                "FROM /messages/* INTO BrokeredEndpoint(/modules/a/inputs/b)",
                1,
                40,
            ),
            (
                "FROM /messages/* INTO BrokeredEndpoint(\"/modules/a/inputs/b/c\")",
                1,
                23,
            ),
            (
                "FROM /messages/* WHERE twin_change_includes(properties.reported.a) INTO $upstream",
                1,
                24,
            ),
        ] {
            let error = EdgeRoute::compile(text, &mut symbols).expect_err(text);
            assert_eq!(
                (error.start.line, error.start.column),
                (line, column),
                "{text}: {error}"
            );
        }
    }
}
