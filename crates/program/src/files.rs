//! Small files that survive a power cut: written beside, synced, renamed, folder synced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use crate::failure::Failure;

/// Mode of files with secrets.
pub const PRIVATE: u32 = 0o600;
/// Mode of files that anyone may read.
pub const PUBLIC: u32 = 0o644;

/// Writes a file whole or not at all. `Ok` means that it is on the disk.
///
/// # Errors
/// What the system says. The old content stays then.
pub fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    // Of this process, so that two that write the same file do not write into each other's.
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let beside = path.with_file_name(name);
    // What a crash of a process with this number has left is made anew, so that the mode holds from the first byte on.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&beside)?;
    // The umask may have taken bits that were asked for.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&beside, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// Reads a file; `None` when it is not there.
///
/// # Errors
/// What else the system says.
pub fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes a folder and those above it, with this mode for new ones.
///
/// # Errors
/// Naming the folder.
pub fn make_dir(path: &Path, mode: u32) -> Result<(), Failure> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|error| {
            Failure::storage(format!("cannot make the folder {}: {error}", path.display()))
                .hint("run as root, or choose a folder of your own (device.home, --home)")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_whole_and_keeps_the_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write(&path, b"one", PRIVATE).unwrap();
        write(&path, b"two", PRIVATE).unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, PRIVATE);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(read(&dir.path().join("none")).unwrap().is_none());
    }

    #[test]
    fn what_a_crash_has_left_neither_stays_nor_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join(format!("key.{}.tmp", std::process::id()));
        fs::write(&left, b"longer than the key").unwrap();
        fs::set_permissions(&left, fs::Permissions::from_mode(0o666)).unwrap();
        let path = dir.path().join("key");
        write(&path, b"key", PRIVATE).unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"key");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, PRIVATE);
        assert!(!left.exists());
    }

    #[test]
    fn a_file_without_a_folder_goes_into_the_current_one() {
        let name = format!("holdfast-files-{}.test", std::process::id());
        write(Path::new(&name), b"here", PUBLIC).unwrap();
        let content = read(Path::new(&name)).unwrap();
        fs::remove_file(&name).unwrap();
        assert_eq!(content.unwrap(), b"here");
    }
}
