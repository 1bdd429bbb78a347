//! Arguments that hold JSON, files or properties.

use std::io::Read as _;

use serde_json::Value;

use holdfast_program::failure::Failure;

/// The text of an argument: itself, of a file as `@FILE`, or of standard input as `-`.
pub(crate) fn text(argument: &str) -> anyhow::Result<String> {
    if argument == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        return Ok(text);
    }
    match argument.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|error| Failure::usage(format!("cannot read the file {path}: {error}")).into()),
        None => Ok(argument.to_owned()),
    }
}

/// A JSON argument, in one of the ways of [`text`].
pub(crate) fn json(name: &str, argument: &str) -> anyhow::Result<Value> {
    let text = text(argument)?;
    // Editors of other systems begin files with a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    serde_json::from_str(text).map_err(|error| {
        let failure = match argument.strip_prefix('@') {
            Some(path) => Failure::usage(format!("{name}: the file {path} is not JSON: {error}"))
                .hint("correct the file; JSON has no comments, and no comma after the last member"),
            None => Failure::usage(format!("{name} is not JSON: {error}")).hint(
                "quote JSON for the shell, for example '{\"interval\":5}', or name a file as @file.json",
            ),
        };
        failure.into()
    })
}

/// A JSON argument that must be an object.
pub(crate) fn object(name: &str, argument: &str) -> anyhow::Result<Value> {
    let value = json(name, argument)?;
    if value.is_object() {
        return Ok(value);
    }
    Err(Failure::usage(format!(
        "{name} must be a JSON object, such as {{\"interval\":5}}"
    ))
    .into())
}

/// `key=value`, for clap.
pub(crate) fn property(argument: &str) -> Result<(String, String), String> {
    match argument.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("must be of the form key=value".to_owned()),
    }
}
