//! Where in a file a key stands, for errors that are found after it has been read.

use holdfast_program::failure::Failure;
use toml::de::{DeTable, DeValue};

/// Puts the line into an error that begins with `name: key`, when the key or its section stands in the file.
pub(super) fn locate(text: &str, name: &str, mut failure: Failure) -> Failure {
    let line = failure
        .message
        .strip_prefix(name)
        .and_then(|rest| rest.strip_prefix(": "))
        .and_then(|rest| line_of(text, rest));
    if let Some(line) = line {
        let rest = failure.message.split_off(name.len());
        failure.message = format!("{name}, line {line}{rest}");
    }
    failure
}

/// Line of the key with which a sentence begins (`hub.mqtt_port = 1: …`, `upstream.retries (cloud_retries) = …`), whichever
/// of its names the file has; of its section, if that is all there is.
fn line_of(text: &str, sentence: &str) -> Option<usize> {
    let head = sentence.split(['=', ':']).next()?;
    let names = head
        .split(|letter: char| !(letter.is_ascii_alphanumeric() || "._-".contains(letter)))
        .filter(|word| !word.is_empty());
    let table = DeTable::parse(text).ok()?;
    let mut keys = Vec::new();
    gather(table.get_ref(), "", &mut keys);
    let at = |wanted: &dyn Fn(&str) -> bool| {
        let mut found = keys.iter().filter(|(path, _)| wanted(path));
        found.next().filter(|_| found.next().is_none())
    };
    for name in names {
        let ending = format!(".{name}");
        let own = name.rsplit('.').next().unwrap_or(name);
        let section = name.rsplit_once('.').map_or(name, |(section, _)| section);
        let last = format!(".{own}");
        let found = at(&|path| path == name)
            .or_else(|| at(&|path| path.ends_with(&ending)))
            .or_else(|| at(&|path| path == own || path.ends_with(&last)))
            .or_else(|| at(&|path| path == section));
        if let Some((_, offset)) = found {
            return Some(text[..*offset].matches('\n').count() + 1);
        }
    }
    None
}

/// Dotted path and offset of every key.
fn gather(table: &DeTable<'_>, above: &str, keys: &mut Vec<(String, usize)>) {
    for (key, value) in table {
        let path = match above {
            "" => key.get_ref().to_string(),
            _ => format!("{above}.{}", key.get_ref()),
        };
        if let DeValue::Table(inner) = value.get_ref() {
            gather(inner, &path, keys);
        }
        keys.push((path, key.span().start));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "hostname = \"a\"\n\n[hub]\nmqtt_port = 1\namqp_port = 1\n\n[provisioning.attestation]\nmethod = \"x\"\n";

    #[test]
    fn keys_are_found_by_path_by_their_end_and_by_their_section() {
        for (sentence, line) in [
            ("hub.amqp_port = 1: is taken", Some(5)),
            ("device.hostname = a: is not a name", Some(1)),
            ("attestation.method = x: is no method", Some(8)),
            ("hub.https_port is missing", Some(3)),
            ("upstream.retries (method) = 7: too many", Some(8)),
            ("nothing.like_that = 1: no", None),
        ] {
            assert_eq!(line_of(TEXT, sentence), line, "{sentence}");
        }
    }

    #[test]
    fn an_error_keeps_its_words_and_gets_a_line() {
        let failure = Failure::usage("file: hub.amqp_port = 1: is taken".to_owned()).hint("another");
        let failure = locate(TEXT, "file", failure);
        assert_eq!(failure.message, "file, line 5: hub.amqp_port = 1: is taken");
        assert_eq!(failure.hint.as_deref(), Some("another"));
        let other = locate(TEXT, "file", Failure::usage("the disk is full".to_owned()));
        assert_eq!(other.message, "the disk is full");
    }
}
