//! The data directory: made on first start, locked while in use, refused when a newer version wrote it.
//!
//! ```text
//! holdfast.json      format version and id scope
//! holdfast.lock      locked by the running process, holds its id
//! connection.env     variables for clients
//! tls/               CA and server certificates with their keys
//! hub.db, log/       store
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use holdfast_program::failure::{self, Failure, Kind};
use holdfast_program::files::{self, PRIVATE};

/// Version of the directory's layout that this program reads and writes.
pub const FORMAT_VERSION: u32 = 1;

const MANIFEST: &str = "holdfast.json";
const LOCK: &str = "holdfast.lock";

/// What `holdfast.json` says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    format_version: u32,
    #[serde(default)]
    created_by: String,
    #[serde(default)]
    id_scope: String,
}

/// An opened data directory; the lock is held as long as this lives.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    id_scope: String,
    fresh: bool,
    _lock: File,
}

impl DataDir {
    /// Opens the directory, making it if it is missing, and locks it.
    ///
    /// # Errors
    /// When another process uses it, a newer version wrote it, it holds files of something else, or the file system
    /// refuses. Nothing is changed then, except that an empty directory may have been made.
    pub fn open(path: &Path) -> anyhow::Result<DataDir> {
        // Judged before anything is touched: an unknown layout may give even the lock file another meaning.
        let known = read_manifest(path)?;
        if known.is_none() {
            refuse_foreign(path)?;
        }
        make_private_dir(path)
            .with_context(|| format!("cannot make the data directory {}", path.display()))?;
        let path = fs::canonicalize(path).with_context(|| format!("cannot open {}", path.display()))?;
        let lock = lock(&path)?;
        let (manifest, fresh) = match read_manifest(&path)? {
            Some(manifest) => (manifest, false),
            None => (create_manifest(&path)?, true),
        };
        Ok(DataDir {
            path,
            id_scope: manifest.id_scope,
            fresh,
            _lock: lock,
        })
    }

    /// The directory, absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A name within the directory.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Id scope of the provisioning service, drawn at the first start.
    #[must_use]
    pub fn id_scope(&self) -> &str {
        &self.id_scope
    }

    /// Whether this start made the directory's content.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }
}

/// Adds exit code and remedy to an error about a file of the data directory that is named in it.
#[must_use]
pub fn unusable(error: anyhow::Error) -> anyhow::Error {
    if failure::find(&error).is_some() {
        return error;
    }
    let kind = (error.chain())
        .find_map(|cause| cause.downcast_ref::<io::Error>())
        .map(io::Error::kind);
    let remedy = match kind {
        Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => {
            "the user who runs the hub must own everything in the data directory and be able to write there"
        }
        Some(
            io::ErrorKind::IsADirectory
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::AlreadyExists
            | io::ErrorKind::DirectoryNotEmpty,
        ) => {
            "something else stands where the hub keeps this file: move it away, and put the file back or restore it from a backup"
        }
        Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
            "free space on the disk, then start the hub again"
        }
        _ => "check the file, its owner and the disk; restore it from a backup if it is damaged",
    };
    error.context(Failure::new(Kind::Storage, "the data directory cannot be used").hint(remedy))
}

/// Makes a directory of mode 0700 with its parents; an existing one keeps its mode unless others may write to it.
///
/// # Errors
/// Those of the file system.
pub fn make_private_dir(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_dir() => Err(io::Error::new(
            io::ErrorKind::NotADirectory,
            format!("{} is not a directory", path.display()),
        )),
        Ok(metadata) => {
            let mode = metadata.permissions().mode() & 0o777;
            // Keys live here: access for others is taken away, and nothing is granted that was not.
            if mode & 0o077 != 0 {
                fs::set_permissions(path, Permissions::from_mode(mode & 0o700))?;
            }
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o700).create(path)
        }
        Err(error) => Err(error),
    }
}

