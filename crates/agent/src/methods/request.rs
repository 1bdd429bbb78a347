//! Payloads of requests.

use holdfast_model::Timestamp;
use regex_lite::{Regex, RegexBuilder};
use serde_json::{Map, Value};

use super::{MethodError, parse_time};
use crate::manifest::read_object;

/// Bytes of a compiled expression.
const REGEX_BYTES_MAX: usize = 256 * 1024;
/// Items of a request for logs.
const ITEMS_MAX: usize = 100;

/// A JSON object with a schema version that is known.
#[derive(Debug)]
pub(super) struct Payload {
    object: Map<String, Value>,
}

impl Payload {
    pub(super) fn read(bytes: &[u8]) -> Result<Self, MethodError> {
        if bytes.is_empty() || bytes == b"null" {
            return Err(MethodError::argument("the request has no payload"));
        }
        let object = read_object(bytes)
            .map_err(|problem| MethodError::argument(format!("the payload cannot be read: {problem}")))?;
        let payload = Payload { object };
        let version = payload.needed("schemaVersion")?;
        let major = version
            .split_once('.')
            .filter(|(_, minor)| !minor.is_empty())
            .map(|(major, _)| major);
        if major != Some("1") {
            return Err(MethodError::argument(format!(
                "schemaVersion {version:?} is not known; expected 1.0"
            )));
        }
        Ok(payload)
    }

    /// A member, names in any case, as the original's reader takes them.
    fn get(&self, name: &str) -> Option<&Value> {
        member(&self.object, name)
    }

    fn text(&self, name: &str) -> Result<Option<&str>, MethodError> {
        text(&self.object, name)
    }

    fn needed(&self, name: &str) -> Result<&str, MethodError> {
        match self.text(name)?.map(str::trim) {
            None | Some("") => Err(MethodError::argument(format!("{name} is missing"))),
            Some(text) => Ok(text),
        }
    }

    pub(super) fn id(&self) -> Result<&str, MethodError> {
        self.needed("id")
    }

    pub(super) fn correlation_id(&self) -> Result<&str, MethodError> {
        self.needed("correlationId")
    }

    pub(super) fn sas_url(&self) -> Result<&str, MethodError> {
        self.needed("sasUrl")
    }

    pub(super) fn time(&self, name: &str, now: Timestamp) -> Result<Option<Timestamp>, MethodError> {
        time(&self.object, name, now)
    }

    pub(super) fn flag(&self, name: &str) -> Result<bool, MethodError> {
        match self.get(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(MethodError::argument(format!("{name} is not true or false"))),
        }
    }
}

fn member<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    object
        .get(name)
        .or_else(|| {
            object
                .iter()
                .find(|(key, _)| key.eq_ignore_ascii_case(name))
                .map(|(_, value)| value)
        })
        .filter(|value| !value.is_null())
}

fn text<'a>(object: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, MethodError> {
    match member(object, name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(MethodError::argument(format!("{name} is not a text"))),
    }
}

fn time(object: &Map<String, Value>, name: &str, now: Timestamp) -> Result<Option<Timestamp>, MethodError> {
    let given = match member(object, name) {
        None => return Ok(None),
        Some(Value::Number(number)) => number.to_string(),
        Some(_) => text(object, name)?.unwrap_or_default().to_owned(),
    };
    if given.trim().is_empty() {
        return Ok(None);
    }
    parse_time(&given, now).map(Some).ok_or_else(|| {
        MethodError::argument(format!(
            "{name} {given:?} is not a time; write 2026-11-21T10:00:00Z, Unix seconds, or how long ago, e.g. 90m or 1 day"
        ))
    })
}

fn expression(name: &str, text: &str) -> Result<Regex, MethodError> {
    RegexBuilder::new(text)
        .case_insensitive(true)
        .size_limit(REGEX_BYTES_MAX)
        .build()
        .map_err(|error| {
            MethodError::argument(format!("{name} {text:?} is not a regular expression: {error}"))
        })
}

