//! `holdfast configuration`.

use clap::{Args, Subcommand};
use holdfast_program::failure::Failure;
use serde_json::{Map, Value, json};

use super::client::{Client, segment};
use super::{Global, input};

const ROOT: &str = "/configurations";

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Create a configuration of devices or modules
    #[command(
        after_help = "Content is an object of values by path; deviceContent or moduleContent around it is taken too.\n\nExamples:\n  holdfast configuration create interval-5 --content '{\"properties.desired.interval\":5}' --target-condition \"tags.site='north'\" --priority 10\n  holdfast configuration create camera-hd --module-content @camera.json --target-condition \"FROM devices.modules WHERE moduleId='camera'\" --metric done=\"SELECT deviceId FROM devices.modules WHERE properties.reported.mode='hd'\""
    )]
    Create(CreateArgs),
    /// List configurations
    List,
    /// Show a configuration with its metrics
    Show {
        /// Id of the configuration
        id: String,
    },
    /// Change target condition, priority, labels or metrics; the content cannot change
    #[command(
        after_help = "Examples:\n  holdfast configuration update interval-5 --priority 20\n  holdfast configuration update interval-5 --target-condition \"tags.site IN ['north','south']\" --label owner=ops"
    )]
    Update(UpdateArgs),
    /// Delete a configuration; twins take on the next best one
    Delete {
        /// Id of the configuration
        id: String,
        /// Delete only if the entity tag is this one
        #[arg(long)]
        etag: Option<String>,
    },
    /// Show what the metrics of a configuration come to
    #[command(
        after_help = "Examples:\n  holdfast configuration metrics interval-5\n  holdfast configuration metrics interval-5 --metric appliedCount"
    )]
    Metrics(MetricsArgs),
}

#[derive(Args, Debug)]
pub(super) struct CreateArgs {
    /// Id of the configuration: lower case
    id: String,
    /// Content for devices: JSON, @FILE or - for standard input
    #[arg(long, value_name = "JSON", conflicts_with = "module_content")]
    content: Option<String>,
    /// Content for modules: JSON, @FILE or - for standard input
    #[arg(long, value_name = "JSON")]
    module_content: Option<String>,
    #[command(flatten)]
    settings: Settings,
}

/// What can be said at creation and changed later.
#[derive(Args, Debug)]
pub(super) struct Settings {
    /// Which twins: a condition, * for all; empty for none
    #[arg(long, short = 't', value_name = "CONDITION")]
    pub(super) target_condition: Option<String>,
    /// The higher one wins
    #[arg(long, short, value_name = "N")]
    pub(super) priority: Option<u32>,
    /// A label; may be repeated
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = input::property)]
    pub(super) labels: Vec<(String, String)>,
    /// A metric of your own; may be repeated
    #[arg(long = "metric", value_name = "NAME=QUERY", value_parser = input::property)]
    pub(super) metrics: Vec<(String, String)>,
}

#[derive(Args, Debug)]
pub(super) struct UpdateArgs {
    /// Id of the configuration
    pub(super) id: String,
    #[command(flatten)]
    pub(super) settings: Settings,
    /// Change only if the entity tag is this one
    #[arg(long)]
    pub(super) etag: Option<String>,
}

#[derive(Args, Debug)]
pub(super) struct MetricsArgs {
    /// Id of the configuration
    pub(super) id: String,
    /// This metric only
    #[arg(long, value_name = "NAME")]
    pub(super) metric: Option<String>,
}

impl Command {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let output = global.output();
        match self {
            Command::Create(args) => {
                let content = args.body()?;
                output.object(&create(&client, &args.id, content, &args.settings)?)
            }
            Command::List => output.list(&list(&client, |content| content != "modulesContent")?, COLUMNS),
            Command::Show { id } => output.object(&client.get(path(&id)).send()?),
            Command::Update(args) => output.object(&update(&client, &args)?),
            Command::Delete { id, etag } => delete(global, &client, "configuration", &id, etag.as_deref()),
            Command::Metrics(args) => show_metrics(global, &client, &args),
        }
    }
}

impl CreateArgs {
    fn body(&self) -> anyhow::Result<Value> {
        let (name, text) = match (&self.content, &self.module_content) {
            (Some(text), _) => ("deviceContent", text),
            (None, Some(text)) => ("moduleContent", text),
            (None, None) => {
                return Err(Failure::usage("give --content or --module-content").into());
            }
        };
        let given = input::object("the content", text)?;
        // Files of `az iot` have the member around it, perhaps inside `content`.
        let given = given.get("content").cloned().unwrap_or(given);
        let given = given.get(name).cloned().unwrap_or(given);
        Ok(json!({ name: given }))
    }
}

