//! Models of plug and play devices in a folder, in the layout of a model repository (languages.md 7.2).
//!
//! The folder may also be filled by hand, or be a copy of a public repository: nothing is kept in memory, and every file is
//! checked when it is used. The methods block; call them on a thread that may wait.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use holdfast_dtdl::parse::DOCUMENT_BYTES_MAX;
use holdfast_dtdl::set::INTERFACES_MAX;
use holdfast_dtdl::{Dtmi, Fault, ModelSet, parse_document, repository};
use holdfast_model::{Error, ErrorCode};

/// Most models that are listed; a folder with more is served, but not listed whole.
pub const LISTED_MAX: usize = 5_000;
/// Deepest folder that is listed: an id of the greatest length has no more segments.
const DEPTH_MAX: usize = 64;

/// A folder of models.
#[derive(Debug)]
pub struct ModelFolder {
    root: PathBuf,
}

/// A model in a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListedModel {
    /// Its id.
    pub id: Dtmi,
    /// Name for people.
    pub display_name: Option<String>,
}

/// What is wrong with models.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ModelFailure {
    /// The hub cannot serve, or there is no such model.
    Error(Error),
    /// The models break rules.
    Faults(Vec<Fault>),
}

impl From<Error> for ModelFailure {
    fn from(error: Error) -> Self {
        ModelFailure::Error(error)
    }
}

impl ModelFolder {
    /// Models below `root`, which need not exist yet.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        ModelFolder { root }
    }

    /// The text of a model.
    ///
    /// # Errors
    /// `ResourceNotFound`; `ServiceUnavailable` when the folder cannot be read.
    pub fn text(&self, id: &Dtmi) -> Result<String, Error> {
        let path = self.path(id);
        read(&path)?.ok_or_else(|| not_found(id))
    }

    /// Checks a document with everything it refers to in this folder; gives the set.
    ///
    /// # Errors
    /// `Faults`, among them what is referred to and not here.
    pub fn check(&self, text: &str) -> Result<(Dtmi, ModelSet), ModelFailure> {
        let mut set = ModelSet::default();
        let id = set.add_document(text).map_err(ModelFailure::Faults)?;
        self.complete(&mut set)?;
        let faults = set.check();
        if faults.is_empty() {
            Ok((id, set))
        } else {
            Err(ModelFailure::Faults(faults))
        }
    }

    /// A model with everything it refers to, checked.
    ///
    /// # Errors
    /// `ResourceNotFound`; `Faults` when the file, or one it refers to, breaks a rule.
    pub fn load(&self, id: &Dtmi) -> Result<ModelSet, ModelFailure> {
        let text = self.text(id)?;
        let (found, set) = self.check(&text)?;
        if found == *id || set.interface(id).is_some() {
            return Ok(set);
        }
        Err(ModelFailure::Faults(vec![Fault {
            place: id.to_string(),
            rule: format!("the file {} defines {found}", repository::path_of(id)),
        }]))
    }

    /// Keeps a document under the id that it is about, in place of one that is there; gives that id.
    ///
    /// # Errors
    /// `Faults` when it, or what it refers to, breaks a rule; `ServiceUnavailable` when it cannot be written.
    pub fn put(&self, text: &str) -> Result<Dtmi, ModelFailure> {
        let (id, _) = self.check(text)?;
        self.write(&self.path(&id), text)
            .map_err(|error| disk(&self.root, &error))?;
        Ok(id)
    }

    /// Removes a model.
    ///
    /// # Errors
    /// `ResourceNotFound`; `ServiceUnavailable`.
    pub fn delete(&self, id: &Dtmi) -> Result<(), Error> {
        match fs::remove_file(self.path(id)) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(not_found(id)),
            Err(error) => Err(disk(&self.root, &error)),
        }
    }

    /// The models of the folder by id, at most [`LISTED_MAX`]; files that are none are left out.
    ///
    /// # Errors
    /// `ServiceUnavailable` when the folder cannot be read.
    pub fn list(&self) -> Result<Vec<ListedModel>, Error> {
        let mut files = Vec::new();
        let found = walk(&self.root.join("dtmi"), 0, &mut files);
        found.map_err(|error| disk(&self.root, &error))?;
        let mut models = Vec::new();
        for file in files {
            let Some(text) = read(&file)? else { continue };
            let Some(about) = parse_document(&text)
                .ok()
                .and_then(|found| found.into_iter().next())
            else {
                continue;
            };
            models.push(ListedModel {
                id: about.id,
                display_name: about.display_name,
            });
        }
        models.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(models)
    }

    /// Adds what the models of a set refer to, as far as it is here.
    fn complete(&self, set: &mut ModelSet) -> Result<(), ModelFailure> {
        let mut tried: BTreeSet<Dtmi> = BTreeSet::new();
        loop {
            let missing: Vec<Dtmi> = set
                .missing()
                .into_iter()
                .filter(|id| !tried.contains(*id))
                .cloned()
                .collect();
            if missing.is_empty() || tried.len() > INTERFACES_MAX {
                return Ok(());
            }
            for id in missing {
                if let Some(text) = read(&self.path(&id))? {
                    set.add_document(&text).map_err(ModelFailure::Faults)?;
                }
                tried.insert(id);
            }
        }
    }

    /// Ids hold no character that leads out of the folder.
    fn path(&self, id: &Dtmi) -> PathBuf {
        self.root.join(repository::path_of(id))
    }

    /// The file is there as a whole or not at all.
    fn write(&self, path: &Path, text: &str) -> std::io::Result<()> {
        let dir = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(dir)?;
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        fs::File::open(dir)?.sync_all()
    }
}

