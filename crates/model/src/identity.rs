//! Names of devices and modules.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, ErrorCode};
use crate::limits;

/// A device (`device`) or a module (`device/module`), cheap to clone.
///
/// The character set of ids excludes `/`, so the joined text is unambiguous; it is also the key under which
/// stores keep everything that belongs to the identity. Ids are case-sensitive.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity(Arc<str>);

impl Identity {
    /// A device identity.
    ///
    /// # Errors
    /// [`ErrorCode::ArgumentInvalid`] when the id is empty, too long, or has a character outside the set of
    /// rest.md 5.1.
    pub fn device(device_id: &str) -> Result<Self, Error> {
        check_id("device", device_id)?;
        Ok(Identity(device_id.into()))
    }

    /// A module identity.
    ///
    /// # Errors
    /// As [`Identity::device`], for either id.
    pub fn module(device_id: &str, module_id: &str) -> Result<Self, Error> {
        check_id("device", device_id)?;
        check_id("module", module_id)?;
        Ok(Identity(format!("{device_id}/{module_id}").into()))
    }

    /// A device when `module_id` is `None`, else a module.
    ///
    /// # Errors
    /// As [`Identity::device`].
    pub fn new(device_id: &str, module_id: Option<&str>) -> Result<Self, Error> {
        match module_id {
            None => Self::device(device_id),
            Some(module_id) => Self::module(device_id, module_id),
        }
    }

    /// Parses `device` or `device/module`, the form stores keep.
    ///
    /// # Errors
    /// As [`Identity::device`].
    pub fn parse(key: &str) -> Result<Self, Error> {
        match key.split_once('/') {
            None => Self::device(key),
            Some((device_id, module_id)) => Self::module(device_id, module_id),
        }
    }

    /// The whole key: `device` or `device/module`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The device id.
    #[must_use]
    pub fn device_id(&self) -> &str {
        self.0
            .split_once('/')
            .map_or(&*self.0, |(device_id, _)| device_id)
    }

    /// The module id, for a module.
    #[must_use]
    pub fn module_id(&self) -> Option<&str> {
        self.0.split_once('/').map(|(_, module_id)| module_id)
    }

    /// Whether this is a module identity.
    #[must_use]
    pub fn is_module(&self) -> bool {
        self.module_id().is_some()
    }

    /// The identity of the device that this identity is, or is a module of.
    #[must_use]
    pub fn owner(&self) -> Identity {
        if self.is_module() {
            Identity(self.device_id().into())
        } else {
            self.clone()
        }
    }

    /// Whether this is one of the reserved edge modules (`$edgeAgent`, `$edgeHub`).
    #[must_use]
    pub fn is_system_module(&self) -> bool {
        matches!(self.module_id(), Some("$edgeAgent" | "$edgeHub"))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn check_id(kind: &str, id: &str) -> Result<(), Error> {
    if id.is_empty() || id.len() > limits::ID_LEN_MAX {
        return Err(Error::new(
            ErrorCode::ArgumentInvalid,
            format!("{kind} id must have 1 to {} characters", limits::ID_LEN_MAX),
        ));
    }
    match id.bytes().find(|byte| !is_id_byte(*byte)) {
        None => Ok(()),
        Some(byte) => Err(Error::new(
            ErrorCode::ArgumentInvalid,
            format!(
                "{kind} id has the character {:?}; allowed are A-Z a-z 0-9 and -:.+%_#*?!(),=@;$'",
                char::from(byte)
            ),
        )),
    }
}

/// The characters of rest.md 5.1.
const fn is_id_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'-' | b':'
                | b'.'
                | b'+'
                | b'%'
                | b'_'
                | b'#'
                | b'*'
                | b'?'
                | b'!'
                | b'('
                | b')'
                | b','
                | b'='
                | b'@'
                | b';'
                | b'$'
                | b'\''
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_checked() {
        assert!(Identity::device("line-4:press.2+%_#*?!(),=@;$'").is_ok());
        for bad in ["", "a/b", "a b", "ä", &"x".repeat(129)] {
            assert!(Identity::device(bad).is_err(), "{bad:?} must be refused");
        }
        let module = Identity::parse("d1/$edgeHub").expect("a module");
        assert_eq!((module.device_id(), module.module_id()), ("d1", Some("$edgeHub")));
        assert!(module.is_system_module());
        assert_eq!(module.owner().as_str(), "d1");
    }
}
