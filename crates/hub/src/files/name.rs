//! Names of blobs.

use holdfast_model::limits::BLOB_NAME_LEN_MAX;
use holdfast_model::{Error, Identity};

use crate::failure::invalid;

/// Most segments of a name, as the Blob service has it.
const SEGMENTS_MAX: usize = 254;

/// The name of a device's blob: its id, a slash, and what the device calls it.
///
/// # Errors
/// `ArgumentInvalid` for what no blob can be called, or what HTTP clients would make another name of.
pub(super) fn of_blob(device: &Identity, name: &str) -> Result<String, Error> {
    let full = format!("{}/{name}", device.device_id());
    let why = if name.is_empty() {
        "it is empty"
    } else if full.chars().count() > BLOB_NAME_LEN_MAX {
        "it has more than 1,024 characters, device id included"
    } else if name.chars().any(char::is_control) {
        "it holds a control character"
    } else if name.split('/').any(|segment| matches!(segment, "." | "..")) {
        "a segment of it is . or .., which HTTP clients take out of addresses"
    } else if full.split('/').count() > SEGMENTS_MAX {
        "it has more than 254 segments"
    } else {
        return Ok(full);
    };
    Err(invalid(format!("the file cannot have this blobName: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_are_called_by_device_and_file() {
        let device = Identity::device("d1").expect("an id");
        for name in [
            "x",
            "logs/2026/a b.txt",
            "ü\u{1f600}",
            "a#b?c%d",
            "..x",
            &"n".repeat(1_021),
        ] {
            assert_eq!(of_blob(&device, name), Ok(format!("d1/{name}")));
        }
        for name in [
            "",
            "a\0b",
            "a\nb",
            "..",
            "a/../b",
            "./a",
            &"n".repeat(1_022),
            &"a/".repeat(254),
        ] {
            assert!(of_blob(&device, name).is_err(), "{name}");
        }
    }
}
