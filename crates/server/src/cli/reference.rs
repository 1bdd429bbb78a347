//! Reference pages made from the code: configuration, command line, settings of endpoints, error table.

use std::fmt::Write as _;
use std::path::Path;

use holdfast_model::ErrorCode;
use holdfast_program::reference::schema::{Notation, kind, members, one_line, resolve};
use holdfast_program::reference::{self, Configuration, NOTICE};
use serde_json::Value;

use crate::serve::config::Config;

/// Order of the sections, the most wanted first.
const ORDER: &[&str] = &[
    "server", "hub", "mqtt", "amqp", "https", "tls", "log", "c2d", "query", "jobs", "routing", "blob",
    "files", "transfer", "observe",
];

/// What `holdfast_program::failure::Kind` means here.
const EXIT_CODES: &[(u8, &str)] = &[
    (0, "done"),
    (1, "failed for another reason"),
    (2, "the command line or a configuration value is wrong"),
    (3, "the device, module or other resource does not exist"),
    (
        4,
        "the hub did not accept the credential, or the policy lacks the right",
    ),
    (5, "it exists already, or it changed meanwhile (entity tag)"),
    (
        6,
        "the hub cannot be reached, is busy, or the device is not online or did not answer",
    ),
    (
        7,
        "`serve`: a file of the data directory cannot be used, or the event log had failed (a full disk, for example) \
         before the hub was stopped; everything acknowledged is kept",
    ),
];

/// Writes every page below `out`, with its path in the repository.
pub(super) fn write_all(out: &Path) -> anyhow::Result<()> {
    let configuration = Configuration::of::<Config>(ORDER)?;
    let pages = [
        ("docs/reference/config.md", config_page(&configuration)),
        (
            "docs/reference/config-example.toml",
            config_example(&configuration),
        ),
        ("docs/reference/cli.md", cli_page()),
        ("docs/reference/endpoints.md", endpoints_page()),
        ("docs/reference/errors.md", errors_page()),
        ("openapi/hub.json", holdfast_api::document()),
    ];
    reference::write(out, &pages)
}

fn config_page(configuration: &Configuration) -> String {
    configuration.page(
        "# Configuration of `holdfast serve`\n\n\
         `holdfast serve` needs no configuration. `--config FILE` reads a TOML file with any of the keys below; a key that is \
         not listed is refused. A flag on the command line wins over the file.\n\n\
         Durations are written with a unit: `250ms`, `30s`, `5m`, `12h`, `7d`, `1h30m`. Sizes likewise: `512 KiB`, `64 MiB`, \
         `2 GiB`. [config-example.toml](config-example.toml) holds every key with its default.\n",
    )
}

fn config_example(configuration: &Configuration) -> String {
    configuration.example("Every key of `holdfast serve --config FILE` with its default.")
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
            None => kind(schema, property, Notation::Json),
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

fn cli_page() -> String {
    let which_hub = "\n## Which hub a command talks to\n\n\
         1. `--login`, or the variable `HOLDFAST_CONNECTION_STRING`;\n\
         2. `connection.env` in `--data-dir`, in `HOLDFAST_DATA_DIR`, or in `./holdfast-data`;\n\
         3. the hub that the same user started last: `serve` notes its data directory in \
         `${XDG_CONFIG_HOME:-~/.config}/holdfast/profile.env`, unless `--no-profile` or `HOLDFAST_NO_PROFILE=1` says not to.\n\n\
         Ports other than 443 and 8883, and the CA certificate, come from the same `connection.env`, or from \
         `HOLDFAST_HTTPS_PORT`, `HOLDFAST_MQTT_PORT` and `HOLDFAST_CA`.\n";
    reference::command_line("The command line", EXIT_CODES, which_hub, super::command())
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
        let example = config_example(&Configuration::of::<Config>(ORDER).unwrap());
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
        let configuration = Configuration::of::<Config>(ORDER).unwrap();
        assert_eq!(configuration.unexplained(ORDER), [""; 0]);
    }
}
