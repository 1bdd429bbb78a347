//! Which own crate may depend on which: the table is the architecture.

use anyhow::{Context, Result};
use serde_json::Value;

use super::Finding;

/// A crate, what it may depend on, and what its tests may besides.
struct Row {
    name: &'static str,
    may: Only,
    tests_may: &'static [&'static str],
}

enum Only {
    These(&'static [&'static str]),
    AllBut(&'static [&'static str]),
}

use Only::{AllBut, These};

const fn row(name: &'static str, may: Only) -> Row {
    Row {
        name,
        may,
        tests_may: &[],
    }
}

/// Names without the prefix `holdfast-`; the crate in `crates/server` is the package `holdfast`.
const TABLE: &[Row] = &[
    row("model", These(&[])),
    row("mqtt", These(&[])),
    row("amqp", These(&[])),
    row("observe", These(&[])),
    row("program", These(&["observe"])),
    row("query", These(&["model"])),
    row("wire", These(&["model"])),
    row("trust", These(&["model"])),
    row("ports", These(&["model", "query", "observe"])),
    row(
        "provisioning",
        These(&["ports", "query", "trust", "model", "observe"]),
    ),
    row(
        "routing",
        These(&[
            "ports", "query", "wire", "dtdl", "model", "observe", "amqp", "mqtt",
        ]),
    ),
    row(
        "hub",
        These(&["ports", "query", "trust", "model", "observe", "routing"]),
    ),
    row(
        "fleet",
        These(&["hub", "ports", "query", "dtdl", "model", "observe"]),
    ),
    row("dtdl", These(&[])),
    row("blob", These(&["model", "observe"])),
    row("store", These(&["ports", "query", "model", "observe"])),
    row(
        "heads",
        These(&["ports", "wire", "mqtt", "amqp", "model", "observe"]),
    ),
    row(
        "api",
        These(&[
            "hub",
            "fleet",
            "routing",
            "provisioning",
            "query",
            "dtdl",
            "wire",
            "ports",
            "model",
            "observe",
        ]),
    ),
    row(
        "upstream",
        These(&["ports", "wire", "mqtt", "amqp", "model", "observe"]),
    ),
    row("tpm", These(&[])),
    row("agent", These(&["ports", "model", "observe"])),
    row("docker", These(&["agent", "ports", "model", "observe"])),
    row(
        "broker",
        These(&["upstream", "store", "ports", "query", "trust", "model", "observe"]),
    ),
    Row {
        name: "server",
        may: AllBut(&["edge", "sim", "agent", "docker", "broker", "upstream", "tpm"]),
        // The client of a hub is tested against the hub.
        tests_may: &["upstream"],
    },
    row("edge", AllBut(&["api", "hub", "provisioning", "server", "sim"])),
    row("sim", AllBut(&[])),
    row("simulated-sensor", These(&["model", "wire", "mqtt"])),
    // Not a crate of the product: it may know none of them.
    row("xtask", These(&[])),
];

const BANNED_NAMES: &[&str] = &["util", "utils", "common", "ext"];

/// Checks the packages in the output of `cargo metadata --no-deps`.
pub(super) fn check(metadata: &Value) -> Result<Vec<Finding>> {
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?;
    let mut findings = Vec::new();
    for package in packages {
        let name = package["name"].as_str().context("a package has no name")?;
        if let Some(part) = name.split(['-', '_']).find(|part| BANNED_NAMES.contains(part)) {
            let message =
                format!("{part:?} tells mechanism, not purpose; name the crate after what it is for");
            findings.push(Finding::new(name, message));
        }
        let Some(row) = TABLE.iter().find(|row| row.name == short(name)) else {
            let message = "this crate is not in the dependency table (xtask/src/tidy/dependencies.rs)";
            findings.push(Finding::new(name, message));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            findings.extend(check_edge(name, row, dependency));
        }
    }
    Ok(findings)
}

fn check_edge(package: &str, row: &Row, dependency: &Value) -> Option<Finding> {
    // Only a dependency with a path is a crate of ours.
    dependency["path"].as_str()?;
    let target = short(dependency["name"].as_str()?);
    let in_tests = dependency["kind"].as_str() == Some("dev");
    let known = TABLE.iter().any(|row| row.name == target);
    let allowed = known
        && (row.may.contains(target) || target == row.name || (in_tests && row.tests_may.contains(&target)));
    let kind = if in_tests {
        "tests of this crate may"
    } else {
        "this crate may"
    };
    (!allowed).then(|| {
        Finding::new(
            package,
            format!("{kind} not depend on {target} (dependency table)"),
        )
    })
}

impl Only {
    fn contains(&self, name: &str) -> bool {
        match self {
            These(names) => names.contains(&name),
            AllBut(names) => !names.contains(&name),
        }
    }
}

fn short(package: &str) -> &str {
    match package {
        "holdfast" => "server",
        other => other.strip_prefix("holdfast-").unwrap_or(other),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn package(name: &str, dependencies: &[(&str, Option<&str>)]) -> Value {
        let dependencies: Vec<Value> = dependencies
            .iter()
            .map(|(name, kind)| json!({ "name": name, "kind": kind, "path": format!("/x/{name}") }))
            .chain([json!({ "name": "serde", "kind": null })])
            .collect();
        json!({ "packages": [{ "name": name, "dependencies": dependencies }] })
    }

    fn findings(name: &str, dependencies: &[(&str, Option<&str>)]) -> Vec<String> {
        check(&package(name, dependencies))
            .unwrap()
            .into_iter()
            .map(|finding| finding.message)
            .collect()
    }

    #[test]
    fn allowed_edges_pass() {
        assert!(
            findings(
                "holdfast-hub",
                &[("holdfast-ports", None), ("holdfast-model", Some("dev"))]
            )
            .is_empty()
        );
        assert!(findings("holdfast", &[("holdfast-hub", None), ("holdfast-store", None)]).is_empty());
    }

    #[test]
    fn a_core_that_points_outward_is_found() {
        let found = findings("holdfast-hub", &[("holdfast-wire", None)]);
        assert_eq!(found, ["this crate may not depend on wire (dependency table)"]);
        assert_eq!(findings("holdfast", &[("holdfast-edge", None)]).len(), 1);
        assert_eq!(
            findings("holdfast-heads", &[("holdfast-store", Some("dev"))]).len(),
            1
        );
        assert_eq!(findings("xtask", &[("holdfast-model", None)]).len(), 1);
    }

    #[test]
    fn an_unknown_crate_is_found() {
        assert_eq!(findings("holdfast-thing", &[]).len(), 1);
        assert_eq!(findings("holdfast", &[("holdfast-thing", None)]).len(), 1);
    }

    #[test]
    fn a_name_without_purpose_is_found() {
        assert!(findings("holdfast-mqtt-ext", &[])[0].contains("\"ext\""));
        assert!(findings("holdfast-utils", &[])[0].contains("purpose"));
    }
}
