//! `holdfast route`.

use clap::{Args, Subcommand};
use holdfast_model::routing::RouteSource;
use holdfast_program::failure::Failure;
use holdfast_query::route::{Condition, Place, Symbols};
use serde_json::{Map, Value, json};

use super::client::{Call, Client, segment};
use super::output::{Format, json as print_json};
use super::query::wrong;
use super::{Global, input};

const ROOT: &str = "/holdfast/v1/routing/routes";
const FALLBACK: &str = "/holdfast/v1/routing/fallbackRoute";
const DEFINITION: &str = "/holdfast/v1/routing/definition";

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Create a route, in force for the next event
    #[command(
        after_help = "Sources: DeviceMessages (telemetry), TwinChangeEvents, DeviceLifecycleEvents, DeviceConnectionStateEvents,\nDeviceJobLifecycleEvents, DigitalTwinChangeEvents. Events of the hub itself are made while a route takes them.\n\nExamples:\n  holdfast route create all --endpoint events\n  holdfast route create twins --source TwinChangeEvents --endpoint events\n  holdfast route create hot --endpoint alarms --condition '$body.temperature > 30'\n  holdfast route create north --endpoint alarms --condition \"level = 'high' AND \\$twin.tags.site = 'north'\""
    )]
    Create {
        /// Name of the route
        name: String,
        /// Where events go: the name of an endpoint, or events for the built-in one
        #[arg(long, visible_alias = "endpoint-name", value_name = "NAME")]
        endpoint: String,
        /// Which events it looks at
        #[arg(long, visible_alias = "source-type", default_value = "DeviceMessages")]
        source: String,
        /// Which of them take it; also @FILE or - for standard input
        #[arg(long, short, default_value = "true")]
        condition: String,
        /// Create it without putting it into force
        #[arg(long)]
        disabled: bool,
    },
    /// List routes
    List {
        /// Only those of this source
        #[arg(long, visible_alias = "source-type")]
        source: Option<String>,
    },
    /// Show a route
    Show {
        /// Name of the route
        name: String,
    },
    /// Change a route
    #[command(
        after_help = "Examples:\n  holdfast route update hot --condition '$body.temperature > 35'\n  holdfast route update hot --disable"
    )]
    Update {
        /// Name of the route
        name: String,
        /// Where events go
        #[arg(long, visible_alias = "endpoint-name", value_name = "NAME")]
        endpoint: Option<String>,
        /// Which events it looks at
        #[arg(long, visible_alias = "source-type")]
        source: Option<String>,
        #[command(flatten)]
        change: Change,
    },
    /// Delete a route
    Delete {
        /// Name of the route
        name: String,
        /// Delete only if the etag of everything about routing is this one
        #[arg(long)]
        etag: Option<String>,
    },
    /// Try a condition on a message, on stored messages, or all routes on a message
    Test(TestArgs),
    /// Show or change the fallback route, which telemetry takes that takes no other
    #[command(
        after_help = "Examples:\n  holdfast route fallback\n  holdfast route fallback --disable       telemetry that takes no route is dropped"
    )]
    Fallback {
        #[command(flatten)]
        change: Change,
    },
    /// Print routes, fallback route, enrichments and endpoints as one JSON document, without secrets
    Export,
    /// Replace routes, fallback route, enrichments and endpoints by such a document
    #[command(
        after_help = "Secrets shown as *** stay as they are stored for the endpoint of that name; a hub that does not have it needs the\nsecret itself in their place. Nothing changes if anything is wrong.\n\nExamples:\n  holdfast route export > routing.json\n  holdfast route import @routing.json"
    )]
    Import {
        /// The document: JSON, @FILE or - for standard input
        document: String,
        /// Change only if nothing has changed since the export with this etag
        #[arg(long)]
        etag: Option<String>,
    },
}

/// Changes that routes and the fallback route have in common.
#[derive(Args, Debug)]
pub(super) struct Change {
    /// Which events take it; also @FILE or - for standard input
    #[arg(long, short)]
    condition: Option<String>,
    /// Put it into force
    #[arg(long, conflicts_with = "disable")]
    enable: bool,
    /// Take it out of force
    #[arg(long)]
    disable: bool,
}

