//! Reference pages made from the code: configuration and command line.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Context as _;
use serde_json::Value;

use super::own::Config;
use crate::failure::Kind;

const NOTICE: &str = "<!-- Made by `cargo xtask docs` from the source code. Do not edit. -->\n";

/// Order of the sections, the most wanted first.
const ORDER: &[&str] = &[
    "device",
    "provisioning",
    "upstream",
    "hub",
    "certificates",
    "engine",
    "agent",
    "images",
    "api",
    "observe",
];

/// Writes every page below `out`, with its path in the repository.
///
/// # Errors
/// When a file cannot be written.
pub fn write_all(out: &Path) -> anyhow::Result<()> {
    let pages = [
        ("docs/reference/edge-config.md", config_page()?),
        ("docs/reference/edge-config-example.toml", example()?),
        ("docs/reference/edge-cli.md", cli_page()),
    ];
    for (name, text) in pages {
        let path = out.join(name);
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// One key of the configuration.
struct Key {
    name: String,
    kind: String,
    default: Value,
    text: String,
}

/// The sections with their text and keys, from the schema of [`Config`].
fn sections() -> anyhow::Result<Vec<(String, String, Vec<Key>)>> {
    let schema = serde_json::to_value(schemars::schema_for!(Config))?;
    let defaults = serde_json::to_value(Config::default())?;
    let mut sections = Vec::new();
    for (section, reference) in members(&schema["properties"]) {
        let definition = resolve(&schema, reference);
        let keys = members(&definition["properties"]).map(|(name, property)| Key {
            name: name.clone(),
            kind: kind(&schema, property),
            default: defaults[section][name].clone(),
            text: one_line(property["description"].as_str()),
        });
        sections.push((
            section.clone(),
            one_line(reference["description"].as_str()),
            keys.collect::<Vec<_>>(),
        ));
    }
    // The schema's own order is alphabetical.
    sections.sort_by_key(|(section, ..)| ORDER.iter().position(|known| known == section));
    Ok(sections)
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn resolve<'a>(schema: &'a Value, value: &'a Value) -> &'a Value {
    let target = value["$ref"]
        .as_str()
        .and_then(|path| schema.pointer(path.strip_prefix('#')?));
    target.unwrap_or(value)
}

/// What a value looks like, in words.
fn kind(schema: &Value, property: &Value) -> String {
    if let Some(options) = property["anyOf"].as_array() {
        let kinds = options.iter().filter(|option| option["type"] != "null");
        return kinds
            .map(|option| kind(schema, option))
            .collect::<Vec<_>>()
            .join(" or ");
    }
    if let Some(path) = property["$ref"].as_str() {
        let target = resolve(schema, property);
        if let Some(options) = target["oneOf"].as_array() {
            let values = options.iter().filter_map(|option| option["const"].as_str());
            return values
                .map(|value| format!("`\"{value}\"`"))
                .collect::<Vec<_>>()
                .join(" or ");
        }
        return path.rsplit('/').next().unwrap_or_default().to_owned();
    }
    let name = |value: &Value| match (value.as_str(), property["format"].as_str()) {
        (Some("string"), Some("ip")) => "IP address",
        (Some("string"), _) => "text",
        (Some("integer"), _) => "number",
        (Some("boolean"), _) => "`true` or `false`",
        (Some("object"), _) => "table",
        _ => "",
    };
    match &property["type"] {
        Value::Array(kinds) => kinds
            .iter()
            .map(name)
            .filter(|kind| !kind.is_empty())
            .collect::<Vec<_>>()
            .join(" or "),
        one if *one == "array" => format!("list of {}", kind(schema, &property["items"])),
        one => name(one).to_owned(),
    }
}

fn one_line(text: Option<&str>) -> String {
    text.unwrap_or_default()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

/// A default as it stands in a file.
fn written(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Object(members) if members.is_empty() => "{}".to_owned(),
        other => other.to_string(),
    }
}

fn config_page() -> anyhow::Result<String> {
    let mut page = format!(
        "{NOTICE}\n# Configuration of `holdfast-edge`\n\n\
         The daemon reads `--config FILE`, else the variable `HOLDFAST_EDGE_CONFIG`, else `/etc/holdfast/edge.toml`, else \
         `/etc/aziot/config.toml`. A file of the original runtime (it has `source` in `[provisioning]`) is understood as it \
         is; keys in it that do nothing here are named in warnings, and a table `[holdfast]` in it may hold `home`, `rollback`, \
         `rollback_after` and the tables `hub`, `upstream` and `observe` of this page.\n\n\
         In a file of this kind only `[provisioning]` is needed, and a key that is not listed is refused. Flags of `run` win over \
         the file. `holdfast-edge config check` tells what is wrong.\n\n\
         Durations are written with a unit: `250ms`, `30s`, `5m`, `12h`, `7d`, `1h30m`. \
         [edge-config-example.toml](edge-config-example.toml) holds every key with its default.\n"
    );
    for (section, text, keys) in sections()? {
        let _ = write!(
            page,
            "\n## `[{section}]`\n\n{text}\n\n| Key | Value | Default | Meaning |\n|---|---|---|---|\n"
        );
        for key in keys {
            let default = match &key.default {
                Value::Null => "none".to_owned(),
                value => format!("`{}`", written(value)),
            };
            let text = key.text.replace('|', "\\|");
            let _ = writeln!(page, "| `{}` | {} | {default} | {text} |", key.name, key.kind);
        }
    }
    Ok(page)
}

fn example() -> anyhow::Result<String> {
    let mut text =
        String::from("# Every key of holdfast-edge with its default. Made by `cargo xtask docs`.\n");
    for (section, about, keys) in sections()? {
        let _ = write!(text, "\n# {about}\n[{section}]\n");
        for key in keys {
            for line in wrap(&key.text, 110) {
                let _ = writeln!(text, "# {line}");
            }
            let _ = match &key.default {
                Value::Null => writeln!(text, "# {} =", key.name),
                value => writeln!(text, "{} = {}", key.name, written(value)),
            };
        }
    }
    Ok(text)
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let mut last = lines.pop().unwrap_or_default();
        if !last.is_empty() && last.len() + 1 + word.len() > width {
            lines.push(last);
            last = String::new();
        } else if !last.is_empty() {
            last.push(' ');
        }
        last.push_str(word);
        lines.push(last);
    }
    lines
}

fn cli_page() -> String {
    let mut page = format!(
        "{NOTICE}\n# The command line of `holdfast-edge`\n\n## Exit codes\n\n| Code | Meaning |\n|---|---|\n"
    );
    for (code, meaning) in Kind::TABLE {
        let _ = writeln!(page, "| {code} | {meaning} |");
    }
    let mut command = crate::commands::command().term_width(100);
    command.build();
    describe(&mut page, &mut command, "holdfast-edge", 2);
    page
}

fn describe(page: &mut String, command: &mut clap::Command, path: &str, level: usize) {
    let help = command.render_help().to_string();
    let mut in_global = false;
    let lines = help.lines().map(str::trim_end).filter(|line| {
        // Printed once, for the program itself.
        if level > 2 && !line.is_empty() && !line.starts_with(' ') {
            in_global = *line == "Global options:";
        }
        !in_global
    });
    let lines: Vec<&str> = lines.collect();
    let _ = write!(
        page,
        "\n{} {path}\n\n```text\n{}\n```\n",
        "#".repeat(level),
        lines.join("\n").trim()
    );
    let names: Vec<String> = command
        .get_subcommands()
        .filter(|child| !child.is_hide_set() && child.get_name() != "help")
        .map(|child| child.get_name().to_owned())
        .collect();
    for name in names {
        if let Some(child) = command.find_subcommand_mut(&name) {
            describe(page, child, &format!("{path} {name}"), (level + 1).min(4));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_the_default_configuration() {
        let example = example().unwrap();
        assert_eq!(
            toml::from_str::<Config>(&example).unwrap(),
            Config::default(),
            "{example}"
        );
    }

    #[test]
    fn every_key_is_explained() {
        for (section, text, keys) in sections().unwrap() {
            assert!(
                !text.is_empty() && ORDER.contains(&section.as_str()),
                "[{section}]"
            );
            for key in keys {
                assert!(
                    !key.text.is_empty() && !key.kind.is_empty(),
                    "{section}.{}",
                    key.name
                );
            }
        }
    }
}
