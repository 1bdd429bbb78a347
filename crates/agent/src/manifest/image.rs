//! Names of images, and whose credentials they are pulled with (edge.md 2.2, 2.5).

use super::{ManifestError, limits};
use crate::runtime::RegistryAuth;

/// Docker Hub by its legacy name, under which credentials for it are kept.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// An entry of `registryCredentials`.
#[derive(Clone, PartialEq, Eq)]
pub struct Registry {
    /// Free name in the manifest.
    pub name: String,
    /// Host, `$upstream` replaced.
    pub address: String,
    /// User.
    pub username: String,
    /// Password. Never printed.
    pub password: String,
}

impl Registry {
    /// For the engine.
    #[must_use]
    pub fn auth(&self) -> RegistryAuth {
        RegistryAuth {
            server_address: self.address.clone(),
            username: self.username.clone(),
            password: self.password.clone(),
        }
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Registry({}: {} at {})",
            self.name, self.username, self.address
        )
    }
}

/// Registry of an image: the part before the first `/` if it has a `.` or a `:`; Docker Hub for another image with a `/`;
/// `None` for an image without `/`, which is pulled without credentials.
#[must_use]
pub fn registry_of(image: &str) -> Option<&str> {
    let (first, _) = image.split_once('/')?;
    Some(if first.contains(['.', ':']) {
        first
    } else {
        DOCKER_HUB
    })
}

/// Credentials for an image: the first entry whose address is its registry.
pub(crate) fn credentials<'a>(
    image: &str,
    registries: impl Iterator<Item = &'a Registry>,
) -> Option<RegistryAuth> {
    let registry = registry_of(image)?;
    registries
        .into_iter()
        .find(|entry| {
            entry.address.eq_ignore_ascii_case(registry)
                || (registry == DOCKER_HUB
                    && ["docker.io", "index.docker.io"]
                        .iter()
                        .any(|name| entry.address.eq_ignore_ascii_case(name)))
        })
        .map(Registry::auth)
}

/// Checks an image name, replaces `$upstream:<port>` and adds `:latest` when it has neither tag nor digest.
pub(super) fn normalise(text: &str, field: &str, parent: Option<&str>) -> Result<String, ManifestError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(ManifestError::format(field, "missing"));
    }
    if text.len() > limits::IMAGE_MAX {
        let problem = format!("longer than {} characters", limits::IMAGE_MAX);
        return Err(ManifestError::format(field, problem));
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(ManifestError::format(
            field,
            "an image name has no spaces or control characters",
        ));
    }
    let mut image = upstream(text, field, parent)?;
    let last = image.rsplit('/').next().unwrap_or_default();
    let (name, tag) = match last.split_once([':', '@']) {
        Some((name, tag)) => (name, Some(tag)),
        None => (last, None),
    };
    if name.is_empty() || tag == Some("") {
        let problem = format!("{text:?} is not an image name: [repository/]image[:tag]");
        return Err(ManifestError::format(field, problem));
    }
    if tag.is_none() {
        image.push_str(":latest");
    }
    Ok(image)
}

/// Replaces a leading `$upstream:<port>` by the parent's host name.
pub(super) fn upstream(text: &str, field: &str, parent: Option<&str>) -> Result<String, ManifestError> {
    let Some(rest) = text.strip_prefix("$upstream") else {
        return Ok(text.to_owned());
    };
    let port = rest
        .strip_prefix(':')
        .map(|rest| rest.split('/').next().unwrap_or_default());
    let Some(port) = port.filter(|port| !port.starts_with('0') && port.parse::<u16>().is_ok()) else {
        let problem = format!("{text:?}: write the port, as in $upstream:443/image");
        return Err(ManifestError::format(field, problem));
    };
    let Some(parent) = parent else {
        let problem = format!("{text:?}, but this device has no parent (parent_hostname)");
        return Err(ManifestError::format(field, problem));
    };
    let path = &rest[1 + port.len()..];
    Ok(format!("{parent}:{port}{path}"))
}
