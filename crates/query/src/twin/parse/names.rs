//! Names: paths into documents, keywords, and what was probably meant.

use super::Parser;
use crate::error::QueryError;
use crate::twin::ast::{Path, Root, Segment, Source};
use crate::twin::lex::{Symbol, Token};

/// Words that cannot name a property unless escaped (languages.md 1.2).
const RESERVED: &[&str] = &[
    "ALL",
    "AND",
    "AS",
    "ASC",
    "AVG",
    "BY",
    "COUNT",
    "DESC",
    "DEVICES",
    "DEVICES_JOBS",
    "DEVICES_MODULES",
    "ENDS_WITH",
    "FALSE",
    "FROM",
    "GROUP",
    "IN",
    "IS_BOOL",
    "IS_DEFINED",
    "IS_NULL",
    "IS_NUMBER",
    "IS_OBJECT",
    "IS_PRIMITIVE",
    "IS_STRING",
    "MAX",
    "MIN",
    "NIN",
    "NOT",
    "NOT_IN",
    "NULL",
    "OR",
    "ORDER",
    "SELECT",
    "STARTS_WITH",
    "SUM",
    "TOP",
    "TRUE",
    "UNDEFINED",
    "WHERE",
];

/// Longest path, in segments below the document: deeper than any twin may be.
const SEGMENTS_MAX: usize = 24;

pub(super) fn is_reserved(word: &str) -> bool {
    RESERVED
        .iter()
        .any(|reserved| reserved.eq_ignore_ascii_case(word))
}

/// Whether a name can stand in a path without `[[…]]`.
pub(in crate::twin) fn is_plain_name(name: &str) -> bool {
    let rest = name.strip_prefix('$').unwrap_or(name);
    let mut chars = rest.chars();
    chars.next().is_some_and(|c| c == '_' || c.is_alphabetic())
        && chars.all(|c| c == '_' || c.is_alphanumeric())
        && !is_reserved(name)
}

impl Parser<'_> {
    /// A path; `what` says what it would be.
    pub(super) fn path(&mut self, what: &str) -> Result<Path, QueryError> {
        let start = self.range().start;
        self.skip_collection();
        let root = self.root(what)?;
        let mut rest = Vec::new();
        loop {
            if self.eat_symbol(Symbol::Dot) {
                rest.push(Segment::Name(self.member()?));
            } else if self.is_symbol(Symbol::OpenBracket) {
                self.advance();
                rest.push(Segment::Index(self.index()?));
                self.expect_symbol(Symbol::CloseBracket)?;
            } else {
                break;
            }
            if rest.len() > SEGMENTS_MAX {
                return Err(self.error_from(start, format!("a path has at most {SEGMENTS_MAX} members")));
            }
        }
        canonical(root, &mut rest).map_err(|message| self.error_from(start, message))?;
        Ok(Path { root, rest })
    }

    /// `devices.`, `devices.modules.` or `devices.jobs.` before a path.
    fn skip_collection(&mut self) {
        let word_at = |ahead: usize, wanted: &str| matches!(self.token_at(ahead), Some(Token::Word(word)) if word.eq_ignore_ascii_case(wanted));
        let dot_at = |ahead: usize| self.token_at(ahead) == Some(&Token::Symbol(Symbol::Dot));
        if !(word_at(0, "devices") && dot_at(1)) {
            return;
        }
        let collection = match self.source {
            Source::Devices => None,
            Source::Modules => Some("modules"),
            Source::Jobs => Some("jobs"),
        };
        let words = match collection {
            Some(name) if word_at(2, name) && dot_at(3) => 4,
            _ => 2,
        };
        for _ in 0..words {
            self.advance();
        }
    }

    fn root(&mut self, what: &str) -> Result<Root, QueryError> {
        let (name, escaped) = match self.token() {
            Token::Word(word) => (word.clone(), false),
            Token::Escaped(name) => (name.clone(), true),
            _ => return Err(self.expected(what)),
        };
        if !escaped && is_reserved(&name) {
            return Err(self.error(format!(
                "expected {what}, found the keyword {}",
                name.to_ascii_uppercase()
            )));
        }
        let found = Root::ALL
            .iter()
            .copied()
            .find(|root| root.name().eq_ignore_ascii_case(&name) && root.is_of(self.source));
        let found = found.or_else(|| alias(self.source, &name));
        let Some(root) = found else {
            return Err(self.error(self.unknown(&name)));
        };
        self.advance();
        Ok(root)
    }

    fn unknown(&self, name: &str) -> String {
        let source = self.source;
        let elsewhere = Root::ALL
            .iter()
            .find(|root| root.name().eq_ignore_ascii_case(name));
        if let Some(root) = elsewhere {
            return format!("{} have no {}", rows(source), root.name());
        }
        let names: Vec<&str> = Root::ALL
            .iter()
            .filter(|root| root.is_of(source))
            .map(|root| root.name())
            .collect();
        match nearest(name, &names) {
            Some(near) => format!("there is no {name}; did you mean {near}?"),
            None if source == Source::Jobs => {
                format!("there is no {name}; a job's row has {}", names.join(", "))
            }
            None => format!(
                "there is no {name}; a path begins with tags, properties.desired, properties.reported or a member of \
                 the twin such as deviceId"
            ),
        }
    }

    /// A name after a dot.
    fn member(&mut self) -> Result<String, QueryError> {
        let name = match self.token() {
            Token::Escaped(name) => name.clone(),
            Token::Word(word) if is_reserved(word) => {
                let message = format!("{word} is a keyword; as a name it is written [[{word}]]");
                return Err(self.error(message));
            }
            Token::Word(word) => word.clone(),
            Token::Number(number) => {
                return Err(self.error(format!("a name that begins with a digit is written [[{number}]]")));
            }
            _ => return Err(self.expected("a name after `.`")),
        };
        self.advance();
        Ok(name)
    }

    fn index(&mut self) -> Result<usize, QueryError> {
        match *self.token() {
            Token::Number(number) if (0.0..=1e6).contains(&number) && number.fract() == 0.0 => {
                self.advance();
                Ok(number as usize)
            }
            _ => Err(self.expected("a whole number between `[` and `]`")),
        }
    }
}

