//! Who is below whom: `set-parent`, `add-child`, `remove-child`, `list-children`.

use clap::Args;
use holdfast_program::failure::{Failure, Kind};
use serde_json::{Value, json};

use super::device_path;
use crate::cli::Global;
use crate::cli::client::Client;
use crate::cli::identity::{self, Name};
use crate::cli::query;

#[derive(Args, Debug)]
pub(in crate::cli) struct SetParentArgs {
    /// Id of the device or edge device
    device: String,
    /// Id of the edge device above it
    parent: String,
    /// Take it from the edge device it is below now
    #[arg(long)]
    force: bool,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct AddChildArgs {
    /// Id of the edge device
    device: String,
    /// Ids of the devices to put below it
    #[arg(required = true)]
    children: Vec<String>,
    /// Take them from the edge devices they are below now
    #[arg(long)]
    force: bool,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct RemoveChildArgs {
    /// Id of the edge device
    device: String,
    /// Ids of the devices below it
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    children: Vec<String>,
    /// All of them
    #[arg(long)]
    all: bool,
}

impl SetParentArgs {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let scope = scope_of(&client, &self.parent)?;
        adopt(&client, &self.device, &scope, self.force)?;
        global.output().outcome(
            &format!("{} is below {}", self.device, self.parent),
            &json!({ "deviceId": self.device, "parent": self.parent }),
        )
    }
}

impl AddChildArgs {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let scope = scope_of(&client, &self.device)?;
        for child in &self.children {
            adopt(&client, child, &scope, self.force)?;
        }
        global.output().outcome(
            &format!("{} below {}", self.children.join(", "), self.device),
            &json!({ "deviceId": self.device, "children": self.children }),
        )
    }
}

impl RemoveChildArgs {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let scope = scope_of(&client, &self.device)?;
        let children = if self.all {
            let rows = children(&client, &scope)?;
            let ids = rows.iter().filter_map(|row| row["deviceId"].as_str());
            ids.map(str::to_owned).collect()
        } else {
            self.children
        };
        for child in &children {
            release(&client, child, &self.device, &scope)?;
        }
        global.output().outcome(
            &format!("{} no longer below {}", children.join(", "), self.device),
            &json!({ "deviceId": self.device, "removed": children }),
        )
    }
}

pub(super) fn list(global: &Global, device: &str) -> anyhow::Result<()> {
    let client = global.client()?;
    let rows = children(&client, &scope_of(&client, device)?)?;
    let columns = [
        ("device", "/deviceId"),
        ("status", "/status"),
        ("connection", "/connectionState"),
        ("edge", "/capabilities/iotEdge"),
    ];
    global.output().list(&rows, &columns)
}

/// The scope that an edge device gives to those below it.
pub(super) fn scope_of(client: &Client, device: &str) -> anyhow::Result<String> {
    let record = client.get(device_path(device)).send()?;
    if record["capabilities"]["iotEdge"] != true {
        return Err(
            Failure::new(Kind::Failed, format!("{device} is not an edge device"))
                .hint(format!(
                    "make it one with: holdfast device update {device} --edge true"
                ))
                .into(),
        );
    }
    let scope = record["deviceScope"].as_str().unwrap_or_default();
    Ok(scope.to_owned())
}

fn children(client: &Client, scope: &str) -> anyhow::Result<Vec<Value>> {
    // A scope holds an id, which may hold a quote.
    let scope = scope.replace('\\', "\\\\").replace('\'', "\\'");
    let text = format!("SELECT * FROM devices WHERE array_contains(parentScopes, '{scope}')");
    let mut rows = query::rows(client, &text, None)?;
    rows.sort_by(|left, right| left["deviceId"].as_str().cmp(&right["deviceId"].as_str()));
    Ok(rows)
}

fn parent_of(record: &Value) -> Option<&str> {
    record["parentScopes"][0]
        .as_str()
        .filter(|scope| !scope.is_empty())
}

fn adopt(client: &Client, child: &str, scope: &str, force: bool) -> anyhow::Result<()> {
    change(client, child, |record| {
        match parent_of(record) {
            Some(other) if other != scope && !force => {
                let text = format!("{child} is below another edge device ({other})");
                return Err(Failure::new(Kind::Conflict, text)
                    .hint("--force takes it from there")
                    .into());
            }
            _ => {}
        }
        set_parent(record, Some(scope));
        Ok(())
    })
}

fn release(client: &Client, child: &str, parent: &str, scope: &str) -> anyhow::Result<()> {
    change(client, child, |record| {
        if parent_of(record) != Some(scope) {
            return Err(Failure::new(Kind::NotFound, format!("{child} is not below {parent}")).into());
        }
        set_parent(record, None);
        Ok(())
    })
}

fn change(
    client: &Client,
    device: &str,
    edit: impl FnOnce(&mut Value) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let name = Name { device, module: None };
    identity::update(client, name, None, edit).map(|_| ())
}

/// The parent of an edge device stands in `parentScopes` alone: its `deviceScope` is its own.
fn set_parent(record: &mut Value, scope: Option<&str>) {
    record["parentScopes"] = scope.map_or_else(|| json!([]), |scope| json!([scope]));
    if record["capabilities"]["iotEdge"] != true {
        record["deviceScope"] = scope.unwrap_or_default().into();
    }
}
