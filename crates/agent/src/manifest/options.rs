//! `createOptions`: container-create bodies as texts, cut in pieces (edge.md 2.3).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::fields::{Fields, kind};
use super::{ManifestError, limits};

/// Characters of a piece that is written.
const CHUNK_CHARS: usize = 512;
const NAME: &str = "createOptions";

/// Reads `createOptions`, `createOptions01`, … of a `settings` object, checks the members that the agent has to touch, and
/// returns compact JSON text of an object.
pub(super) fn read(settings: &Fields<'_>) -> Result<Box<str>, ManifestError> {
    let pieces = pieces(settings)?;
    let mut object = match pieces.as_slice() {
        [] => Map::new(),
        // Tools turn objects into texts; one that did not is understood, too.
        [Value::Object(object)] => object.clone(),
        texts => join(settings, texts)?,
    };
    spell(&mut object, &settings.path(NAME))?;
    check(&Fields::at(&object, settings.path(NAME)))?;
    serde_json::to_string(&object)
        .map(String::into_boxed_str)
        .map_err(|error| settings.wrong(NAME, error.to_string()))
}

fn pieces<'a>(settings: &Fields<'a>) -> Result<Vec<&'a Value>, ManifestError> {
    let mut pieces: BTreeMap<u32, &Value> = BTreeMap::new();
    for (key, value) in settings.entries() {
        let Some(suffix) = key
            .strip_prefix(NAME)
            .or_else(|| key.strip_prefix("createoptions"))
        else {
            continue;
        };
        if !suffix.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let number = if suffix.is_empty() { Ok(0) } else { suffix.parse() };
        let Ok(number) = number else {
            return Err(settings.wrong(key, "the number of the piece is too large"));
        };
        if pieces.insert(number, value).is_some() {
            return Err(settings.wrong(key, format!("piece {number} of createOptions appears twice")));
        }
        if pieces.len() > limits::CHUNKS_MAX {
            return Err(settings.wrong(NAME, format!("more than {} pieces", limits::CHUNKS_MAX)));
        }
    }
    Ok(pieces.into_values().collect())
}

fn join(settings: &Fields<'_>, pieces: &[&Value]) -> Result<Map<String, Value>, ManifestError> {
    let mut text = String::new();
    for piece in pieces {
        let Value::String(piece) = piece else {
            return Err(settings.wrong(NAME, format!("{} instead of a text", kind(piece))));
        };
        if text.len() + piece.len() > limits::CREATE_OPTIONS_BYTES_MAX {
            let problem = format!("longer than {} bytes", limits::CREATE_OPTIONS_BYTES_MAX);
            return Err(settings.wrong(NAME, problem));
        }
        text.push_str(piece);
    }
    if text.trim().is_empty() || text.trim() == "null" {
        return Ok(Map::new());
    }
    super::read_object(text.as_bytes()).map_err(|problem| settings.wrong(NAME, problem))
}

/// Members that the agent reads or writes, at the top and in objects there, as the engine spells them.
const OURS: &[&str] = &[
    "Env",
    "HostConfig",
    "Image",
    "Labels",
    "NetworkingConfig",
    "StopTimeout",
];
const OURS_INSIDE: &[(&str, &[&str])] = &[
    (
        "HostConfig",
        &[
            "Binds",
            "CapAdd",
            "CapDrop",
            "ExtraHosts",
            "LogConfig",
            "NetworkMode",
            "Privileged",
        ],
    ),
    ("NetworkingConfig", &["EndpointsConfig"]),
];

/// Engines take names of members in any case, and of two spellings the later one. What the agent touches has one spelling
/// only, so that neither a module loses its variables nor `hostConfig` gets past what this device allows.
fn spell(options: &mut Map<String, Value>, path: &str) -> Result<(), ManifestError> {
    respell(options, OURS, path)?;
    for (name, inside) in OURS_INSIDE {
        if let Some(Value::Object(object)) = options.get_mut(*name) {
            respell(object, inside, &format!("{path}.{name}"))?;
        }
    }
    Ok(())
}

fn respell(object: &mut Map<String, Value>, names: &[&str], path: &str) -> Result<(), ManifestError> {
    for name in names {
        let others: Vec<String> = object
            .keys()
            .filter(|key| key.as_str() != *name && is_same(key, name))
            .cloned()
            .collect();
        for other in others {
            if object.contains_key(*name) {
                let problem = format!("appears twice, also as {name}");
                return Err(ManifestError::format(format!("{path}.{other}"), problem));
            }
            let value = object.remove(&other).unwrap_or_default();
            object.insert((*name).to_owned(), value);
        }
    }
    Ok(())
}

/// Compares as the engines' JSON library does: in any case, with the two letters beyond ASCII that fold into it.
fn is_same(key: &str, name: &str) -> bool {
    let folded = key.chars().map(|letter| match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    });
    folded.eq(name.chars().map(|letter| letter.to_ascii_lowercase()))
}

/// The members that the agent adds to have to be of the right kind; all others are between the user and the engine.
fn check(options: &Fields<'_>) -> Result<(), ManifestError> {
    texts(options, "Env")?;
    options.object("Labels")?;
    if let Some(host) = options.object("HostConfig")? {
        for name in ["Binds", "ExtraHosts", "CapAdd", "CapDrop"] {
            texts(&host, name)?;
        }
        host.text("NetworkMode")?;
        host.object("LogConfig")?;
    }
    if let Some(networking) = options.object("NetworkingConfig")? {
        networking.object("EndpointsConfig")?;
    }
    Ok(())
}

fn texts(options: &Fields<'_>, name: &str) -> Result<(), ManifestError> {
    match options.get(name) {
        None => Ok(()),
        Some(Value::Array(items)) if items.iter().all(Value::is_string) => Ok(()),
        Some(_) => Err(options.wrong(name, "not an array of texts")),
    }
}

/// Cuts a text in pieces of 512 characters; at least one, possibly empty.
pub fn chunks(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        match text.char_indices().nth(CHUNK_CHARS) {
            Some((end, _)) => {
                rest = Some(&text[end..]);
                Some(&text[..end])
            }
            None => {
                rest = None;
                Some(text)
            }
        }
    })
}

/// Puts `createOptions`, `createOptions01`, … into an object.
pub fn write_chunks(settings: &mut Map<String, Value>, text: &str) {
    for (number, piece) in chunks(text).enumerate() {
        let key = if number == 0 {
            NAME.to_owned()
        } else {
            format!("{NAME}{number:02}")
        };
        settings.insert(key, Value::String(piece.to_owned()));
    }
}