fn rows(source: Source) -> &'static str {
    match source {
        Source::Devices => "devices",
        Source::Modules => "modules",
        Source::Jobs => "jobs",
    }
}

/// Other names of roots.
fn alias(source: Source, name: &str) -> Option<Root> {
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    match source {
        Source::Devices | Source::Modules if is("id") => Some(Root::DeviceId),
        Source::Jobs if is("createdTimeUtc") => Some(Root::CreatedDateTimeUtc),
        Source::Jobs if is("lastUpdatedTimeUtc") => Some(Root::LastUpdatedDateTimeUtc),
        _ => None,
    }
}

/// Spells the hub's own members below a root canonically; the message if there is no such member.
fn canonical(root: Root, rest: &mut [Segment]) -> Result<(), String> {
    let known: &[&str] = match root {
        Root::Properties => &["desired", "reported"],
        Root::Capabilities => &["iotEdge"],
        Root::X509Thumbprint => &["primaryThumbprint", "secondaryThumbprint"],
        Root::Configurations => {
            if let Some(Segment::Name(name)) = rest.get_mut(1)
                && name.eq_ignore_ascii_case("status")
            {
                "status".clone_into(name);
            }
            return Ok(());
        }
        Root::Outcome => {
            spell(rest, 0, &["deviceMethodResponse"]);
            spell(rest, 1, &["status", "payload"]);
            return Ok(());
        }
        Root::Error => {
            spell(rest, 0, &["code", "description"]);
            return Ok(());
        }
        Root::Tags | Root::ParentScopes => return Ok(()),
        _ if rest.is_empty() => return Ok(()),
        _ => return Err(format!("{} is no object, so nothing is below it", root.name())),
    };
    match rest.first() {
        None => Ok(()),
        Some(Segment::Name(name)) if !known.iter().any(|known| known.eq_ignore_ascii_case(name)) => {
            Err(format!(
                "{}.{name} does not exist; expected {}",
                root.name(),
                known.join(" or ")
            ))
        }
        Some(Segment::Name(_)) => {
            spell(rest, 0, known);
            Ok(())
        }
        Some(Segment::Index(_)) => Err(format!("{} is no array", root.name())),
    }
}

fn spell(rest: &mut [Segment], at: usize, known: &[&str]) {
    if let Some(Segment::Name(name)) = rest.get_mut(at)
        && let Some(spelling) = known.iter().find(|known| known.eq_ignore_ascii_case(name))
    {
        (*spelling).clone_into(name);
    }
}

/// The name that differs least from `name`, if it differs little.
pub(super) fn nearest<'n>(name: &str, names: &[&'n str]) -> Option<&'n str> {
    let name = name.to_ascii_lowercase();
    names
        .iter()
        .map(|other| (distance(&name, &other.to_ascii_lowercase()), *other))
        .filter(|(distance, other)| *distance <= 2.max(other.len() / 4) && *distance < other.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, other)| other)
}

/// Levenshtein distance in bytes; `a` is cut, since a long name is like none.
fn distance(a: &str, b: &str) -> usize {
    let a = &a.as_bytes()[..a.len().min(64)];
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.bytes().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(*left != right))
                .min(above + 1)
                .min(row[j] + 1);
            diagonal = above;
        }
    }
    row[b.len()]
}