/// Columns of lists.
pub(super) const COLUMNS: &[(&str, &str)] = &[
    ("id", "/id"),
    ("priority", "/priority"),
    ("target condition", "/targetCondition"),
    ("targeted", "/systemMetrics/results/targetedCount"),
    ("applied", "/systemMetrics/results/appliedCount"),
    ("created", "/createdTimeUtc"),
];

pub(super) fn path(id: &str) -> String {
    format!("{ROOT}/{}", segment(id))
}

/// Those whose content has a member that is `wanted`.
pub(super) fn list(client: &Client, wanted: fn(&str) -> bool) -> anyhow::Result<Vec<Value>> {
    let all = client.get(ROOT).send()?;
    let all = all.as_array().cloned().unwrap_or_default();
    let is_wanted = |item: &Value| {
        let content = item.get("content").and_then(Value::as_object);
        content.is_some_and(|content| content.keys().any(|key| wanted(key)))
    };
    Ok(all.into_iter().filter(is_wanted).collect())
}

pub(super) fn create(
    client: &Client,
    id: &str,
    content: Value,
    settings: &Settings,
) -> anyhow::Result<Value> {
    let mut body = Map::new();
    body.insert("id".into(), id.into());
    body.insert("content".into(), content);
    settings.add_to(&mut body);
    client.put(path(id)).json(Value::Object(body)).send()
}

pub(super) fn update(client: &Client, args: &UpdateArgs) -> anyhow::Result<Value> {
    let mut body = Map::new();
    args.settings.add_to(&mut body);
    if body.is_empty() {
        return Err(Failure::usage(
            "nothing to change: give --target-condition, --priority, --label or --metric",
        )
        .into());
    }
    let call = client.put(path(&args.id)).if_match(args.etag.as_deref());
    call.json(Value::Object(body)).send()
}

pub(super) fn delete(
    global: &Global,
    client: &Client,
    what: &str,
    id: &str,
    etag: Option<&str>,
) -> anyhow::Result<()> {
    client.delete(path(id)).if_match(etag).send()?;
    global.output().outcome(
        &format!("{what} {id} deleted"),
        &json!({ "id": id, "deleted": true }),
    )
}

pub(super) fn show_metrics(global: &Global, client: &Client, args: &MetricsArgs) -> anyhow::Result<()> {
    let configuration = client.get(path(&args.id)).send()?;
    let mut rows = Vec::new();
    for (kind, member) in [("system", "systemMetrics"), ("own", "metrics")] {
        let queries = configuration.pointer(&format!("/{member}/queries"));
        let queries = queries.and_then(Value::as_object).cloned().unwrap_or_default();
        for (name, query) in queries {
            if args.metric.as_ref().is_some_and(|wanted| *wanted != name) {
                continue;
            }
            let results = configuration.pointer(&format!("/{member}/results"));
            let result = results.and_then(|results| results.get(&name)).cloned();
            rows.push(json!({ "metric": name, "kind": kind, "result": result, "query": query }));
        }
    }
    if let (Some(name), true) = (&args.metric, rows.is_empty()) {
        return Err(Failure::usage(format!("{} has no metric {name}", args.id))
            .hint(format!("holdfast configuration metrics {} lists them", args.id))
            .into());
    }
    global.output().list(
        &rows,
        &[
            ("metric", "/metric"),
            ("kind", "/kind"),
            ("result", "/result"),
            ("query", "/query"),
        ],
    )
}

impl Settings {
    fn add_to(&self, body: &mut Map<String, Value>) {
        let object = |pairs: &[(String, String)]| -> Map<String, Value> {
            let pairs = pairs.iter();
            pairs
                .map(|(name, value)| (name.clone(), value.as_str().into()))
                .collect()
        };
        if let Some(condition) = &self.target_condition {
            body.insert("targetCondition".into(), condition.as_str().into());
        }
        if let Some(priority) = self.priority {
            body.insert("priority".into(), priority.into());
        }
        if !self.labels.is_empty() {
            body.insert("labels".into(), Value::Object(object(&self.labels)));
        }
        if !self.metrics.is_empty() {
            body.insert("metrics".into(), json!({ "queries": object(&self.metrics) }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(content: &str) -> Value {
        let args = CreateArgs {
            id: "c".into(),
            content: Some(content.into()),
            module_content: None,
            settings: Settings {
                target_condition: None,
                priority: None,
                labels: Vec::new(),
                metrics: Vec::new(),
            },
        };
        args.body().expect("an object")
    }

    #[test]
    fn content_is_taken_bare_and_wrapped() {
        let expected = json!({"deviceContent": {"properties.desired.a": 1}});
        for text in [
            r#"{"properties.desired.a": 1}"#,
            r#"{"deviceContent": {"properties.desired.a": 1}}"#,
            r#"{"content": {"deviceContent": {"properties.desired.a": 1}}}"#,
        ] {
            assert_eq!(body(text), expected, "{text}");
        }
    }
}
