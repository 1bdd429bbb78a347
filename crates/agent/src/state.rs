//! What the agent keeps on disk: deployments, restarts, use of images. Small files, written whole and atomically.
//!
//! | File | Content |
//! |---|---|
//! | `deployment.json` | desired properties last accepted |
//! | `deployment.good.json` | those that last were carried out and stayed well |
//! | `rollback.json` | the version that was taken back, and how often the accepted one has been begun |
//! | `restarts.json` | restarts per module |
//! | `images.json` | last use of each image that was pulled |
//!
//! Deployments have passwords of registries in them, so files are readable by their owner only and go through a [`Seal`].
//! A file that cannot be read is put aside (`….corrupt`) and told of; the agent goes on without it.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_observe::tracing;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Bytes of a file that is read back; more is taken for damage.
const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Encrypts what goes to disk.
pub trait Seal: Send + Sync + 'static {
    /// Encrypts.
    ///
    /// # Errors
    /// When the key cannot be used.
    fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, String>;

    /// Decrypts what [`Seal::seal`] made.
    ///
    /// # Errors
    /// When it is damaged or was made with another key.
    fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, String>;
}

/// Leaves content as it is; file permissions protect it.
#[derive(Clone, Copy, Debug)]
pub struct Plain;

impl Seal for Plain {
    fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, String> {
        Ok(plain.to_vec())
    }

    fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, String> {
        Ok(sealed.to_vec())
    }
}

/// Names of the files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum File {
    Accepted,
    Good,
    Rollback,
    Restarts,
    Images,
}

impl File {
    const fn name(self) -> &'static str {
        match self {
            File::Accepted => "deployment.json",
            File::Good => "deployment.good.json",
            File::Rollback => "rollback.json",
            File::Restarts => "restarts.json",
            File::Images => "images.json",
        }
    }

    const fn is_sealed(self) -> bool {
        matches!(self, File::Accepted | File::Good)
    }
}

/// Content of `rollback.json`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct RollbackFile {
    /// Version that was taken back; not tried again.
    #[serde(default)]
    pub(crate) rejected: Option<u64>,
    /// What was reported about it.
    #[serde(default)]
    pub(crate) reason: String,
    /// Version that is on trial.
    #[serde(default)]
    pub(crate) trial: Option<u64>,
    /// Times the daemon has begun with it.
    #[serde(default)]
    pub(crate) begun: u32,
}

/// The folder.
#[derive(Clone)]
pub(crate) struct StateFolder {
    folder: PathBuf,
    seal: Arc<dyn Seal>,
}

impl StateFolder {
    pub(crate) fn open(folder: &Path, seal: Arc<dyn Seal>) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|error| {
                let text = format!(
                    "the folder of the agent's state, {}, cannot be made: {error}",
                    folder.display()
                );
                io::Error::new(error.kind(), text)
            })?;
        Ok(StateFolder {
            folder: folder.to_owned(),
            seal,
        })
    }

    /// Content of a file; `None` when there is none or it is damaged.
    pub(crate) fn read(&self, file: File) -> Option<Vec<u8>> {
        let path = self.folder.join(file.name());
        match self.try_read(file, &path) {
            Ok(content) => content,
            Err(problem) => {
                let aside = self.folder.join(format!("{}.corrupt", file.name()));
                tracing::error!(
                    file = %path.display(), aside = %aside.display(), problem,
                    "a file of the agent's state cannot be read; it is put aside and the agent goes on without it"
                );
                let _ = fs::rename(&path, &aside);
                None
            }
        }
    }

    fn try_read(&self, file: File, path: &Path) -> Result<Option<Vec<u8>>, String> {
        let content = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
            Ok(metadata) if metadata.len() > FILE_BYTES_MAX => {
                return Err(format!("{} bytes are too many", metadata.len()));
            }
            Ok(_) => fs::read(path).map_err(|error| error.to_string())?,
        };
        if file.is_sealed() {
            self.seal.open(&content).map(Some)
        } else {
            Ok(Some(content))
        }
    }

    /// A file with JSON; the default when there is none or it is damaged.
    pub(crate) fn read_json<T: DeserializeOwned + Default>(&self, file: File) -> T {
        let Some(content) = self.read(file) else {
            return T::default();
        };
        serde_json::from_slice(&content).unwrap_or_else(|error| {
            tracing::error!(file = file.name(), %error, "a file of the agent's state has no meaning; it begins anew");
            T::default()
        })
    }

    /// Writes a file so that a power cut leaves the old content or the new one. Blocks.
    pub(crate) fn write(&self, file: File, content: &[u8]) -> io::Result<()> {
        let sealed;
        let content = if file.is_sealed() {
            sealed = self.seal.seal(content).map_err(io::Error::other)?;
            &sealed
        } else {
            content
        };
        let path = self.folder.join(file.name());
        let temporary = self.folder.join(format!("{}.new", file.name()));
        let mut out = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        out.write_all(content)?;
        out.sync_all()?;
        fs::rename(&temporary, &path)?;
        fs::File::open(&self.folder)?.sync_all()
    }
}

/// Id of the machine's current run; another one means that it was started since. Empty when the system does not tell.
#[must_use]
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Turned;

    impl Seal for Turned {
        fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, String> {
            Ok(plain.iter().map(|byte| !byte).collect())
        }

        fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, String> {
            match sealed.first() {
                Some(0) => Err("made with another key".to_owned()),
                _ => self.seal(sealed),
            }
        }
    }

    #[test]
    fn files_are_sealed_private_and_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(&folder.path().join("agent"), Arc::new(Turned)).unwrap();
        assert_eq!(state.read(File::Good), None);
        state.write(File::Good, b"{\"password\":1}").unwrap();
        state.write(File::Good, b"{\"password\":2}").unwrap();
        assert_eq!(state.read(File::Good).as_deref(), Some(&b"{\"password\":2}"[..]));
        let path = folder.path().join("agent/deployment.good.json");
        let on_disk = fs::read(&path).unwrap();
        assert!(!on_disk.windows(8).any(|window| window == b"password"));
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_file_is_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path(), Arc::new(Turned)).unwrap();
        fs::write(folder.path().join("deployment.json"), [0, 1, 2]).unwrap();
        assert_eq!(state.read(File::Accepted), None);
        assert!(folder.path().join("deployment.json.corrupt").exists());
        fs::write(folder.path().join("rollback.json"), "{").unwrap();
        assert_eq!(
            state.read_json::<RollbackFile>(File::Rollback),
            RollbackFile::default()
        );
    }
}
