//! Zip files (APPNOTE 6.3): deflated entries, one after the other, sizes written into their headers afterwards.

use std::fs::File;
use std::io::{self, BufWriter, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use flate2::write::DeflateEncoder;
use flate2::{Compression, Crc};

const LOCAL_HEADER: u32 = 0x0403_4b50;
const CENTRAL_HEADER: u32 = 0x0201_4b50;
const END_OF_DIRECTORY: u32 = 0x0605_4b50;
/// Version that knows deflate.
const VERSION: u16 = 20;
/// Names are UTF-8.
const FLAGS: u16 = 1 << 11;
const DEFLATED: u16 = 8;
/// Where check sum and sizes stand in a local header.
const SUMS_AT: u64 = 14;

/// Writes a zip file.
pub(super) struct ZipWriter {
    file: Option<BufWriter<File>>,
    open: Option<Open>,
    entries: Vec<Entry>,
}

struct Open {
    encoder: DeflateEncoder<BufWriter<File>>,
    crc: Crc,
    name: String,
    header_at: u32,
    data_at: u64,
}

struct Entry {
    name: String,
    header_at: u32,
    crc: u32,
    packed: u32,
    size: u32,
}

fn too_large() -> io::Error {
    io::Error::other("the bundle would be larger than 4 GiB")
}

impl ZipWriter {
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        Ok(ZipWriter {
            file: Some(BufWriter::new(File::create(path)?)),
            open: None,
            entries: Vec::new(),
        })
    }

    /// Begins an entry.
    pub(super) fn begin(&mut self, name: &str) -> io::Result<()> {
        let mut file = self
            .file
            .take()
            .ok_or_else(|| io::Error::other("an entry is open"))?;
        let header_at = u32::try_from(file.stream_position()?).map_err(|_| too_large())?;
        let length = u16::try_from(name.len()).map_err(|_| too_large())?;
        file.write_all(&LOCAL_HEADER.to_le_bytes())?;
        // Without a time: zeros are the format's own earliest.
        for field in [VERSION, FLAGS, DEFLATED, 0, 0x21] {
            file.write_all(&field.to_le_bytes())?;
        }
        file.write_all(&[0; 12])?;
        file.write_all(&length.to_le_bytes())?;
        file.write_all(&0u16.to_le_bytes())?;
        file.write_all(name.as_bytes())?;
        let data_at = file.stream_position()?;
        self.open = Some(Open {
            encoder: DeflateEncoder::new(file, Compression::fast()),
            crc: Crc::new(),
            name: name.to_owned(),
            header_at,
            data_at,
        });
        Ok(())
    }

    /// Adds to the open entry.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let open = self
            .open
            .as_mut()
            .ok_or_else(|| io::Error::other("no entry is open"))?;
        open.crc.update(bytes);
        open.encoder.write_all(bytes)
    }

    /// Ends the open entry.
    pub(super) fn end(&mut self) -> io::Result<()> {
        let open = self
            .open
            .take()
            .ok_or_else(|| io::Error::other("no entry is open"))?;
        let size = u32::try_from(open.encoder.total_in()).map_err(|_| too_large())?;
        let mut file = open.encoder.finish()?;
        let end = file.stream_position()?;
        let entry = Entry {
            crc: open.crc.sum(),
            packed: u32::try_from(end - open.data_at).map_err(|_| too_large())?,
            size,
            name: open.name,
            header_at: open.header_at,
        };
        file.seek(SeekFrom::Start(u64::from(entry.header_at) + SUMS_AT))?;
        for field in [entry.crc, entry.packed, entry.size] {
            file.write_all(&field.to_le_bytes())?;
        }
        file.seek(SeekFrom::Start(end))?;
        self.entries.push(entry);
        self.file = Some(file);
        Ok(())
    }

    /// Writes the directory.
    pub(super) fn finish(mut self) -> io::Result<()> {
        let mut file = self
            .file
            .take()
            .ok_or_else(|| io::Error::other("an entry is open"))?;
        let start = file.stream_position()?;
        for entry in &self.entries {
            file.write_all(&CENTRAL_HEADER.to_le_bytes())?;
            for field in [VERSION, VERSION, FLAGS, DEFLATED, 0, 0x21] {
                file.write_all(&field.to_le_bytes())?;
            }
            for field in [entry.crc, entry.packed, entry.size] {
                file.write_all(&field.to_le_bytes())?;
            }
            // Its length was checked when it was begun.
            file.write_all(&(entry.name.len() as u16).to_le_bytes())?;
            file.write_all(&[0; 12])?;
            file.write_all(&entry.header_at.to_le_bytes())?;
            file.write_all(entry.name.as_bytes())?;
        }
        let end = file.stream_position()?;
        let count = u16::try_from(self.entries.len()).map_err(|_| too_large())?;
        file.write_all(&END_OF_DIRECTORY.to_le_bytes())?;
        file.write_all(&[0; 4])?;
        file.write_all(&count.to_le_bytes())?;
        file.write_all(&count.to_le_bytes())?;
        for field in [end - start, start] {
            let field = u32::try_from(field).map_err(|_| too_large())?;
            file.write_all(&field.to_le_bytes())?;
        }
        file.write_all(&0u16.to_le_bytes())?;
        file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_program_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.zip");
        let mut zip = ZipWriter::create(&path).unwrap();
        for (name, text) in [
            ("logs/a.txt", "hello\n".repeat(10_000)),
            ("b.json", String::new()),
        ] {
            zip.begin(name).unwrap();
            zip.write(text.as_bytes()).unwrap();
            zip.end().unwrap();
        }
        zip.finish().unwrap();
        let script = "import sys, zipfile; z = zipfile.ZipFile(sys.argv[1]); assert z.testzip() is None; \
                      print(z.namelist(), len(z.read('logs/a.txt')), len(z.read('b.json')))";
        let output = std::process::Command::new("python3")
            .arg("-c")
            .arg(script)
            .arg(&path)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(text.trim(), "['logs/a.txt', 'b.json'] 60000 0");
    }
}