/// `holdfast route test`.
#[derive(Args, Debug)]
#[command(
    after_help = "Without a name and a condition it tells which routes the message takes. A body is asked only if the message says that\nit is JSON, which --body does unless --system-properties says otherwise.\n\nExamples:\n  holdfast route test hot --body '{\"temperature\":31}'\n  holdfast route test --condition \"level = 'high'\" --app-properties '{\"level\":\"high\"}'\n  holdfast route test --condition '$twin.tags.site = \"north\"' --twin '{\"tags\":{\"site\":\"north\"}}'\n  holdfast route test --body '{\"temperature\":31}'         which routes take it\n  holdfast route test hot --live 500                      which of the newest stored messages take it"
)]
pub(super) struct TestArgs {
    /// Name of a stored route
    name: Option<String>,
    /// A condition instead
    #[arg(long, short, conflicts_with = "name")]
    condition: Option<String>,
    /// Source of the condition or routes [default: DeviceMessages]
    #[arg(long, visible_alias = "source-type")]
    source: Option<String>,
    /// Body of the message; also @FILE or - for standard input
    #[arg(long, short)]
    body: Option<String>,
    /// Application properties of the message, as JSON
    #[arg(long, visible_alias = "ap", value_name = "JSON")]
    app_properties: Option<String>,
    /// System properties of the message, as JSON
    #[arg(long, visible_alias = "sp", value_name = "JSON")]
    system_properties: Option<String>,
    /// Twin of the sender, as JSON
    #[arg(long, value_name = "JSON")]
    twin: Option<String>,
    /// Try it on so many of the newest stored messages instead
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "100",
        value_parser = clap::value_parser!(u16).range(1..=1_000),
        conflicts_with_all = ["body", "app_properties", "system_properties", "twin"])]
    live: Option<u16>,
}

impl Command {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let output = global.output();
        let path = |name: &str| format!("{ROOT}/{}", segment(name));
        match self {
            Command::Create {
                name,
                endpoint,
                source,
                condition,
                disabled,
            } => {
                let condition = checked(&condition, &source)?;
                let body = json!({
                    "source": source, "condition": condition, "endpointNames": [endpoint], "isEnabled": !disabled,
                });
                let made = global.client()?.put(path(&name)).json(body).send()?;
                output.outcome(&format!("route {name} created"), &made)
            }
            Command::List { source } => list(&global.client()?, output, source.as_deref()),
            Command::Show { name } => output.object(&global.client()?.get(path(&name)).send()?),
            Command::Update {
                name,
                endpoint,
                source,
                change,
            } => {
                let client = global.client()?;
                let (mut route, tag) = tagged(client.get(path(&name)))?;
                if let Some(endpoint) = endpoint {
                    route["endpointNames"] = json!([endpoint]);
                }
                if let Some(source) = source {
                    route["source"] = Value::from(source);
                }
                change.apply(&mut route)?;
                let call = client.put(path(&name)).if_match(tag.as_deref());
                output.outcome(&format!("route {name} changed"), &call.json(route).send()?)
            }
            Command::Delete { name, etag } => {
                let client = global.client()?;
                client.delete(path(&name)).if_match(etag.as_deref()).send()?;
                output.outcome(
                    &format!("route {name} deleted"),
                    &json!({"name": name, "deleted": true}),
                )
            }
            Command::Test(args) => args.run(&global.client()?, output),
            Command::Fallback { change } => {
                let client = global.client()?;
                let (mut route, tag) = tagged(client.get(FALLBACK))?;
                if change.apply(&mut route)? {
                    let call = client.put(FALLBACK).if_match(tag.as_deref());
                    route = call.json(route).send()?;
                }
                output.object(&route)
            }
            Command::Export => print_json(&global.client()?.get(DEFINITION).send()?),
            Command::Import { document, etag } => {
                let document = input::object("the document", &document)?;
                let client = global.client()?;
                let call = client.put(DEFINITION).if_match(etag.as_deref());
                let made = call.json(document).send()?;
                let count = |list: &str| made[list].as_array().map_or(0, Vec::len);
                let sentence = format!(
                    "{} routes, {} enrichments and {} endpoints are in force",
                    count("routes"),
                    count("enrichments"),
                    count("endpoints")
                );
                output.outcome(&sentence, &made)
            }
        }
    }
}

impl Change {
    /// Changes a route; whether there is anything to change.
    fn apply(&self, route: &mut Value) -> anyhow::Result<bool> {
        if let Some(condition) = &self.condition {
            let source = route["source"].as_str().unwrap_or("DeviceMessages").to_owned();
            route["condition"] = Value::from(checked(condition, &source)?);
        }
        if self.enable || self.disable {
            route["isEnabled"] = Value::from(self.enable);
        }
        Ok(self.condition.is_some() || self.enable || self.disable)
    }
}

/// An answer with its entity tag, so that a change made meanwhile is noticed.
fn tagged(call: Call<'_>) -> anyhow::Result<(Value, Option<String>)> {
    let (answer, headers) = call.send_with_headers()?;
    let tag = headers.get("etag").and_then(|tag| tag.to_str().ok());
    Ok((answer, tag.map(str::to_owned)))
}

/// A condition, checked here too, so that the place of a mistake can be shown.
fn checked(condition: &str, source: &str) -> anyhow::Result<String> {
    let text = input::text(condition)?;
    let text = text.trim();
    let source = RouteSource::parse(source).ok_or_else(|| {
        let known: Vec<&str> = RouteSource::ALL.iter().map(|source| source.as_str()).collect();
        Failure::usage(format!("{source:?} is no source of routes")).hint(known.join(", "))
    })?;
    let place = Place {
        twin_changes: source == RouteSource::TwinChangeEvents,
        no_twin: false,
    };
    match Condition::compile(text, &mut Symbols::default(), place) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(wrong("condition", text, &error).into()),
    }
}