fn read_manifest(dir: &Path) -> anyhow::Result<Option<Manifest>> {
    let path = dir.join(MANIFEST);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    // Only the version is read first: a newer file may have another shape.
    let value: serde_json::Value = serde_json::from_str(&text).map_err(|error| {
        Failure::new(Kind::Failed, format!("{} is damaged: {error}", path.display()))
            .hint("restore the file from a backup; the data beside it was not touched")
    })?;
    let version = value.get("formatVersion").and_then(serde_json::Value::as_u64);
    match version {
        Some(version) if version > u64::from(FORMAT_VERSION) => Err(Failure::new(
            Kind::Failed,
            format!(
                "the data directory {} has format {version}; this version of holdfast reads up to {FORMAT_VERSION}",
                dir.display()
            ),
        )
        .hint("start the newer version that wrote it, or choose another --data-dir; nothing was changed")
        .into()),
        Some(_) => Ok(Some(serde_json::from_value(value)?)),
        None => Err(Failure::new(Kind::Failed, format!("{} has no formatVersion", path.display()))
            .hint("restore the file from a backup; the data beside it was not touched")
            .into()),
    }
}

/// A directory that exists, is not empty and is not ours: most likely a mistyped path.
fn refuse_foreign(path: &Path) -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir(path) else {
        return Ok(());
    };
    // `.tmp` is what a crash may leave beside a file that was being written.
    let foreign = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .find(|name| name != LOCK && name != "lost+found" && !name.ends_with(".tmp"));
    match foreign {
        None => Ok(()),
        Some(name) => Err(Failure::usage(format!(
            "{} is not empty and is not a data directory of holdfast (it holds {name:?})",
            path.display()
        ))
        .hint("give an empty or new directory with --data-dir")
        .into()),
    }
}

fn create_manifest(dir: &Path) -> anyhow::Result<Manifest> {
    let random = ring::rand::generate::<[u8; 4]>(&ring::rand::SystemRandom::new())
        .map_err(|_| anyhow::anyhow!("the operating system's random source does not work"))?
        .expose();
    let manifest = Manifest {
        format_version: FORMAT_VERSION,
        created_by: concat!("holdfast ", env!("CARGO_PKG_VERSION")).to_owned(),
        id_scope: format!("0ne{:08X}", u32::from_be_bytes(random)),
    };
    let path = dir.join(MANIFEST);
    files::write(
        &path,
        serde_json::to_string_pretty(&manifest)?.as_bytes(),
        PRIVATE,
    )
    .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(manifest)
}

/// Takes the lock. It is the kernel's, so it ends with the process however that dies; the text is only for people.
fn lock(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join(LOCK);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            return Err(Failure::new(
                Kind::Conflict,
                format!(
                    "process {} already serves the data directory {}",
                    pid.trim(),
                    dir.display()
                ),
            )
            .hint("stop that process first, or give another --data-dir (and other ports) to run a second hub")
            .into());
        }
        Err(error) => {
            return Err(io::Error::from(error)).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_private_locked_and_keeps_its_scope() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        let first = DataDir::open(&path).unwrap();
        assert!(first.is_fresh());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(first.id_scope().starts_with("0ne") && first.id_scope().len() == 11);
        let refused = DataDir::open(&path).unwrap_err().to_string();
        assert!(refused.contains(&std::process::id().to_string()), "{refused}");
        let scope = first.id_scope().to_owned();
        drop(first);
        let second = DataDir::open(&path).unwrap();
        assert!(!second.is_fresh());
        assert_eq!(second.id_scope(), scope);
    }

    #[test]
    fn a_newer_directory_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(MANIFEST), r#"{"formatVersion":99,"shape":[1]}"#).unwrap();
        let error = DataDir::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("format 99"), "{error}");
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().collect();
        assert_eq!(names.len(), 1, "nothing was added");
    }

    #[test]
    fn a_foreign_directory_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.tex"), "").unwrap();
        assert!(
            DataDir::open(dir.path())
                .unwrap_err()
                .to_string()
                .contains("thesis.tex")
        );
    }
}
