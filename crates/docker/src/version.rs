//! Which version of the Engine API is spoken.

use std::fmt;

use serde::Deserialize;

/// `1.41` as numbers, so that they compare.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct ApiVersion(pub(crate) u16, pub(crate) u16);

/// What manifests' `createOptions` were written for, and what Podman's compatible socket offers.
pub(crate) const PREFERRED: ApiVersion = ApiVersion(1, 41);
/// Older ones lack what is used here.
pub(crate) const OLDEST: ApiVersion = ApiVersion(1, 24);

impl ApiVersion {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once('.')?;
        Some(Self(major.parse().ok()?, minor.parse().ok()?))
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// Answer of `GET /version`.
#[derive(Clone, Deserialize, Debug, Default)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct VersionAnswer {
    pub(crate) version: String,
    pub(crate) api_version: String,
    #[serde(rename = "MinAPIVersion")]
    pub(crate) min_api_version: String,
    pub(crate) os: String,
    pub(crate) arch: String,
    pub(crate) components: Vec<Component>,
}

/// Part of an engine.
#[derive(Clone, Deserialize, Debug, Default)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Component {
    pub(crate) name: String,
}

/// What was agreed with the engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Agreed {
    pub(crate) version: ApiVersion,
    pub(crate) podman: bool,
}

impl VersionAnswer {
    /// The preferred version or the nearest that the engine offers.
    pub(crate) fn agree(&self) -> Result<Agreed, String> {
        let newest = ApiVersion::parse(&self.api_version)
            .ok_or_else(|| format!("it tells no API version but {:?}", self.api_version))?;
        let oldest = ApiVersion::parse(&self.min_api_version).unwrap_or(OLDEST);
        if newest < OLDEST {
            return Err(format!(
                "its API version {newest} is too old: at least {OLDEST} is needed; update the engine"
            ));
        }
        Ok(Agreed {
            version: PREFERRED.max(oldest).min(newest),
            podman: self.components.iter().any(|part| part.name.starts_with("Podman")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agree(newest: &str, oldest: &str) -> Result<String, String> {
        let answer = VersionAnswer {
            api_version: newest.to_owned(),
            min_api_version: oldest.to_owned(),
            ..VersionAnswer::default()
        };
        answer.agree().map(|agreed| agreed.version.to_string())
    }

    #[test]
    fn the_preferred_or_the_nearest() {
        assert_eq!(agree("1.41", "1.12").unwrap(), "1.41");
        assert_eq!(agree("1.48", "1.24").unwrap(), "1.41");
        assert_eq!(agree("1.52", "1.44").unwrap(), "1.44");
        assert_eq!(agree("1.40", "1.24").unwrap(), "1.40");
        assert_eq!(agree("1.30", "").unwrap(), "1.30");
        assert!(agree("1.18", "1.12").unwrap_err().contains("too old"));
        assert!(agree("", "1.12").unwrap_err().contains("no API version"));
        assert!(agree("one", "1.12").is_err());
    }

    #[test]
    fn podman_says_so() {
        let answer: VersionAnswer = serde_json::from_str(
            r#"{"Version":"4.3.1","ApiVersion":"1.41","MinAPIVersion":"1.24","Components":[{"Name":"Podman Engine"}]}"#,
        )
        .unwrap();
        assert!(answer.agree().unwrap().podman);
    }
}
