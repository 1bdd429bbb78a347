//! `cargo xtask deny`: licences of all dependencies against `deny.toml`.

mod licence;

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::args::Args;
use crate::paths;
use crate::process::{on_path, output, run as run_command};
use crate::say;

pub(crate) const HELP: &str = "\
Usage: cargo xtask deny

Checks every dependency against deny.toml: its licence is on the allow list, its name is not banned. Uses
cargo-deny, with the advisory database, when it is installed (cargo install cargo-deny --locked); otherwise
reads the lists itself, for this platform's dependencies, and says that advisories were not checked.";

pub(crate) fn run(args: Args) -> Result<()> {
    args.finish()?;
    if on_path("cargo-deny").is_some() {
        return run_command(paths::cargo().args(["deny", "check"]));
    }
    let path = paths::root().join("deny.toml");
    let config = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let allow = strings(&config, "licenses", "allow")?;
    let banned = strings(&config, "bans", "deny")?;
    let packages = dependencies()?;
    let findings = check(&packages, &allow, &banned);
    for finding in &findings {
        say(finding);
    }
    say(
        "deny: advisories NOT checked: that needs cargo-deny (cargo install cargo-deny --locked) and network access",
    );
    if !findings.is_empty() {
        bail!(
            "deny: {} findings in {} dependencies",
            findings.len(),
            packages.len()
        );
    }
    say(&format!(
        "deny: licences of {} dependencies are on the allow list",
        packages.len()
    ));
    Ok(())
}

struct Package {
    name: String,
    version: String,
    licence: Option<String>,
}

/// All packages of the lock file for this platform, except those of the workspace.
fn dependencies() -> Result<Vec<Package>> {
    let version = output(std::process::Command::new("rustc").arg("-vV"))?;
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("rustc names no host")?;
    let text = output(paths::cargo().args([
        "metadata",
        "--format-version",
        "1",
        "--all-features",
        "--filter-platform",
        host,
    ]))?;
    let metadata: Value = serde_json::from_str(&text).context("cargo metadata is not JSON")?;
    let used = built(host)?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?;
    let foreign = packages
        .iter()
        .filter(|package| !package["source"].is_null())
        .filter(|package| {
            let (name, version) = (package["name"].as_str(), package["version"].as_str());
            used.contains(&(
                name.unwrap_or_default().to_owned(),
                version.unwrap_or_default().to_owned(),
            ))
        });
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Ok(foreign
        .map(|package| Package {
            name: text(&package["name"]).unwrap_or_default(),
            version: text(&package["version"]).unwrap_or_default(),
            licence: text(&package["license"]),
        })
        .collect())
}

/// Names and versions of what is built for this host. `cargo metadata` also names what a feature brings that is on for
/// other systems only.
fn built(host: &str) -> Result<BTreeSet<(String, String)>> {
    let text = output(paths::cargo().args([
        "tree",
        "--workspace",
        "--all-features",
        "--target",
        host,
        "--edges",
        "normal,build,dev",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ]))?;
    let package = |line: &str| {
        let (name, rest) = line.split_once(" v")?;
        let version = rest.split_whitespace().next()?;
        Some((name.to_owned(), version.to_owned()))
    };
    Ok(text.lines().filter_map(package).collect())
}

fn check(packages: &[Package], allow: &[String], banned: &[String]) -> Vec<String> {
    let mut findings = Vec::new();
    for Package {
        name,
        version,
        licence,
    } in packages
    {
        if banned.contains(name) {
            findings.push(format!("{name} {version}: banned in deny.toml"));
        }
        match licence {
            None => findings.push(format!("{name} {version}: names no licence")),
            Some(licence) => match licence::allowed(licence, allow) {
                Ok(true) => {}
                Ok(false) => findings.push(format!("{name} {version}: {licence} is not on the allow list")),
                Err(error) => findings.push(format!(
                    "{name} {version}: cannot read licence {licence:?}: {error}"
                )),
            },
        }
    }
    findings
}

/// The quoted texts in the array `key` of the table `[table]`. This much TOML is what `deny.toml` needs.
fn strings(config: &str, table: &str, key: &str) -> Result<Vec<String>> {
    let header = format!("[{table}]");
    let lines = config
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'));
    let section = lines
        .skip_while(|line| *line != header)
        .skip(1)
        .take_while(|line| !is_header(line));
    let mut found = Vec::new();
    let mut inside = false;
    for line in section {
        inside |= line.starts_with(&format!("{key} = ["));
        if inside {
            found.extend(line.split('"').skip(1).step_by(2).map(str::to_owned));
            if line.ends_with(']') {
                return Ok(found);
            }
        }
    }
    bail!("deny.toml has no list {key} in {header}")
}

fn is_header(line: &str) -> bool {
    line.starts_with('[') && line.ends_with(']') && !line.contains('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"
[licenses]
# "GPL-3.0" is not here
allow = [
    "MIT",
    "Apache-2.0 WITH LLVM-exception",
]
[bans]
deny = [
    { name = "openssl-sys" },
]
"#;

    #[test]
    fn reads_the_lists() {
        assert_eq!(
            strings(CONFIG, "licenses", "allow").unwrap(),
            ["MIT", "Apache-2.0 WITH LLVM-exception"]
        );
        assert_eq!(strings(CONFIG, "bans", "deny").unwrap(), ["openssl-sys"]);
        assert!(strings(CONFIG, "bans", "allow").is_err());
    }

    #[test]
    fn bad_dependencies_are_found() {
        let package = |name: &str, licence: Option<&str>| Package {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            licence: licence.map(str::to_owned),
        };
        let packages = [
            package("good", Some("MIT OR GPL-3.0")),
            package("copyleft", Some("GPL-3.0")),
            package("silent", None),
            package("openssl-sys", Some("MIT")),
            package("odd", Some("MIT AND (")),
        ];
        let found = check(&packages, &["MIT".to_owned()], &["openssl-sys".to_owned()]);
        let names: Vec<&str> = found.iter().filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(names, ["copyleft", "silent", "openssl-sys", "odd"]);
    }
}