fn list(client: &Client, output: Format, source: Option<&str>) -> anyhow::Result<()> {
    let all = client.get(ROOT).send()?;
    let mut routes = all.as_array().cloned().unwrap_or_default();
    if let Some(source) = source {
        routes.retain(|route| {
            let of = route["source"].as_str().unwrap_or_default();
            of.eq_ignore_ascii_case(source)
        });
    }
    print(output, &routes)
}

fn print(output: Format, routes: &[Value]) -> anyhow::Result<()> {
    output.list(
        routes,
        &[
            ("name", "/name"),
            ("source", "/source"),
            ("condition", "/condition"),
            ("endpoint", "/endpointNames/0"),
            ("enabled", "/isEnabled"),
        ],
    )
}

impl TestArgs {
    fn run(self, client: &Client, output: Format) -> anyhow::Result<()> {
        let source = self.source.clone().unwrap_or_else(|| "DeviceMessages".to_owned());
        let condition = match &self.condition {
            Some(condition) => Some(checked(condition, &source)?),
            None => None,
        };
        if let Some(count) = self.live {
            return self.live(client, output, condition, count);
        }
        let message = self.message()?;
        let twin = match &self.twin {
            Some(twin) => input::object("--twin", twin)?,
            None => Value::Null,
        };
        let route = match (&self.name, condition) {
            (Some(name), _) => Some(client.get(format!("{ROOT}/{}", segment(name))).send()?),
            (None, Some(condition)) => Some(json!({"source": source, "condition": condition})),
            (None, None) => None,
        };
        match route {
            Some(route) => {
                let body = json!({"message": message, "route": route, "twin": twin});
                let answer = client.post(format!("{ROOT}/$testnew")).json(body).send()?;
                let sentence = answer["result"].as_str().unwrap_or_default().to_owned();
                output.outcome(&sentence, &answer)
            }
            None => {
                let body = json!({"routingSource": source, "message": message, "twin": twin});
                let answer = client.post(format!("{ROOT}/$testall")).json(body).send()?;
                let routes = answer["routes"].as_array().map_or(&[][..], Vec::as_slice);
                let routes: Vec<Value> = routes.iter().map(|route| route["properties"].clone()).collect();
                print(output, &routes)
            }
        }
    }

    fn message(&self) -> anyhow::Result<Value> {
        let properties = |name, given: &Option<String>| match given {
            Some(text) => input::object(name, text),
            None => Ok(Value::Object(Map::new())),
        };
        let mut system = properties("--system-properties", &self.system_properties)?;
        let body = self.body.as_deref().map(input::text).transpose()?;
        if let (Some(_), None, Value::Object(system)) = (&body, &self.system_properties, &mut system) {
            system.insert("contentType".to_owned(), json!("application/json"));
            system.insert("contentEncoding".to_owned(), json!("utf-8"));
        }
        Ok(json!({
            "body": body,
            "appProperties": properties("--app-properties", &self.app_properties)?,
            "systemProperties": system,
        }))
    }

    fn live(
        &self,
        client: &Client,
        output: Format,
        condition: Option<String>,
        count: u16,
    ) -> anyhow::Result<()> {
        let mut body = json!({"count": count});
        match (&self.name, condition) {
            (Some(name), _) => body["route"] = json!(name),
            (None, Some(condition)) => {
                body["condition"] = json!(condition);
                body["source"] = json!(self.source.as_deref().unwrap_or("DeviceMessages"));
            }
            (None, None) => {
                return Err(Failure::usage("--live needs the name of a route, or --condition").into());
            }
        }
        let answer = client.post(format!("{ROOT}/$testlive")).json(body).send()?;
        if output == Format::Json {
            return print_json(&answer);
        }
        let messages = answer["messages"].as_array().map_or(&[][..], Vec::as_slice);
        output.list(
            messages,
            &[
                ("time", "/enqueuedTime"),
                ("device", "/deviceId"),
                ("module", "/moduleId"),
                ("partition", "/partition"),
                ("number", "/sequenceNumber"),
                ("result", "/result"),
            ],
        )?;
        super::output::line(&format!(
            "{} of {} stored messages take it; it is undefined for {}",
            answer["matched"], answer["tested"], answer["undefined"]
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_in_a_condition_is_underlined() {
        let error = checked("level = 3", "devicemessages").expect_err("a string and a number");
        let text = error.to_string();
        assert!(
            text.contains("the condition is wrong") && text.contains('^'),
            "{text}"
        );
        assert!(checked("true", "Nowhere").is_err());
        assert_eq!(checked(" true ", "DeviceMessages").expect("fine"), "true");
    }
}
