//! `holdfast endpoint`.

use clap::Subcommand;
use holdfast_program::failure::Failure;
use serde_json::{Map, Value, json};

use super::client::{Client, segment};
use super::output::Format;
use super::{Global, input};

const ROOT: &str = "/holdfast/v1/routing/endpoints";

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Create an endpoint, or change its settings
    #[command(
        after_help = "An unknown setting is refused with the names that there are. A value is taken as JSON if it is JSON, else as text; a name with dots leads into an object.\n\nExamples:\n  holdfast endpoint create http alarms --set url=https://example.com/alarms\n  holdfast endpoint create http alarms --set url=https://example.com/alarms --set headers.x-api-key=abc\n  holdfast endpoint create http alarms --settings @alarms.json"
    )]
    Create {
        /// Kind of endpoint, such as http
        kind: String,
        /// Name of the endpoint
        name: String,
        /// Settings as a JSON object, @FILE or - for standard input
        #[arg(long, value_name = "JSON")]
        settings: Option<String>,
        /// One setting; can be given several times
        #[arg(long = "set", short, value_name = "NAME=VALUE", value_parser = input::property)]
        set: Vec<(String, String)>,
    },
    /// List endpoints
    List,
    /// Show an endpoint, without its secrets
    Show {
        /// Name of the endpoint
        name: String,
    },
    /// Tell how endpoints are doing
    #[command(
        after_help = "Examples:\n  holdfast endpoint health\n  holdfast endpoint health alarms --output json"
    )]
    Health {
        /// Only this endpoint
        name: Option<String>,
    },
    /// Delete an endpoint that no route and no enrichment names
    Delete {
        /// Name of the endpoint
        name: String,
    },
    /// List, clear or put back what an endpoint did not take
    #[command(
        name = "dead-letters",
        after_help = "Examples:\n  holdfast endpoint dead-letters alarms --top 10 --output json\n  holdfast endpoint dead-letters alarms --replay     put them back at the end, oldest first\n  holdfast endpoint dead-letters alarms --clear"
    )]
    DeadLetters {
        /// Name of the endpoint
        name: String,
        /// List at most so many, newest first
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1_000))]
        top: u16,
        /// Put all of them back: they are delivered again, and their letters removed
        #[arg(long, conflicts_with = "clear")]
        replay: bool,
        /// Forget all of them
        #[arg(long)]
        clear: bool,
    },
}

impl Command {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let output = global.output();
        let path = |name: &str| format!("{ROOT}/{}", segment(name));
        match self {
            Command::Create {
                kind,
                name,
                settings,
                set,
            } => {
                let settings = combined(settings.as_deref(), &set)?;
                let body = json!({"type": kind, "settings": settings});
                let made = client.put(path(&name)).json(body).send()?;
                output.outcome(&format!("endpoint {name} is set up"), &made)
            }
            Command::List => {
                let all = list(&client, ROOT)?;
                output.list(
                    &all,
                    &[("name", "/name"), ("type", "/type"), ("created", "/createdAt")],
                )
            }
            Command::Show { name } => output.object(&client.get(path(&name)).send()?),
            Command::Health { name } => health(&client, output, name.as_deref()),
            Command::Delete { name } => {
                client.delete(path(&name)).send()?;
                output.outcome(
                    &format!("endpoint {name} deleted"),
                    &json!({"name": name, "deleted": true}),
                )
            }
            Command::DeadLetters {
                name,
                top,
                replay,
                clear,
            } => {
                let letters = format!("{}/deadLetters", path(&name));
                match (replay, clear) {
                    (true, _) => {
                        let done = client.post(format!("{letters}/replay")).timeout(None).send()?;
                        let sentence = format!(
                            "{} put back, {} are no longer in the log",
                            done["replayed"], done["gone"]
                        );
                        output.outcome(&sentence, &done)
                    }
                    (_, true) => {
                        let done = client.delete(letters).send()?;
                        output.outcome(&format!("{} dead letters forgotten", done["cleared"]), &done)
                    }
                    _ => {
                        let all = client.get(letters).query("top", Some(top)).send()?;
                        output.list(
                            all.as_array().map_or(&[][..], Vec::as_slice),
                            &[
                                ("time", "/time"),
                                ("device", "/deviceId"),
                                ("module", "/moduleId"),
                                ("partition", "/partition"),
                                ("number", "/sequenceNumber"),
                                ("reason", "/reason"),
                            ],
                        )
                    }
                }
            }
        }
    }
}

fn list(client: &Client, path: &str) -> anyhow::Result<Vec<Value>> {
    Ok(client.get(path).send()?.as_array().cloned().unwrap_or_default())
}

fn health(client: &Client, output: Format, name: Option<&str>) -> anyhow::Result<()> {
    let mut all = list(client, "/holdfast/v1/routing/health")?;
    if let Some(name) = name {
        // An endpoint that is not there is told as such.
        client.get(format!("{ROOT}/{}", segment(name))).send()?;
        all.retain(|endpoint| {
            let known = endpoint["endpointId"].as_str().unwrap_or_default();
            known.eq_ignore_ascii_case(name)
        });
    }
    output.list(
        &all,
        &[
            ("endpoint", "/endpointId"),
            ("status", "/healthStatus"),
            ("delivered", "/delivered"),
            ("dead letters", "/deadLetters"),
            ("lag", "/lag"),
            ("last success", "/lastSuccessfulSendAttemptTime"),
            ("last error", "/lastKnownError"),
        ],
    )
}

/// Settings of `--settings`, with those of `--set` on top.
fn combined(settings: Option<&str>, set: &[(String, String)]) -> anyhow::Result<Value> {
    let mut combined = match settings {
        Some(text) => input::object("--settings", text)?,
        None => Value::Object(Map::new()),
    };
    for (name, value) in set {
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.clone()));
        let mut place = &mut combined;
        for part in name.split('.') {
            let Value::Object(members) = place else {
                return Err(
                    Failure::usage(format!("--set {name}: what stands before {part} is no object")).into(),
                );
            };
            place = members.entry(part).or_insert_with(|| Value::Object(Map::new()));
        }
        *place = value;
    }
    Ok(combined)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_put_together() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let set = [
            pair("url", "http://a/b?c=d"),
            pair("batch", "false"),
            pair("timeoutSeconds", "5"),
            pair("headers.x-key", "k"),
        ];
        assert_eq!(
            combined(Some(r#"{"batch":true,"format":"json"}"#), &set).expect("settings"),
            json!({"url": "http://a/b?c=d", "batch": false, "timeoutSeconds": 5, "headers": {"x-key": "k"}, "format": "json"})
        );
        assert!(combined(None, &[pair("url", "x"), pair("url.y", "z")]).is_err());
    }
}
