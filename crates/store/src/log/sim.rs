//! A disk in memory that tears writes, fills up, fails to sync and loses power. For tests.
//!
//! What counts as durable is what POSIX promises and no more: a file's content after its sync, a name after the sync
//! of its directory. A power cut keeps that, any subset of the 512-byte sectors written since, and the first few of
//! the names changed since. It is decided by a seed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::disk::{Disk, DiskFile};

const SECTOR_BYTES: usize = 512;

/// The disk. Clones share it, as two mounts of one disk would.
#[derive(Clone, Default, Debug)]
pub struct SimDisk(Arc<Mutex<State>>);

#[derive(Default, Debug)]
struct State {
    files: Vec<FileState>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    /// Changes of names that are not durable yet, in order.
    changes: Vec<Change>,
    directories: BTreeSet<PathBuf>,
    /// Files opened before the last crash have a smaller one and are dead.
    boots: u64,
    faults: Faults,
}

#[derive(Default, Debug)]
struct FileState {
    content: Vec<u8>,
    synced: Vec<u8>,
    /// Sectors that a failed sync was to write. As on Linux, the next sync does not try them again, and succeeds;
    /// writing them again makes them dirty again.
    lost: BTreeSet<usize>,
}

#[derive(Clone, Debug)]
enum Change {
    Link(PathBuf, usize),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf),
}

#[derive(Default, Debug)]
struct Faults {
    /// Writes work for so many bytes, then the machine stops in the middle of one.
    stop_after_bytes: Option<usize>,
    stopped: bool,
    /// Syncs of files work so many times, then one fails.
    fail_sync_after: Option<u32>,
    capacity_bytes: Option<usize>,
    read_only: bool,
    unreadable: BTreeSet<PathBuf>,
}

impl SimDisk {
    /// An empty disk without faults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// After `bytes` more bytes the machine stops, in the middle of a write if need be: everything fails until
    /// [`SimDisk::kill`] or [`SimDisk::cut_power`].
    pub fn stop_after_bytes(&self, bytes: usize) {
        self.0.lock().faults.stop_after_bytes = Some(bytes);
    }

    /// After `count` more syncs of files, one fails.
    pub fn fail_sync_after(&self, count: u32) {
        self.0.lock().faults.fail_sync_after = Some(count);
    }

    /// Space of the disk, in bytes of all files; `None` for no bound.
    pub fn set_capacity(&self, bytes: Option<usize>) {
        self.0.lock().faults.capacity_bytes = bytes;
    }

    /// Refuses every change, or allows them again.
    pub fn set_read_only(&self, read_only: bool) {
        self.0.lock().faults.read_only = read_only;
    }

    /// Takes all faults away that have not happened yet.
    pub fn clear_faults(&self) {
        let mut state = self.0.lock();
        let stopped = state.faults.stopped;
        state.faults = Faults {
            stopped,
            ..Faults::default()
        };
    }

    /// Makes every read of a file fail.
    pub fn make_unreadable(&self, path: &Path) {
        self.0.lock().faults.unreadable.insert(path.to_owned());
    }

    /// The process is killed: open files are dead, what was written stays. Faults are gone.
    pub fn kill(&self) {
        let mut state = self.0.lock();
        state.boots += 1;
        state.faults = Faults::default();
    }

    /// The power fails, and comes back.
    pub fn cut_power(&self, seed: u64) {
        let mut random = Random(seed);
        let mut state = self.0.lock();
        state.boots += 1;
        state.faults = Faults::default();
        let kept = random.below(state.changes.len() + 1);
        let changes: Vec<_> = state.changes.drain(..).take(kept).collect();
        for change in changes {
            apply(&mut state.durable_names, change);
        }
        state.names = state.durable_names.clone();
        // From "nothing got there" to "everything did".
        let chance = random.below(5);
        for file in &mut state.files {
            file.lose_power(&mut random, chance);
        }
    }

