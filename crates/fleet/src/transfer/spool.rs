//! Lines put aside, in a file without a name: it goes with the process, whatever happens to that.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use bytes::Bytes;

use super::lines::Line;
use super::{ASIDE_BYTES_MAX, LINE_BYTES_MAX};

/// Lines with their numbers, to be read again in the order they were added.
pub(super) struct Spool {
    file: BufWriter<File>,
    lines: u64,
    bytes: u64,
}

/// Reads a spool from its beginning.
pub(super) struct SpoolReader {
    file: BufReader<File>,
    left: u64,
}

impl Spool {
    pub(super) fn new(dir: &Path) -> std::io::Result<Self> {
        Ok(Spool {
            file: BufWriter::new(tempfile::tempfile_in(dir)?),
            lines: 0,
            bytes: 0,
        })
    }

    pub(super) fn lines(&self) -> u64 {
        self.lines
    }

    /// Adds a line; `false` when there is no room.
    pub(super) fn add(&mut self, number: u64, text: &[u8]) -> std::io::Result<bool> {
        let size = 12 + text.len() as u64;
        if self.bytes + size > ASIDE_BYTES_MAX {
            return Ok(false);
        }
        // Lines are bounded, so their length fits.
        let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
        self.file.write_all(&number.to_le_bytes())?;
        self.file.write_all(&length.to_le_bytes())?;
        self.file.write_all(text)?;
        self.lines += 1;
        self.bytes += size;
        Ok(true)
    }

    pub(super) fn read(self) -> std::io::Result<SpoolReader> {
        let mut file = self
            .file
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        Ok(SpoolReader {
            file: BufReader::new(file),
            left: self.lines,
        })
    }
}

impl SpoolReader {
    pub(super) fn next(&mut self) -> std::io::Result<Option<Line>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let (mut number, mut length) = ([0; 8], [0; 4]);
        self.file.read_exact(&mut number)?;
        self.file.read_exact(&mut length)?;
        let length = (u32::from_le_bytes(length) as usize).min(LINE_BYTES_MAX);
        let mut text = vec![0; length];
        self.file.read_exact(&mut text)?;
        Ok(Some(Line {
            number: u64::from_le_bytes(number),
            text: Some(Bytes::from(text)),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(dir.path()).unwrap();
        for (number, text) in [(3, "three"), (1 << 40, ""), (7, "seven")] {
            assert!(spool.add(number, text.as_bytes()).unwrap());
        }
        let mut reader = spool.read().unwrap();
        let mut found = Vec::new();
        while let Some(line) = reader.next().unwrap() {
            found.push((line.number, line.text.unwrap()));
        }
        assert_eq!(
            found,
            [
                (3, Bytes::from("three")),
                (1 << 40, Bytes::new()),
                (7, Bytes::from("seven"))
            ]
        );
        // The file has no name.
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
