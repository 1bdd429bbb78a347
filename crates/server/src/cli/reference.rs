//! Reference pages made from the code: configuration, command line, error table.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Context as _;
use holdfast_model::ErrorCode;
use serde_json::Value;

use super::failure::Kind;
use crate::serve::config::Config;

const NOTICE: &str = "<!-- Made by `cargo xtask docs` from the source code. Do not edit. -->\n";

/// Writes every page below `out`, with its path in the repository.
pub(super) fn write_all(out: &Path) -> anyhow::Result<()> {
    let pages = [
        ("docs/reference/config.md", config_page()?),
        ("docs/reference/config-example.toml", config_example()?),
        ("docs/reference/cli.md", cli_page()),
        ("docs/reference/endpoints.md", endpoints_page()),
        ("docs/reference/errors.md", errors_page()),
        ("openapi/hub.json", holdfast_api::document()),
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

/// Order of the sections, the most wanted first.
const ORDER: &[&str] = &[
    "server", "hub", "mqtt", "amqp", "https", "tls", "log", "c2d", "query", "jobs", "routing", "blob",
    "files", "transfer", "observe",
];

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
        let mut keys = Vec::new();
        for (name, property) in members(&definition["properties"]) {
            keys.push(Key {
                name: name.clone(),
                kind: kind(&schema, property),
                default: defaults[section][name].clone(),
                text: one_line(property["description"].as_str()),
            });
        }
        sections.push((section.clone(), one_line(reference["description"].as_str()), keys));
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
        (Some("array"), _) => "list",
        (Some("object"), _) => "object",
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

fn toml_value(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn config_page() -> anyhow::Result<String> {
    let mut page = format!(
        "{NOTICE}\n# Configuration of `holdfast serve`\n\n\
         `holdfast serve` needs no configuration. `--config FILE` reads a TOML file with any of the keys below; a key that is \
         not listed is refused. A flag on the command line wins over the file.\n\n\
         Durations are written with a unit: `250ms`, `30s`, `5m`, `12h`, `7d`, `1h30m`. Sizes likewise: `512 KiB`, `64 MiB`, \
         `2 GiB`. [config-example.toml](config-example.toml) holds every key with its default.\n"
    );
    for (section, text, keys) in sections()? {
        let _ = write!(
            page,
            "\n## `[{section}]`\n\n{text}\n\n| Key | Value | Default | Meaning |\n|---|---|---|---|\n"
        );
        for key in keys {
            let default = match &key.default {
                Value::Null => "none".to_owned(),
                value => format!("`{}`", toml_value(value)),
            };
            let text = key.text.replace('|', "\\|");
            let _ = writeln!(page, "| `{}` | {} | {default} | {text} |", key.name, key.kind);
        }
    }
    Ok(page)
}

/// The settings of every kind of endpoint.
fn endpoints_page() -> String {
    let mut page = format!(
        "{NOTICE}\n# Settings of endpoints\n\n\
         A route takes messages to an endpoint. Each kind has settings of its own, which are given as JSON:\n\n\
         ```text\nholdfast endpoint create http alarms --set url=https://example.com/alarms\n```\n\n\
         A setting that is not listed is refused. Secrets are never shown again once they are stored.\n"
    );
    for kind in holdfast_routing::endpoints::Endpoints::reference() {
        let about = one_line(kind.schema["description"].as_str());
        let _ = write!(page, "\n## `{}`\n\n{about}\n\n", kind.name);
        settings_table(&mut page, &kind.schema, &kind.schema, &kind.defaults);
        for (name, property) in members(&kind.schema["properties"]) {
            let nested = object_of(&kind.schema, property);
            if let Some(nested) = nested {
                let about = one_line(nested["description"].as_str());
                let _ = write!(page, "\n### `{}`: `{name}`\n\n{about}\n\n", kind.name);
                settings_table(&mut page, &kind.schema, nested, &Value::Null);
            }
        }
    }
    page
}

fn settings_table(page: &mut String, schema: &Value, object: &Value, defaults: &Value) {
    page.push_str("| Setting | Value | Default | Meaning |\n|---|---|---|---|\n");
    for (name, property) in members(&object["properties"]) {
        let value = match object_of(schema, property) {
            Some(_) => "object, see below".to_owned(),
            // What may be anything has no type.
            None if property["type"].is_null()
                && property["$ref"].is_null()
                && property["anyOf"].is_null() =>
            {
                "any JSON".to_owned()
            }
            None => kind(schema, property),
        };
        let default = match defaults.get(name).unwrap_or(&property["default"]) {
            Value::Null => "none".to_owned(),
            Value::String(text) if text.is_empty() => "none".to_owned(),
            value => format!("`{value}`"),
        };
        let text = one_line(property["description"].as_str()).replace('|', "\\|");
        let _ = writeln!(page, "| `{name}` | {value} | {default} | {text} |");
    }
}

/// The definition of an object that a setting is, be it optional or not.
fn object_of<'a>(schema: &'a Value, property: &'a Value) -> Option<&'a Value> {
    let options = property["anyOf"].as_array().into_iter().flatten();
    let candidates = options
        .chain([property])
        .filter(|value| value["$ref"].is_string());
    candidates
        .map(|value| resolve(schema, value))
        .find(|value| value["properties"].is_object())
}

fn config_example() -> anyhow::Result<String> {
    let mut text = String::from(
        "# Every key of `holdfast serve --config FILE` with its default. Made by `cargo xtask docs`.\n",
    );
    for (section, about, keys) in sections()? {
        let _ = write!(text, "\n# {about}\n[{section}]\n");
        for key in keys {
            for line in wrap(&key.text, 110) {
                let _ = writeln!(text, "# {line}");
            }
            let _ = match &key.default {
                Value::Null => writeln!(text, "# {} =", key.name),
                value => writeln!(text, "{} = {}", key.name, toml_value(value)),
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
    let mut page =
        format!("{NOTICE}\n# The command line\n\n## Exit codes\n\n| Code | Meaning |\n|---|---|\n");
    for (code, meaning) in Kind::TABLE {
        let _ = writeln!(page, "| {code} | {meaning} |");
    }
    page.push_str(
        "\n## Which hub a command talks to\n\n\
         1. `--login`, or the variable `HOLDFAST_CONNECTION_STRING`;\n\
         2. `connection.env` in `--data-dir`, in `HOLDFAST_DATA_DIR`, or in `./holdfast-data`;\n\
         3. the hub that the same user started last: `serve` notes its data directory in \
         `${XDG_CONFIG_HOME:-~/.config}/holdfast/profile.env`, unless `--no-profile` or `HOLDFAST_NO_PROFILE=1` says not to.\n\n\
         Ports other than 443 and 8883, and the CA certificate, come from the same `connection.env`, or from \
         `HOLDFAST_HTTPS_PORT`, `HOLDFAST_MQTT_PORT` and `HOLDFAST_CA`.\n",
    );
    let mut command = super::command().term_width(100);
    command.build();
    describe(&mut page, &mut command, "holdfast", 2);
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

fn errors_page() -> String {
    let mut page = format!(
        "{NOTICE}\n# Errors that clients see\n\n\
         The name stands in the HTTP header `iothub-errorcode` and in the body. A number in italics is chosen by Holdfast, \
         because that of Azure is not known. CONNACK is the answer to an MQTT log-in that fails with the error.\n\n\
         | HTTP | Number | Name | CONNACK | AMQP condition |\n|---|---|---|---|---|\n"
    );
    let mut rows: Vec<_> = ErrorCode::ALL
        .iter()
        .map(|code| holdfast_wire::error::row(*code))
        .collect();
    rows.sort_by_key(|row| (row.http_status, row.number));
    for row in rows {
        let number = if row.number_verified {
            row.number.to_string()
        } else {
            format!("*{}*", row.number)
        };
        let _ = writeln!(
            page,
            "| {} | {number} | {} | {} | `{}` |",
            row.http_status, row.name, row.connack, row.amqp_condition
        );
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_the_default_configuration() {
        let example = config_example().unwrap();
        assert_eq!(
            Config::parse(&example, "example").unwrap(),
            Config::default(),
            "{example}"
        );
    }

    #[test]
    fn every_setting_of_endpoints_is_explained() {
        let page = endpoints_page();
        let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
        assert!(rows.len() > 80, "{} settings", rows.len());
        for row in rows {
            let cells: Vec<&str> = row.split(" | ").collect();
            assert!(
                cells.len() >= 4 && cells.iter().all(|cell| !cell.trim_matches(['|', ' ']).is_empty()),
                "{row}"
            );
        }
        for kind in holdfast_routing::endpoints::Endpoints::kinds() {
            assert!(
                page.contains(&format!("\n## `{kind}`\n\nSettings of the kind")),
                "{kind}"
            );
        }
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
