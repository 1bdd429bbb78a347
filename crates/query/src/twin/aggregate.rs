//! Figures over rows: groups, COUNT, AVG, SUM, MIN, MAX.
//!
//! Rows come in any order, one at a time; memory is bounded by [`GROUPS_MAX`] and [`KEY_BYTES_MAX`]. A missing value
//! makes a group of its own, whose key is absent in the result. Objects and arrays group by their JSON text.

use std::collections::HashMap;

use serde_json::{Map, Value as Json};

use super::ast::{Aggregate, ColumnValue, Path, Projection, Select};
use super::row::Row;

/// Most groups of one query.
pub const GROUPS_MAX: usize = 10_000;

/// Most bytes of all group keys of one query together.
pub const KEY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Of longer keys a position holds this much and a hash.
const MARK_BYTES_MAX: usize = 512;

/// More groups than a query may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "GROUP BY gives more than {GROUPS_MAX} groups; narrow it with a condition or group by something with fewer values"
)]
pub struct TooManyGroups;

/// A value that goes into a group or a figure, borrowed from wherever it comes.
#[derive(Clone, Copy, PartialEq, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Input<'a> {
    Missing,
    Null,
    Bool(bool),
    Number(f64),
    Text(&'a str),
    /// JSON text of an object or an array.
    Json(&'a str),
}

/// The groups of a query while rows come in.
#[derive(Debug)]
pub struct Groups<'s> {
    paths: Vec<Path>,
    figures: Vec<Figure<'s>>,
    keys: usize,
    columns: Vec<Out<'s>>,
    groups: HashMap<Vec<u8>, Vec<State>>,
    key: Vec<u8>,
    key_bytes: usize,
}

#[derive(Debug)]
struct Figure<'s> {
    aggregate: &'s Aggregate,
    /// Index of its value among the inputs.
    input: usize,
}

