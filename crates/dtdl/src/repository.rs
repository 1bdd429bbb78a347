//! The layout of a model repository: `dtmi:com:example:Thermostat;1` lies in `dtmi/com/example/thermostat-1.json`.

use crate::dtmi::{Dtmi, Version};

/// The path of a model below the root of its repository, in lower case, parted by `/`. Ids have letters, digits and
/// underscores only, so no path leads out of the repository.
#[must_use]
pub fn path_of(id: &Dtmi) -> String {
    let mut path = String::from("dtmi");
    for segment in id.segments() {
        path.push('/');
        path.push_str(&segment.to_ascii_lowercase());
    }
    match id.version() {
        None => {}
        Some(Version { major, minor: None }) => path.push_str(&format!("-{major}")),
        Some(Version {
            major,
            minor: Some(minor),
        }) => path.push_str(&format!("-{major}.{minor}")),
    }
    path.push_str(".json");
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_follow_the_convention() {
        for (id, path) in [
            (
                "dtmi:com:Example:Thermostat;1",
                "dtmi/com/example/thermostat-1.json",
            ),
            ("dtmi:a;12.3", "dtmi/a-12.3.json"),
            (
                "dtmi:azure:DeviceManagement:DeviceInformation",
                "dtmi/azure/devicemanagement/deviceinformation.json",
            ),
        ] {
            assert_eq!(path_of(&Dtmi::parse(id).unwrap()), path);
        }
    }
}
