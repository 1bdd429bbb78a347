//! Pages of a small configuration and a small command line.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;

use super::*;
use crate::logging::LogSection;
use crate::units::{Size, Span};

/// Everything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// Numbers of
    /// all kinds.
    numbers: Numbers,
    /// Logs.
    observe: LogSection,
    /// What nobody says anything about.
    bare: Bare,
}

/// Numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Numbers {
    /// How long, a | b.
    wait: Span,
    /// How much, if at all.
    size: Option<Size>,
    /// Where.
    listen: Vec<IpAddr>,
    /// Names of names.
    env: BTreeMap<String, String>,
    /// How often.
    retries: Option<u32>,
}

impl Default for Numbers {
    fn default() -> Self {
        Numbers {
            wait: Span::seconds(90),
            size: None,
            listen: Vec::new(),
            env: BTreeMap::new(),
            retries: Some(3),
        }
    }
}

/// Nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Bare {
    key: bool,
}

const ORDER: &[&str] = &["observe", "numbers"];

fn configuration() -> Configuration {
    Configuration::of::<Config>(ORDER).unwrap()
}

#[test]
fn a_page_holds_every_key_with_kind_and_default() {
    let page = configuration().page("# Title\n");
    assert!(page.starts_with(&format!("{NOTICE}\n# Title\n")), "{page}");
    for row in [
        "\n## `[numbers]`\n\nNumbers of all kinds.\n",
        "| `wait` | duration | `\"1m30s\"` | How long, a \\| b. |",
        "| `size` | size | none | How much, if at all. |",
        "| `listen` | list of IP address | `[]` | Where. |",
        "| `env` | table | `{}` | Names of names. |",
        "| `retries` | number | `3` | How often. |",
        "| `format` | `\"text\"` or `\"json\"` | `\"text\"` |",
    ] {
        assert!(page.contains(row), "{row} in {page}");
    }
    // The order given, and not that of the alphabet.
    assert!(page.find("[observe]") < page.find("[numbers]"), "{page}");
}

#[test]
fn the_example_is_the_default() {
    let example = configuration().example("Every key.");
    assert!(
        example.starts_with("# Every key. Made by `cargo xtask docs`.\n"),
        "{example}"
    );
    assert!(example.contains("\n# size =\n"), "{example}");
    let mut expected = Config::default();
    assert_eq!(toml::from_str::<Config>(&example).unwrap(), expected, "{example}");
    let other = example.replace("\"1m30s\"", "\"2m\"");
    expected.numbers.wait = Span::seconds(120);
    assert_eq!(toml::from_str::<Config>(&other).unwrap(), expected, "{other}");
}

#[test]
fn what_is_not_explained_is_found() {
    assert_eq!(configuration().unexplained(ORDER), ["[bare]", "bare.key"]);
}

#[test]
fn long_texts_are_broken_between_words() {
    assert_eq!(wrap("one two three", 7), ["one two", "three"]);
    assert_eq!(wrap("incomprehensible", 7), ["incomprehensible"]);
}

#[test]
fn commands_that_are_shown_are_described_with_global_options_once() {
    let command = clap::Command::new("tool")
        .arg(
            clap::Arg::new("login")
                .long("login")
                .global(true)
                .help_heading("Global options"),
        )
        .subcommand(clap::Command::new("list").about("What there is"))
        .subcommand(clap::Command::new("internal").hide(true));
    let page = command_line("Tool", &[(0, "done"), (3, "not found")], "\nMore.\n", command);
    assert!(page.contains("# Tool\n\n## Exit codes\n\n| Code | Meaning |\n|---|---|\n| 0 | done |\n| 3 | not found |\n\nMore.\n"), "{page}");
    assert!(
        page.contains("\n## tool\n") && page.contains("\n### tool list\n\n```text\nWhat there is\n"),
        "{page}"
    );
    assert_eq!(page.matches("Global options:").count(), 1, "{page}");
    assert!(!page.contains("tool internal"), "{page}");
}

#[test]
fn pages_are_written_where_they_belong() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[("docs/reference/a.md", "text".to_owned())]).unwrap();
    assert_eq!(
        fs::read_to_string(dir.path().join("docs/reference/a.md")).unwrap(),
        "text"
    );
}
