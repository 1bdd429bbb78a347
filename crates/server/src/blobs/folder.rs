//! Containers as folders on the hub's own machine, below one that the operator has opened.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Component, Path, PathBuf};

use holdfast_fleet::transfer::{BlobReader, BlobWriter};
use rustix::fs::OFlags;
use tempfile::NamedTempFile;

/// The file of a blob. Its folder must exist and lie, links followed, in `root`.
pub(super) fn place(root: &Path, container: &str, blob: &str) -> Result<PathBuf, String> {
    let container = percent_encoding::percent_decode_str(container.trim_end_matches('/'))
        .decode_utf8()
        .map_err(|_| "the path is not UTF-8".to_owned())?;
    let plain = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
    if !plain(Path::new(blob)) {
        return Err(format!("{blob:?} is not the name of a file below the container"));
    }
    let path = Path::new(container.as_ref()).join(blob);
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err("the URI names no folder: it must be file:///path/of/folder".to_owned());
    };
    let real = |dir: &Path| {
        dir.canonicalize()
            .map_err(|error| format!("the folder {} cannot be used: {error}", dir.display()))
    };
    // The same words for what is outside and for what is not there: outsiders need not learn which.
    let outside = || {
        format!(
            "{} is no folder in {}, which transfer.folder in the configuration of the hub allows",
            dir.display(),
            root.display()
        )
    };
    let root = real(root)?;
    let dir = dir.canonicalize().map_err(|_| outside())?;
    if !dir.starts_with(&root) {
        return Err(outside());
    }
    Ok(dir.join(name))
}

pub(super) fn open(path: &Path) -> Result<BlobReader, String> {
    let failed = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let file = OpenOptions::new()
        .read(true)
        // A link could lead out of the folder, and a pipe would be waited for.
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
        .open(path)
        .map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    if !about.is_file() {
        return Err(format!("{} is not a file", path.display()));
    }
    Ok(BlobReader {
        bytes: Box::new(file),
        size: Some(about.len()),
    })
}

pub(super) fn create(path: PathBuf) -> Result<Box<dyn BlobWriter>, String> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let file = NamedTempFile::new_in(dir)
        .map_err(|error| format!("cannot write into {}: {error}", dir.display()))?;
    Ok(Box::new(FileBlob { file, path }))
}

/// A file under another name until it is whole. Only its owner may read it: it may hold keys.
struct FileBlob {
    file: NamedTempFile,
    path: PathBuf,
}

impl Write for FileBlob {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl BlobWriter for FileBlob {
    fn finish(self: Box<Self>) -> Result<(), String> {
        let FileBlob { file, path } = *self;
        let failed = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
        file.as_file().sync_all().map_err(failed)?;
        file.persist(&path).map_err(|error| failed(error.error))?;
        let dir = path.parent().unwrap_or(Path::new("."));
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn files_are_whole_or_not_there() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("box")).unwrap();
        let container = format!("{}/box/", dir.path().display());
        let path = place(dir.path(), &container, "devices.txt").unwrap();
        let mut writer = create(path.clone()).unwrap();
        writer.write_all(b"one\n").unwrap();
        assert!(!path.exists());
        drop(writer);
        assert_eq!(std::fs::read_dir(dir.path().join("box")).unwrap().count(), 0);
        let mut writer = create(path.clone()).unwrap();
        writer.write_all(b"two\n").unwrap();
        writer.finish().unwrap();
        let mut reader = open(&path).unwrap();
        let mut text = String::new();
        reader.bytes.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), reader.size), ("two\n", Some(4)));
    }

    #[test]
    fn nothing_outside_the_folder_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("open");
        std::fs::create_dir_all(root.join("box")).unwrap();
        std::fs::write(dir.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink(dir.path(), root.join("link")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), root.join("box/link.txt")).unwrap();
        let at = |text: &str| format!("{}{text}", root.display());
        for (container, blob) in [
            (at("/.."), "secret"),
            (at("/link"), "secret"),
            (at("/box/%2e%2e/%2e%2e"), "secret"),
            (at("/box"), "../../secret"),
            (at("/box"), "/etc/passwd"),
            (at("/box"), "."),
            (at("/nowhere"), "x"),
            ("relative".to_owned(), "x"),
            (String::new(), "x"),
        ] {
            assert!(place(&root, &container, blob).is_err(), "{container} {blob}");
        }
        let link = place(&root, &at("/box"), "link.txt").unwrap();
        assert!(open(&link).is_err(), "a link is not followed");
        assert!(open(&root.join("box")).is_err(), "a folder is no file");
        assert!(place(&dir.path().join("gone"), &at("/box"), "x").is_err());
    }
}