/// A file of at most the size that a document may have; `None` when there is none.
fn read(path: &Path) -> Result<Option<String>, Error> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(disk(path, &error)),
    };
    let mut bytes = Vec::new();
    let read = file.take(DOCUMENT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| disk(path, &error))?;
    // What is not UTF-8 is not JSON either, and the reader of documents says so.
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

fn walk(dir: &Path, depth: usize, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        if files.len() >= LISTED_MAX || depth > DEPTH_MAX {
            return Ok(());
        }
        let entry = entry?;
        // Not followed: a link could lead anywhere, or in a circle.
        let kind = entry.file_type()?;
        if kind.is_dir() {
            walk(&entry.path(), depth + 1, files)?;
        } else if kind.is_file() && entry.path().extension().is_some_and(|end| end == "json") {
            files.push(entry.path());
        }
    }
    Ok(())
}

fn not_found(id: &Dtmi) -> Error {
    Error::new(
        ErrorCode::ResourceNotFound,
        format!(
            "there is no model {id}; it would be the file {} of the model folder",
            repository::path_of(id)
        ),
    )
}

fn disk(path: &Path, error: &std::io::Error) -> Error {
    holdfast_observe::tracing::error!(path = %path.display(), %error, "the folder of models cannot be used");
    Error::new(
        ErrorCode::ServiceUnavailable,
        "the hub cannot use its folder of models; its log has the details",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = r#"{"@context":"dtmi:dtdl:context;2","@id":"dtmi:ex:A;1","@type":"Interface","displayName":"An A",
        "contents":[{"@type":"Component","name":"b","schema":"dtmi:ex:B;1"}]}"#;
    const B: &str = r#"{"@context":"dtmi:dtdl:context;2","@id":"dtmi:ex:B;1","@type":"Interface"}"#;

    fn id(text: &str) -> Dtmi {
        Dtmi::parse(text).unwrap()
    }

    #[test]
    fn models_are_kept_and_found_with_what_they_refer_to() {
        let dir = tempfile::tempdir().unwrap();
        let folder = ModelFolder::new(dir.path().join("models"));
        assert_eq!(folder.list().unwrap(), []);
        let Err(ModelFailure::Faults(faults)) = folder.put(A) else {
            panic!("what it refers to is not there");
        };
        assert!(faults[0].rule.contains("dtmi:ex:B;1 is not there"), "{faults:?}");
        assert_eq!(folder.put(B), Ok(id("dtmi:ex:B;1")));
        assert_eq!(folder.put(A), Ok(id("dtmi:ex:A;1")));
        assert!(dir.path().join("models/dtmi/ex/a-1.json").exists());
        let listed = folder.list().unwrap();
        assert_eq!(listed[0].display_name.as_deref(), Some("An A"));
        assert_eq!(listed[1].id, id("dtmi:ex:B;1"));
        assert!(
            folder
                .load(&id("dtmi:ex:A;1"))
                .unwrap()
                .interface(&id("dtmi:ex:B;1"))
                .is_some()
        );
        assert_eq!(folder.text(&id("dtmi:ex:A;1")).unwrap(), A);

        folder.delete(&id("dtmi:ex:B;1")).unwrap();
        assert_eq!(
            folder.delete(&id("dtmi:ex:B;1")).unwrap_err().code,
            ErrorCode::ResourceNotFound
        );
        assert!(matches!(
            folder.load(&id("dtmi:ex:A;1")),
            Err(ModelFailure::Faults(_))
        ));
        assert!(matches!(
            folder.load(&id("dtmi:ex:B;1")),
            Err(ModelFailure::Error(_))
        ));
    }

    #[test]
    fn files_that_are_no_models_are_named_when_used() {
        let dir = tempfile::tempdir().unwrap();
        let folder = ModelFolder::new(dir.path().to_owned());
        let place = dir.path().join("dtmi/ex");
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join("a-1.json"), B).unwrap();
        fs::write(place.join("c-1.json"), [0xff, 0xfe]).unwrap();
        fs::write(place.join("d-1.json"), vec![b' '; 2 << 20]).unwrap();
        fs::write(place.join("notes.txt"), "x").unwrap();
        std::os::unix::fs::symlink(dir.path(), place.join("circle")).unwrap();
        let fault = |text| match folder.load(&id(text)) {
            Err(ModelFailure::Faults(faults)) => faults[0].to_string(),
            other => panic!("{other:?}"),
        };
        assert!(fault("dtmi:ex:A;1").contains("defines dtmi:ex:B;1"));
        assert!(fault("dtmi:ex:C;1").contains("not JSON"));
        assert!(fault("dtmi:ex:D;1").contains("at most"));
        assert_eq!(folder.list().unwrap().len(), 1);
    }
}