/// A column of the result: of the key, or a figure.
#[derive(Debug)]
enum Out<'s> {
    Key(&'s str, usize),
    Figure(&'s str, usize),
}

#[derive(Clone, Debug)]
enum State {
    Count(u64),
    Sum(f64, u64),
    Best(Option<Best>),
}

#[derive(Clone, PartialEq, Debug)]
enum Best {
    Number(f64),
    Text(String),
}

impl<'s> Groups<'s> {
    /// No rows yet.
    #[must_use]
    pub fn new(select: &'s Select) -> Self {
        let mut paths = select.group_by.clone();
        let keys = paths.len();
        let mut figures = Vec::new();
        let mut columns = Vec::new();
        if let Projection::Columns(list) = &select.projection {
            for column in list {
                match &column.value {
                    ColumnValue::Path(path) => {
                        let at = select.group_by.iter().position(|key| key == path).unwrap_or(0);
                        columns.push(Out::Key(&column.name, at));
                    }
                    ColumnValue::Aggregate(aggregate) => {
                        let input = paths.len();
                        paths.extend(aggregate.path().cloned());
                        columns.push(Out::Figure(&column.name, figures.len()));
                        figures.push(Figure { aggregate, input });
                    }
                }
            }
        }
        let mut groups = Groups {
            paths,
            figures,
            keys,
            columns,
            groups: HashMap::new(),
            key: Vec::new(),
            key_bytes: 0,
        };
        if keys == 0 {
            // Without GROUP BY there is one row, also over nothing.
            let state = groups.fresh();
            groups.groups.insert(Vec::new(), state);
        }
        groups
    }

    /// The places whose values [`Groups::add`] takes, in order.
    #[must_use]
    pub fn paths(&self) -> &[Path] {
        &self.paths
    }

    /// Whether only rows are counted, all in one group.
    #[must_use]
    pub fn is_plain_count(&self) -> bool {
        self.paths.is_empty()
    }

    /// Counts `rows` rows; only for [`Groups::is_plain_count`].
    pub fn add_count(&mut self, rows: u64) {
        for state in self.groups.values_mut().flatten() {
            if let State::Count(count) = state {
                *count += rows;
            }
        }
    }

    /// Takes a row in.
    ///
    /// # Errors
    /// [`TooManyGroups`].
    pub fn add_row(&mut self, row: &dyn Row) -> Result<(), TooManyGroups> {
        let values: Vec<Option<Json>> = self
            .paths
            .iter()
            .map(|path| row.get(path).map(std::borrow::Cow::into_owned))
            .collect();
        let texts: Vec<Option<String>> = values
            .iter()
            .map(|value| {
                value
                    .as_ref()
                    .filter(|value| value.is_array() || value.is_object())
                    .map(Json::to_string)
            })
            .collect();
        let inputs: Vec<Input<'_>> = values
            .iter()
            .zip(&texts)
            .map(|(value, text)| match (value, text) {
                (_, Some(text)) => Input::Json(text),
                (None, None) => Input::Missing,
                (Some(Json::Bool(value)), None) => Input::Bool(*value),
                (Some(Json::Number(number)), None) => number.as_f64().map_or(Input::Missing, Input::Number),
                (Some(Json::String(text)), None) => Input::Text(text),
                (Some(_), None) => Input::Null,
            })
            .collect();
        self.add(&inputs)
    }

    /// Takes a row in by the values of [`Groups::paths`].
    ///
    /// # Errors
    /// [`TooManyGroups`].
    pub fn add(&mut self, inputs: &[Input<'_>]) -> Result<(), TooManyGroups> {
        self.add_many(inputs, 1)
    }

    /// Takes `rows` rows in that have the same values.
    ///
    /// # Errors
    /// [`TooManyGroups`].
    pub fn add_many(&mut self, inputs: &[Input<'_>], rows: u64) -> Result<(), TooManyGroups> {
        self.key.clear();
        for input in inputs.iter().take(self.keys) {
            encode(*input, &mut self.key);
        }
        if !self.groups.contains_key(self.key.as_slice()) {
            self.key_bytes += self.key.len();
            if self.groups.len() >= GROUPS_MAX || self.key_bytes > KEY_BYTES_MAX {
                return Err(TooManyGroups);
            }
            let state = self.fresh();
            self.groups.insert(self.key.clone(), state);
        }
        let Some(states) = self.groups.get_mut(self.key.as_slice()) else {
            return Ok(());
        };
        for (figure, state) in self.figures.iter().zip(states) {
            let input = inputs.get(figure.input).copied().unwrap_or(Input::Missing);
            state.take(figure.aggregate, input, rows);
        }
        Ok(())
    }

    fn fresh(&self) -> Vec<State> {
        self.figures
            .iter()
            .map(|figure| match figure.aggregate {
                Aggregate::Count => State::Count(0),
                Aggregate::Avg(_) | Aggregate::Sum(_) => State::Sum(0.0, 0),
                Aggregate::Min(_) | Aggregate::Max(_) => State::Best(None),
            })
            .collect()
    }

    /// Up to `limit` rows after the position `after`, and the position of the last one if there are more.
    #[must_use]
    pub fn rows(&self, after: Option<&[u8]>, limit: usize) -> (Vec<Map<String, Json>>, Option<Vec<u8>>) {
        let mut marked: Vec<(Vec<u8>, &Vec<u8>, &Vec<State>)> = self
            .groups
            .iter()
            .map(|(key, states)| (mark(key), key, states))
            .collect();
        marked.retain(|(mark, ..)| after.is_none_or(|after| mark.as_slice() > after));
        marked.sort_unstable_by(|left, right| left.0.cmp(&right.0));
        let more = marked.len() > limit;
        marked.truncate(limit);
        let last = marked.last().map(|(mark, ..)| mark.clone()).filter(|_| more);
        let rows = marked
            .iter()
            .map(|(_, key, states)| self.row(key, states))
            .collect();
        (rows, last)
    }

    fn row(&self, key: &[u8], states: &[State]) -> Map<String, Json> {
        let parts = decode(key);
        let mut out = Map::new();
        for column in &self.columns {
            let (name, value) = match column {
                Out::Key(name, at) => (name, parts.get(*at).cloned().flatten()),
                Out::Figure(name, at) => {
                    let figure = self.figures.get(*at).map(|figure| figure.aggregate);
                    (name, figure.and_then(|figure| states.get(*at)?.result(figure)))
                }
            };
            if let Some(value) = value {
                out.insert((*name).to_owned(), value);
            }
        }
        out
    }
}

impl State {
    fn take(&mut self, aggregate: &Aggregate, input: Input<'_>, rows: u64) {
        match self {
            State::Count(count) => *count += rows,
            State::Sum(sum, count) => {
                if let Input::Number(number) = input {
                    *sum += number * rows as f64;
                    *count += rows;
                }
            }
            State::Best(best) => {
                let least = matches!(aggregate, Aggregate::Min(_));
                match input {
                    Input::Number(number) => {
                        let better = match best {
                            None => true,
                            Some(Best::Number(old)) => (number < *old) == least && number != *old,
                            // Numbers come before texts.
                            Some(Best::Text(_)) => least,
                        };
                        if better {
                            *best = Some(Best::Number(number));
                        }
                    }
                    Input::Text(text) => {
                        let better = match best {
                            None => true,
                            Some(Best::Text(old)) => (text < old.as_str()) == least && text != old,
                            Some(Best::Number(_)) => !least,
                        };
                        if better {
                            *best = Some(Best::Text(text.to_owned()));
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    fn result(&self, aggregate: &Aggregate) -> Option<Json> {
        match self {
            State::Count(count) => Some((*count).into()),
            State::Sum(_, 0) | State::Best(None) => None,
            State::Sum(sum, count) if matches!(aggregate, Aggregate::Avg(_)) => number(sum / *count as f64),
            State::Sum(sum, _) => number(*sum),
            State::Best(Some(Best::Number(value))) => number(*value),
            State::Best(Some(Best::Text(text))) => Some(text.as_str().into()),
        }
    }
}

/// A number as it is shown: whole numbers without a fraction, wherever they come from.
fn number(value: f64) -> Option<Json> {
    const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() < WHOLE_MAX {
        return Some((value as i64).into());
    }
    serde_json::Number::from_f64(value).map(Json::Number)
}

/// Appends a value to a key so that equal values, and no others, have equal bytes.
fn encode(input: Input<'_>, key: &mut Vec<u8>) {
    let mut text = |tag: u8, text: &str| {
        key.push(tag);
        key.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
        key.extend_from_slice(text.as_bytes());
    };
    match input {
        Input::Text(value) => text(5, value),
        Input::Json(value) => text(6, value),
        Input::Missing => key.push(0),
        Input::Null => key.push(1),
        Input::Bool(value) => key.push(2 + u8::from(value)),
        Input::Number(value) => {
            key.push(4);
            key.extend_from_slice(&(value + 0.0).to_be_bytes());
        }
    }
}

fn decode(mut key: &[u8]) -> Vec<Option<Json>> {
    let mut parts = Vec::new();
    while let Some((tag, rest)) = key.split_first() {
        let (part, length) = match tag {
            1 => (Some(Json::Null), 0),
            2 | 3 => (Some((*tag == 3).into()), 0),
            4 => {
                let bytes = rest.first_chunk().copied().unwrap_or_default();
                (number(f64::from_be_bytes(bytes)), 8)
            }
            5 | 6 => {
                let length = u32::from_be_bytes(rest.first_chunk().copied().unwrap_or_default()) as usize;
                let text = String::from_utf8_lossy(rest.get(4..4 + length).unwrap_or_default());
                let part = if *tag == 5 {
                    Some(text.into_owned().into())
                } else {
                    serde_json::from_str(&text).ok()
                };
                (part, 4 + length)
            }
            _ => (None, 0),
        };
        parts.push(part);
        key = rest.get(length..).unwrap_or_default();
    }
    parts
}

/// What a key is sorted by and a token holds.
fn mark(key: &[u8]) -> Vec<u8> {
    if key.len() <= MARK_BYTES_MAX {
        return key.to_vec();
    }
    let mut mark = key[..MARK_BYTES_MAX].to_vec();
    mark.extend_from_slice(&super::stable_hash(key).to_be_bytes());
    mark
}
