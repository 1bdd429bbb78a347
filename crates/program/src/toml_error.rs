//! What is wrong in a configuration file, so that it can be found and corrected: file, line, key, remedy.

use crate::failure::Failure;

/// A configuration file and how to speak of it.
pub struct Source<'a> {
    /// Name of the file, as the operator gave it.
    pub name: &'a str,
    /// What stands in it.
    pub text: &'a str,
    /// The page that explains every key, such as `docs/reference/config.md`.
    pub reference: &'a str,
    /// Whether the values of the file may be told; not in a file that may hold secrets.
    pub show_values: bool,
}

impl Source<'_> {
    /// Turns a parser's error into one that names line, key and remedy.
    #[must_use]
    pub fn describe(&self, error: &toml::de::Error) -> Failure {
        let text = self.text;
        let at = error.span().map_or(0, |span| span.start).min(text.len());
        let line_start = text[..at].rfind('\n').map_or(0, |index| index + 1);
        let number = text[..line_start].matches('\n').count() + 1;
        let whole_line = text[line_start..].lines().next().unwrap_or_default();
        // The line itself counts: an unknown section is told at its own header.
        let section = text[..line_start + whole_line.len()]
            .lines()
            .rev()
            .find_map(|line| line.trim().strip_prefix('[')?.split(']').next())
            .map(|section| section.trim_start_matches('['));
        let line = whole_line.trim();
        let place = match (line.split_once('='), section) {
            (Some((key, value)), section) => {
                let section = section.map_or(String::new(), |section| format!("{section}."));
                let value = match self.show_values {
                    true => format!(" = {}", value.trim()),
                    false => String::new(),
                };
                format!("{section}{}{value}", key.trim())
            }
            (None, Some(section)) => format!("[{section}]"),
            (None, None) if self.show_values => line.to_owned(),
            (None, None) => "before the first section".to_owned(),
        };
        let message = error.message();
        let remedy = if message.starts_with("unknown field") {
            format!(
                "remove it or correct its name; {} lists every key",
                self.reference
            )
        } else {
            format!(
                "correct it; {} lists every key with its type and default",
                self.reference
            )
        };
        Failure::usage(format!("{}, line {number}: {place}: {message}", self.name)).hint(remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize, Debug, Default)]
    #[serde(deny_unknown_fields, default)]
    struct File {
        mqtt: Head,
        routes: Vec<Head>,
    }

    #[derive(serde::Deserialize, Debug, Default)]
    #[serde(deny_unknown_fields, default)]
    struct Head {
        port: u16,
    }

    fn describe(text: &str, show_values: bool) -> Failure {
        let error = toml::from_str::<File>(text).unwrap_err();
        Source {
            name: "file.toml",
            text,
            reference: "docs/page.md",
            show_values,
        }
        .describe(&error)
    }

    #[test]
    fn line_key_and_remedy_are_named() {
        let failure = describe("[mqtt]\nport = 1\nprot = 2\n", true);
        assert!(
            failure
                .message
                .starts_with("file.toml, line 3: mqtt.prot = 2: unknown field `prot`"),
            "{failure}"
        );
        assert_eq!(
            failure.hint.as_deref(),
            Some("remove it or correct its name; docs/page.md lists every key")
        );
        let failure = describe("[mqt]\n", true);
        assert!(
            failure
                .message
                .starts_with("file.toml, line 1: [mqt]: unknown field"),
            "{failure}"
        );
        assert!(
            describe("[[routes]]\nprot = 1\n", true)
                .message
                .contains("line 2: routes.prot = 1: ")
        );
    }

    #[test]
    fn values_stay_where_they_are_when_they_may_be_secrets() {
        let failure = describe("[mqtt]\nprot = \"topsecret\"\n", false);
        assert!(
            failure.message.starts_with("file.toml, line 2: mqtt.prot: "),
            "{failure}"
        );
        // Not even of a line that is no key, such as the rest of a value.
        for text in ["topsecret\n", "[mqtt]\ntopsecret\n"] {
            let failure = describe(text, false);
            assert!(!failure.message.contains("topsecret"), "{failure}");
        }
    }
}