    /// The content of a file, as the process sees it.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn content(&self, path: &Path) -> Vec<u8> {
        let state = self.0.lock();
        state.files[state.names[path]].content.clone()
    }

    /// Changes the content of a file behind everybody's back.
    ///
    /// # Panics
    /// When there is none.
    pub fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.0.lock();
        let id = state.names[path];
        let file = &mut state.files[id];
        change(&mut file.content);
        file.synced = file.content.clone();
    }

    /// All files.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        self.0.lock().names.keys().cloned().collect()
    }

    /// A copy of the disk, with all written content and none of the faults.
    #[must_use]
    pub fn copy(&self) -> SimDisk {
        let state = self.0.lock();
        let file = |file: &FileState| FileState {
            content: file.content.clone(),
            synced: file.content.clone(),
            lost: BTreeSet::new(),
        };
        SimDisk(Arc::new(Mutex::new(State {
            files: state.files.iter().map(file).collect(),
            names: state.names.clone(),
            durable_names: state.names.clone(),
            directories: state.directories.clone(),
            ..State::default()
        })))
    }

    fn running(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.0.lock();
        if state.faults.stopped {
            return Err(io::Error::other("the machine is off"));
        }
        Ok(state)
    }

    fn writable(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.running()?;
        if state.faults.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        Ok(state)
    }
}

impl FileState {
    fn sector(bytes: &[u8], index: usize) -> &[u8] {
        let end = bytes.len().min((index + 1) * SECTOR_BYTES);
        bytes.get(index * SECTOR_BYTES..end).unwrap_or_default()
    }

    fn fail_sync(&mut self) {
        let sectors = self.content.len().div_ceil(SECTOR_BYTES);
        let dirty = |index: &usize| Self::sector(&self.content, *index) != Self::sector(&self.synced, *index);
        self.lost = (0..sectors).filter(dirty).collect();
    }

    fn sync(&mut self) {
        let mut synced = self.content.clone();
        for index in &self.lost {
            let from = index * SECTOR_BYTES;
            let to = synced.len().min(from + SECTOR_BYTES);
            let old = Self::sector(&self.synced, *index);
            for (offset, byte) in synced
                .get_mut(from..to)
                .unwrap_or_default()
                .iter_mut()
                .enumerate()
            {
                *byte = old.get(offset).copied().unwrap_or(0);
            }
        }
        self.synced = synced;
    }

    fn write(&mut self, bytes: &[u8], start: usize) {
        self.content[start..start + bytes.len()].copy_from_slice(bytes);
        let sectors = start / SECTOR_BYTES..(start + bytes.len()).div_ceil(SECTOR_BYTES);
        self.lost.retain(|index| !sectors.contains(index));
    }

    fn lose_power(&mut self, random: &mut Random, chance: usize) {
        let lengths = [self.synced.len(), self.content.len()];
        let length = lengths[random.below(2)];
        let mut left = vec![0; length];
        for (index, sector) in left.chunks_mut(SECTOR_BYTES).enumerate() {
            let written = random.below(4) < chance;
            let source = if written { &self.content } else { &self.synced };
            let from = source.get(index * SECTOR_BYTES..).unwrap_or_default();
            let count = sector.len().min(from.len());
            sector[..count].copy_from_slice(&from[..count]);
        }
        self.content.clone_from(&left);
        self.synced = left;
        self.lost.clear();
    }
}

fn apply(names: &mut BTreeMap<PathBuf, usize>, change: Change) {
    match change {
        Change::Link(path, id) => {
            names.insert(path, id);
        }
        Change::Unlink(path) => {
            names.remove(&path);
        }
        Change::Rename(from, to) => {
            if let Some(id) = names.remove(&from) {
                names.insert(to, id);
            }
        }
    }
}

impl State {
    fn change(&mut self, change: Change) {
        apply(&mut self.names, change.clone());
        self.changes.push(change);
    }

    fn used_bytes(&self) -> usize {
        let ids: BTreeSet<_> = self.names.values().collect();
        ids.into_iter().map(|id| self.files[*id].content.len()).sum()
    }

