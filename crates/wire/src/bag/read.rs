//! Reading a bag.

use std::borrow::Cow;
use std::collections::HashMap;

use holdfast_model::event::RecordWriter;
use holdfast_model::message::{Message, SystemProperty};
use smallvec::SmallVec;

use super::{BagEntry, BagKey, Meaning, meaning, prefixed_meaning};
use crate::percent;

/// Pairs kept on the stack; SDK samples have one to ten.
const INLINE_PAIRS: usize = 12;
/// From this many pairs on, duplicates are found by hashing instead of comparing all with all.
const COMPARE_ALL_MAX: usize = 24;

type Entries<'a> = SmallVec<[BagEntry<'a>; INLINE_PAIRS]>;

/// Iterator over the pairs of a bag, as sent: duplicates are not removed, `$.cdid` and `$.cmid` are left out.
/// Allocates only for keys and values that hold a percent escape.
#[derive(Clone, Debug)]
pub struct Bag<'a> {
    rest: Option<&'a str>,
}

/// Starts reading a bag. `bag` is what follows `…/messages/events/`, of any content: no text is refused.
///
/// ```
/// use holdfast_wire::bag::{BagKey, parse};
/// let values: Vec<_> = parse("%24.ct=text%2Fplain&level=3&flag/").map(|entry| entry.value).collect();
/// assert_eq!(values, [Some("text/plain".into()), Some("3".into()), None]);
/// ```
#[must_use]
pub fn parse(bag: &str) -> Bag<'_> {
    let bag = bag.strip_suffix('/').unwrap_or(bag);
    let bag = bag.strip_prefix('?').unwrap_or(bag);
    Bag {
        rest: (!bag.is_empty()).then_some(bag),
    }
}

impl<'a> Iterator for Bag<'a> {
    type Item = BagEntry<'a>;

    #[inline]
    fn next(&mut self) -> Option<BagEntry<'a>> {
        loop {
            let rest = self.rest?;
            let pair = match rest.find('&') {
                Some(end) => {
                    self.rest = Some(&rest[end + 1..]);
                    &rest[..end]
                }
                None => {
                    self.rest = None;
                    rest
                }
            };
            if let Some(entry) = entry(pair) {
                return Some(entry);
            }
        }
    }
}

/// Reads one pair; `None` for a pair to be skipped.
#[inline]
fn entry(pair: &str) -> Option<BagEntry<'_>> {
    let (raw_key, raw_value) = match pair.find('=') {
        Some(at) => (&pair[..at], Some(&pair[at + 1..])),
        None => (pair, None),
    };
    let key = key(raw_key)?;
    Some(BagEntry {
        key,
        value: raw_value.map(percent::decode),
    })
}

#[inline]
fn key(raw: &str) -> Option<BagKey<'_>> {
    // The usual spelling of a system key needs no decoding, so it is looked at first.
    if let Some(name) = raw.strip_prefix("%24.") {
        match prefixed_meaning(name) {
            Meaning::System(property) => return Some(BagKey::System(property)),
            Meaning::Connection => return None,
            Meaning::Application => {}
        }
    }
    let decoded = percent::decode(raw);
    if decoded.is_empty() {
        return None;
    }
    match meaning(&decoded) {
        Meaning::System(property) => Some(BagKey::System(property)),
        Meaning::Connection => None,
        Meaning::Application => Some(BagKey::Application(decoded)),
    }
}

/// Writes the pairs of a bag into an event record: of equal keys the last one; system properties without a value
/// not at all. The caller goes on with the body.
///
/// Allocates nothing for a bag without escapes in values; a bag made to hold thousands of duplicates costs no more
/// than its length.
pub fn write_record(bag: &str, record: &mut RecordWriter<'_>) {
    if bag.is_empty() {
        return;
    }
    for entry in unique(bag) {
        match (&entry.key, &entry.value) {
            (BagKey::System(property), Some(value)) => record.system(*property, value),
            (BagKey::System(_), None) => {}
            (BagKey::Application(key), value) => record.property(key, value.as_deref()),
        }
    }
}

/// Reads a bag and body into an owned message, by the rules of [`write_record`]. For the client role and for wills.
#[must_use]
pub fn read_message(bag: &str, body: bytes::Bytes) -> Message {
    let mut message = Message {
        body,
        ..Message::default()
    };
    for entry in unique(bag) {
        let value = entry.value.map(Cow::into_owned);
        match (entry.key, value) {
            (BagKey::System(property), Some(value)) => message.system.push((property, value)),
            (BagKey::System(_), None) => {}
            (BagKey::Application(key), value) => message.properties.push((key.into_owned(), value)),
        }
    }
    message
}

/// The pairs without those that a later pair with the same key replaces.
fn unique(bag: &str) -> Entries<'_> {
    let mut entries = Entries::new();
    let mut seen = Seen::default();
    let mut repeats = false;
    for entry in parse(bag) {
        repeats |= seen.insert(&entry.key);
        entries.push(entry);
    }
    if repeats {
        remove_replaced(&mut entries);
    }
    entries
}

/// Says cheaply whether a key may have been there before: exact for system properties, a 64-bit filter for others.
#[derive(Default)]
struct Seen {
    system: u64,
    application: u64,
}

impl Seen {
    #[inline]
    fn insert(&mut self, key: &BagKey<'_>) -> bool {
        let (set, bit) = match key {
            BagKey::System(property) => (&mut self.system, 1u64 << (*property as u8 & 63)),
            BagKey::Application(key) => (&mut self.application, 1u64 << (filter_index(key.as_bytes()))),
        };
        let repeats = *set & bit != 0;
        *set |= bit;
        repeats
    }
}

#[inline]
fn filter_index(key: &[u8]) -> u32 {
    let (Some(first), Some(last)) = (key.first(), key.last()) else {
        return 0;
    };
    let middle = key[key.len() / 2];
    let mixed = (key.len() as u32)
        .wrapping_mul(0x9e37_79b1)
        .wrapping_add(u32::from(*first).wrapping_mul(0x85eb_ca6b))
        .wrapping_add(u32::from(*last).wrapping_mul(0xc2b2_ae35))
        .wrapping_add(u32::from(middle).wrapping_mul(0x27d4_eb2f));
    mixed >> 26
}

#[cold]
fn remove_replaced(entries: &mut Entries<'_>) {
    let keep: Vec<bool> = if entries.len() <= COMPARE_ALL_MAX {
        (0..entries.len())
            .map(|at| entries[at + 1..].iter().all(|later| later.key != entries[at].key))
            .collect()
    } else {
        let mut last: HashMap<(Option<SystemProperty>, &str), usize> = HashMap::with_capacity(entries.len());
        let mut keep = vec![true; entries.len()];
        for (at, entry) in entries.iter().enumerate() {
            let key = match &entry.key {
                BagKey::System(property) => (Some(*property), ""),
                BagKey::Application(key) => (None, &**key),
            };
            if let Some(earlier) = last.insert(key, at) {
                keep[earlier] = false;
            }
        }
        keep
    };
    let mut keep = keep.into_iter();
    entries.retain(|_| keep.next().unwrap_or(true));
}
