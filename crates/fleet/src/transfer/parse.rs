//! Lines into batches of entries, on a task of its own beside the one that imports them.

use std::collections::HashMap;

use bytes::Bytes;
use holdfast_hub::{ImportEntry, ImportMode};
use holdfast_model::{Error, ErrorCode};

use super::lines::Line;
use super::{BATCH_BYTES_MAX, BATCH_LINES_MAX, BadLine, LINE_BYTES_MAX, LineFormat};

/// A line with what it says.
pub(super) struct Parsed {
    pub(super) number: u64,
    pub(super) text: Bytes,
    pub(super) entry: Result<ImportEntry, BadLine>,
}

/// Gathers lines that may be carried out in one step: no identity twice, and nothing that changes or deletes a device
/// beside its modules (see [`holdfast_hub::Hub::import`]).
#[derive(Default)]
pub(super) struct Batcher {
    lines: Vec<Parsed>,
    bytes: usize,
    /// By device id: which identities of it are there, and whether all of them are only created.
    devices: HashMap<String, Seen>,
}

struct Seen {
    modules: Vec<Option<String>>,
    created_only: bool,
}

impl Batcher {
    /// Adds a line; gives the batch before it when that is full or must not meet the line.
    pub(super) fn add(&mut self, format: &dyn LineFormat, line: Line) -> Option<Vec<Parsed>> {
        let parsed = parse(format, line);
        let full = self.lines.len() >= BATCH_LINES_MAX || self.bytes + parsed.text.len() > BATCH_BYTES_MAX;
        let before = if full || self.conflicts(&parsed) {
            self.take()
        } else {
            None
        };
        self.bytes += parsed.text.len();
        if let Ok(entry) = &parsed.entry {
            let seen = self.devices.entry(entry.entry.device_id.clone());
            let seen = seen.or_insert_with(|| Seen {
                modules: Vec::new(),
                created_only: true,
            });
            seen.modules.push(entry.entry.module_id.clone());
            seen.created_only &= creates(entry.entry.mode);
        }
        self.lines.push(parsed);
        before
    }

    /// The lines that wait, if any.
    pub(super) fn take(&mut self) -> Option<Vec<Parsed>> {
        self.bytes = 0;
        self.devices.clear();
        let lines = std::mem::take(&mut self.lines);
        (!lines.is_empty()).then_some(lines)
    }

    fn conflicts(&self, parsed: &Parsed) -> bool {
        let Ok(entry) = &parsed.entry else { return false };
        self.devices.get(&entry.entry.device_id).is_some_and(|seen| {
            !seen.created_only || !creates(entry.entry.mode) || seen.modules.contains(&entry.entry.module_id)
        })
    }
}

fn parse(format: &dyn LineFormat, line: Line) -> Parsed {
    let Some(text) = line.text else {
        let message = format!("the line is longer than {LINE_BYTES_MAX} bytes");
        return Parsed {
            number: line.number,
            text: Bytes::new(),
            entry: Err(Error::new(ErrorCode::ArgumentInvalid, message).into()),
        };
    };
    Parsed {
        number: line.number,
        entry: format.read(&text),
        text,
    }
}

const fn creates(mode: ImportMode) -> bool {
    matches!(
        mode,
        ImportMode::Create | ImportMode::CreateOrUpdate | ImportMode::CreateOrUpdateIfMatchETag
    )
}

#[cfg(test)]
mod tests {
    use holdfast_hub::BulkEntry;
    use holdfast_model::registry::IdentityRecord;
    use holdfast_model::twin::Twin;

    use super::super::LineError;
    use super::*;

    /// `c d1`, `c d1/m1`, `x d1`: create or delete.
    struct Words;

    impl LineFormat for Words {
        fn read(&self, line: &[u8]) -> Result<ImportEntry, BadLine> {
            let text = std::str::from_utf8(line).unwrap();
            let (verb, id) = text
                .split_once(' ')
                .ok_or_else(|| Error::new(ErrorCode::ArgumentInvalid, "no verb"))?;
            let (device_id, module_id) = match id.split_once('/') {
                None => (id, None),
                Some((device, module)) => (device, Some(module.to_owned())),
            };
            let mode = if verb == "c" {
                ImportMode::Create
            } else {
                ImportMode::Delete
            };
            let entry = BulkEntry {
                device_id: device_id.to_owned(),
                module_id,
                mode,
                ..BulkEntry::default()
            };
            Ok(ImportEntry {
                entry,
                ..ImportEntry::default()
            })
        }

        fn write(&self, _: &mut Vec<u8>, _: &IdentityRecord, _: &Twin, _: bool) {}

        fn write_error(&self, _: &mut Vec<u8>, _: &LineError<'_>) {}
    }

    fn batches(lines: &[&str]) -> Vec<Vec<u64>> {
        let mut batcher = Batcher::default();
        let numbers = |batch: Vec<Parsed>| batch.iter().map(|line| line.number).collect::<Vec<_>>();
        let mut found = Vec::new();
        for (number, line) in (1..).zip(lines) {
            let text = Some(Bytes::copy_from_slice(line.as_bytes()));
            found.extend(batcher.add(&Words, Line { number, text }).map(numbers));
        }
        found.extend(batcher.take().map(numbers));
        found
    }

    #[test]
    fn lines_that_must_not_meet_are_parted() {
        assert_eq!(batches(&["c a", "c a/m", "c b", "nonsense"]), [vec![1, 2, 3, 4]]);
        assert_eq!(batches(&["c a", "c a"]), [vec![1], vec![2]]);
        assert_eq!(batches(&["x a", "x b", "c c"]), [vec![1, 2, 3]]);
        assert_eq!(batches(&["x a", "c b", "c a"]), [vec![1, 2], vec![3]]);
        assert_eq!(batches(&["x a", "c a/m"]), [vec![1], vec![2]]);
        assert_eq!(batches(&["c a/m", "x a", "c a"]), [vec![1], vec![2], vec![3]]);
        assert!(batches(&[]).is_empty());
    }

    #[test]
    fn batches_are_bounded_by_lines_and_bytes() {
        let ids: Vec<String> = (0..BATCH_LINES_MAX + 1)
            .map(|number| format!("c d{number}"))
            .collect();
        let lines: Vec<&str> = ids.iter().map(String::as_str).collect();
        let sizes: Vec<usize> = batches(&lines).iter().map(Vec::len).collect();
        assert_eq!(sizes, [BATCH_LINES_MAX, 1]);
        let long = "x".repeat(BATCH_BYTES_MAX / 2);
        assert_eq!(batches(&[&long, &long, &long]), [vec![1, 2], vec![3]]);
    }

    #[test]
    fn a_line_that_is_too_long_is_an_error() {
        let mut batcher = Batcher::default();
        batcher.add(
            &Words,
            Line {
                number: 9,
                text: None,
            },
        );
        let batch = batcher.take().unwrap();
        assert_eq!(
            batch[0].entry.as_ref().unwrap_err().error.code,
            ErrorCode::ArgumentInvalid
        );
    }
}
