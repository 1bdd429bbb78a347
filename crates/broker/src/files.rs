//! Small files of the edge hub: written whole, under a new name first, and sealed where they hold secrets.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_store::log::disk::Disk;
use parking_lot::RwLock;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

/// Largest file that is read back.
const BYTES_MAX: u64 = 64 << 20;
const MAGIC: &[u8; 4] = b"hfs1";

/// Key for what the edge hub keeps secret on its disk. Never printed.
#[derive(Clone)]
pub struct SealingKey([u8; 32]);

impl SealingKey {
    /// A key of 32 bytes; the same one must be given whenever the directory is opened.
    #[must_use]
    pub const fn new(key: [u8; 32]) -> Self {
        SealingKey(key)
    }
}

impl std::fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealingKey(…)")
    }
}

/// A directory of small files.
pub(crate) struct Files {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    key: LessSafeKey,
    /// Nothing is written any more: the directory may belong to a successor.
    closed: RwLock<bool>,
}

impl Files {
    pub(crate) fn open(disk: Arc<dyn Disk>, dir: PathBuf, key: &SealingKey) -> io::Result<Self> {
        disk.create_dir(&dir)?;
        let key = UnboundKey::new(&CHACHA20_POLY1305, &key.0)
            .map_err(|_| io::Error::other("the sealing key cannot be used"))?;
        Ok(Files {
            disk,
            dir,
            key: LessSafeKey::new(key),
            closed: RwLock::new(false),
        })
    }

    /// Waits for writes that are under way and refuses all later ones, so that whoever opens the directory next is alone.
    pub(crate) fn close(&self) {
        *self.closed.write() = true;
    }

    fn check_open(closed: bool) -> io::Result<()> {
        if closed {
            return Err(io::Error::other("the edge hub has been stopped"));
        }
        Ok(())
    }

    /// The content of a file; `None` when there is none.
    pub(crate) fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let file = match self.disk.open(&self.path(name), false) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let length = file.length()?;
        if length > BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut content = vec![0; length as usize];
        let read = file.read_at(&mut content, 0)?;
        content.truncate(read);
        Ok(Some(content))
    }

    /// Replaces a file, durably.
    pub(crate) fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let closed = self.closed.read();
        Self::check_open(*closed)?;
        let (path, new) = (self.path(name), self.path(&format!("{name}.new")));
        // Left by a crash.
        match self.disk.remove(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = self.disk.create(&new)?;
        file.write_all_at(content, 0)?;
        file.sync()?;
        self.disk.rename(&new, &path)?;
        self.disk.sync_dir(&self.dir)
    }

    /// As [`Files::read`], for what [`Files::write_sealed`] wrote. A file that cannot be opened with the key is an error.
    pub(crate) fn read_sealed(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let Some(mut content) = self.read(name)? else {
            return Ok(None);
        };
        let damaged = || {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "it is damaged or sealed with another key",
            )
        };
        if !content.starts_with(MAGIC) || content.len() < MAGIC.len() + NONCE_LEN {
            return Err(damaged());
        }
        let mut sealed = content.split_off(MAGIC.len() + NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(&content[MAGIC.len()..]).map_err(|_| damaged())?;
        let opened = self
            .key
            .open_in_place(nonce, Aad::from(name.as_bytes()), &mut sealed)
            .map_err(|_| damaged())?
            .len();
        sealed.truncate(opened);
        Ok(Some(sealed))
    }

    /// Replaces a file by sealed content, durably.
    pub(crate) fn write_sealed(&self, name: &str, mut content: Vec<u8>) -> io::Result<()> {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce)
            .map_err(|_| io::Error::other("the system's random source does not work"))?;
        let mut out = Vec::with_capacity(content.len() + 64);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&nonce);
        self.key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(name.as_bytes()),
                &mut content,
            )
            .map_err(|_| io::Error::other("the content cannot be sealed"))?;
        out.append(&mut content);
        self.write(name, &out)
    }

    /// Removes a file; none is no error.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        let closed = self.closed.read();
        Self::check_open(*closed)?;
        match self.disk.remove(&self.path(name)) {
            Ok(()) => self.disk.sync_dir(&self.dir),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Names of all files, those of an unfinished write left out.
    pub(crate) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = self.disk.list(&self.dir)?;
        names.retain(|name| {
            Path::new(name)
                .extension()
                .is_none_or(|extension| extension != "new")
        });
        Ok(names)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

#[cfg(test)]
mod tests {
    use holdfast_store::log::sim::SimDisk;

    use super::*;

    #[test]
    fn sealed_files_open_with_their_key_and_name_only() {
        let disk = SimDisk::new();
        let open = |key: u8| {
            let dir = PathBuf::from("/state");
            Files::open(Arc::new(disk.clone()), dir, &SealingKey::new([key; 32])).unwrap()
        };
        let files = open(1);
        assert_eq!(files.read_sealed("a").unwrap(), None);
        files.write_sealed("a", b"secret".to_vec()).unwrap();
        files.write_sealed("a", b"newer secret".to_vec()).unwrap();
        assert_eq!(
            files.read_sealed("a").unwrap().as_deref(),
            Some(&b"newer secret"[..])
        );
        let stored = files.read("a").unwrap().unwrap();
        assert!(!stored.windows(6).any(|window| window == b"secret"));
        assert!(open(2).read_sealed("a").is_err());
        files.write("b", &stored).unwrap();
        assert!(files.read_sealed("b").is_err(), "the name is part of the seal");
        files.remove("a").unwrap();
        files.remove("a").unwrap();
        assert_eq!(files.names().unwrap(), ["b"]);
    }

    #[test]
    fn what_is_closed_writes_nothing_into_its_successors_files() {
        let disk = SimDisk::new();
        let open = || {
            let dir = PathBuf::from("/state");
            Files::open(Arc::new(disk.clone()), dir, &SealingKey::new([1; 32])).unwrap()
        };
        let former = open();
        former.write("a", b"old").unwrap();
        former.close();
        let successor = open();
        successor.write("a", b"new").unwrap();
        assert!(former.write("a", b"late").is_err());
        assert!(former.write_sealed("a", b"late".to_vec()).is_err());
        assert!(former.remove("a").is_err());
        assert_eq!(successor.read("a").unwrap().as_deref(), Some(&b"new"[..]));
    }

    #[test]
    fn a_power_cut_leaves_the_old_or_the_new_content() {
        for cut in 0..200 {
            let disk = SimDisk::new();
            let dir = PathBuf::from("/state");
            let open =
                || Files::open(Arc::new(disk.clone()), dir.clone(), &SealingKey::new([1; 32])).unwrap();
            open().write_sealed("a", vec![1; 100]).unwrap();
            disk.stop_after_bytes(cut);
            let second = open().write_sealed("a", vec![2; 100]);
            disk.cut_power(cut as u64);
            let content = open().read_sealed("a").unwrap().unwrap();
            let expected: &[u8] = if second.is_ok() { &[2] } else { &[1, 2] };
            assert!(
                expected.contains(&content[0]) && content.len() == 100,
                "cut {cut}"
            );
        }
    }
}