/// How logs are to be given.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Form {
    pub(super) gzip: bool,
    pub(super) json: bool,
}

/// Which lines are wanted.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    pub(super) tail: Option<u64>,
    pub(super) since: Option<Timestamp>,
    pub(super) until: Option<Timestamp>,
    pub(super) loglevel: Option<u8>,
    pub(super) regex: Option<Regex>,
}

/// Modules and the lines that are wanted of them.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) id: String,
    regex: Option<Regex>,
    pub(super) filter: Filter,
}

impl Item {
    pub(super) fn names(&self, module: &str) -> bool {
        self.regex.as_ref().is_none_or(|regex| regex.is_match(module))
    }
}

/// A request for logs.
#[derive(Debug)]
pub(super) struct LogsRequest {
    pub(super) items: Vec<Item>,
    pub(super) form: Form,
}

impl LogsRequest {
    pub(super) fn read(payload: &Payload, now: Timestamp) -> Result<Self, MethodError> {
        let items: Vec<&Value> = match payload.get("items") {
            None => return Err(MethodError::argument("items is missing")),
            Some(Value::Array(items)) if items.len() <= ITEMS_MAX => items.iter().collect(),
            Some(Value::Array(_)) => {
                return Err(MethodError::argument(format!(
                    "items has more than {ITEMS_MAX} entries"
                )));
            }
            Some(one) => vec![one],
        };
        let items: Vec<Item> = items
            .into_iter()
            .map(|value| item(value, now))
            .collect::<Result<_, _>>()?;
        if items.is_empty() {
            return Err(MethodError::argument("items is empty"));
        }
        let word = |name: &str, words: [&str; 2]| -> Result<bool, MethodError> {
            let given = payload.text(name)?.unwrap_or(words[0]);
            if given.eq_ignore_ascii_case(words[0]) {
                Ok(false)
            } else if given.eq_ignore_ascii_case(words[1]) {
                Ok(true)
            } else {
                let message = format!("{name} {given:?} is neither {} nor {}", words[0], words[1]);
                Err(MethodError::argument(message))
            }
        };
        Ok(LogsRequest {
            items,
            form: Form {
                gzip: word("encoding", ["none", "gzip"])?,
                json: word("contentType", ["text", "json"])?,
            },
        })
    }
}

fn item(value: &Value, now: Timestamp) -> Result<Item, MethodError> {
    let Value::Object(item) = value else {
        return Err(MethodError::argument("an entry of items is not an object"));
    };
    let id = text(item, "id")?
        .filter(|id| !id.trim().is_empty())
        .ok_or_else(|| MethodError::argument("an entry of items has no id"))?;
    let regex = if id.eq_ignore_ascii_case("all") {
        None
    } else {
        Some(expression("id", id)?)
    };
    let filter = match member(item, "filter") {
        None => Filter::default(),
        Some(Value::Object(filter)) => read_filter(filter, now)?,
        Some(_) => return Err(MethodError::argument("filter is not an object")),
    };
    Ok(Item {
        id: id.to_owned(),
        regex,
        filter,
    })
}

fn read_filter(filter: &Map<String, Value>, now: Timestamp) -> Result<Filter, MethodError> {
    let number = |name: &str, max: u64| match member(filter, name) {
        None => Ok(None),
        Some(value) => value
            .as_u64()
            .filter(|number| *number <= max)
            .map(Some)
            .ok_or_else(|| MethodError::argument(format!("{name} is not a whole number from 0 to {max}"))),
    };
    Ok(Filter {
        tail: number("tail", u64::from(u32::MAX))?,
        since: time(filter, "since", now)?,
        until: time(filter, "until", now)?,
        loglevel: number("loglevel", 7)?.and_then(|level| u8::try_from(level).ok()),
        regex: match text(filter, "regex")? {
            None | Some("") => None,
            Some(given) => Some(expression("regex", given)?),
        },
    })
}