    /// Makes a file at least `length` long.
    fn grow(&mut self, id: usize, length: usize) -> io::Result<()> {
        let more = length.saturating_sub(self.files[id].content.len());
        let full = |capacity| more > 0 && self.used_bytes() + more > capacity;
        if self.faults.capacity_bytes.is_some_and(full) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if more > 0 {
            self.files[id].content.resize(length, 0);
        }
        Ok(())
    }
}

impl Change {
    fn directory(&self) -> Option<&Path> {
        match self {
            Change::Link(path, _) | Change::Unlink(path) | Change::Rename(_, path) => path.parent(),
        }
    }
}

impl Disk for SimDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        if self.running()?.directories.contains(path) {
            return Ok(());
        }
        self.writable()?.directories.insert(path.to_owned());
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.running()?;
        let names = state.names.keys().chain(&state.directories);
        let inside = names.filter(|path| path.parent() == Some(dir));
        Ok(inside
            .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
            .collect())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.writable()?;
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let id = state.files.len();
        state.files.push(FileState::default());
        state.change(Change::Link(path.to_owned(), id));
        Ok(Box::new(SimFile {
            disk: self.clone(),
            path: path.to_owned(),
            id,
            boot: state.boots,
        }))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn DiskFile>> {
        let state = if write { self.writable() } else { self.running() }?;
        let id = *state
            .names
            .get(path)
            .ok_or(io::Error::from(io::ErrorKind::NotFound))?;
        Ok(Box::new(SimFile {
            disk: self.clone(),
            path: path.to_owned(),
            id,
            boot: state.boots,
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.writable()?;
        state.change(Change::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.writable()?;
        if !state.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change(Change::Unlink(path.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.writable()?;
        let changes = std::mem::take(&mut state.changes);
        for change in changes {
            if change.directory() == Some(dir) {
                apply(&mut state.durable_names, change);
            } else {
                state.changes.push(change);
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    path: PathBuf,
    id: usize,
    boot: u64,
}

impl SimFile {
    fn alive<'a>(&self, state: io::Result<MutexGuard<'a, State>>) -> io::Result<MutexGuard<'a, State>> {
        let state = state?;
        if state.boots != self.boot {
            return Err(io::Error::other("the file was opened before the crash"));
        }
        Ok(state)
    }
}

impl DiskFile for SimFile {
    fn length(&self) -> io::Result<u64> {
        let state = self.alive(self.disk.running())?;
        Ok(state.files[self.id].content.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.alive(self.disk.running())?;
        if state.faults.unreadable.contains(&self.path) {
            return Err(io::Error::other("input/output error"));
        }
        let content = &state.files[self.id].content;
        let from = content.get(offset as usize..).unwrap_or_default();
        let count = from.len().min(buffer.len());
        buffer[..count].copy_from_slice(&from[..count]);
        Ok(count)
    }

    fn read_cached_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        // As a page cache does: some of it, none of it, or all of it. Depends on the place, so that it repeats.
        match offset % 3 {
            0 => Ok(None),
            1 => {
                let half = buffer.len() / 2;
                self.read_at(&mut buffer[..half], offset).map(Some)
            }
            _ => self.read_at(buffer, offset).map(Some),
        }
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.alive(self.disk.writable())?;
        let mut count = bytes.len();
        if let Some(left) = &mut state.faults.stop_after_bytes {
            count = count.min(*left);
            *left -= count;
        }
        let start = offset as usize;
        state.grow(self.id, start + count)?;
        state.files[self.id].write(&bytes[..count], start);
        if count < bytes.len() {
            state.faults.stopped = true;
            return Err(io::Error::other("the machine is off"));
        }
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.alive(self.disk.writable())?.grow(self.id, len as usize)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut state = self.alive(self.disk.writable())?;
        state.files[self.id].content.truncate(len as usize);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.alive(self.disk.writable())?;
        let fails = match &mut state.faults.fail_sync_after {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        };
        if fails {
            state.faults.fail_sync_after = None;
            state.files[self.id].fail_sync();
            return Err(io::Error::other("input/output error"));
        }
        state.files[self.id].sync();
        Ok(())
    }
}

/// SplitMix64: small, seeded, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next_u64() % bound as u64) as usize
    }
}
