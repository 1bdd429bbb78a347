//! The bad lines of an import, in a file without a name until they are fetched.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::Arc;

use super::{ERROR_BYTES_MAX, LineError, LineFormat};

/// Lines that failed, as text of [`LineFormat::write_error`], in the order they were found.
pub struct ImportErrors {
    dir: Arc<PathBuf>,
    /// Made for the first error.
    file: Option<BufWriter<File>>,
    bytes: u64,
    count: u64,
    /// How many were counted only.
    unwritten: u64,
    scratch: Vec<u8>,
}

impl ImportErrors {
    pub(super) fn new(dir: Arc<PathBuf>) -> Self {
        ImportErrors {
            dir,
            file: None,
            bytes: 0,
            count: 0,
            unwritten: 0,
            scratch: Vec::new(),
        }
    }

    pub(super) fn note(&mut self, format: &dyn LineFormat, error: &LineError<'_>) -> std::io::Result<()> {
        self.count += 1;
        self.scratch.clear();
        format.write_error(&mut self.scratch, error);
        if self.bytes + self.scratch.len() as u64 > ERROR_BYTES_MAX {
            self.unwritten += 1;
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => self
                .file
                .insert(BufWriter::new(tempfile::tempfile_in(self.dir.as_path())?)),
        };
        self.bytes += self.scratch.len() as u64;
        file.write_all(&self.scratch)
    }

    /// Lines that failed.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Failed lines of which there is no text, because [`ERROR_BYTES_MAX`] was reached.
    #[must_use]
    pub fn unwritten(&self) -> u64 {
        self.unwritten
    }

    /// Bytes of the text.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// Whether no line failed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The text, from its beginning; `None` when no line failed.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn into_file(self) -> std::io::Result<Option<File>> {
        let Some(file) = self.file else { return Ok(None) };
        let mut file = file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        Ok(Some(file))
    }
}

impl std::fmt::Debug for ImportErrors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImportErrors")
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}
