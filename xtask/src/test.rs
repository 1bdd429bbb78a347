//! `cargo xtask test`: every suite, one after the other, then a table and the total.

mod counts;
mod report;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::args::Args;
use crate::edge::engine::Engine;
use crate::edge::registry::{PASSWORD, Registry, USER};
use crate::process::tee;
use crate::{Reported, check, demo, deny, docs, edge, lock, paths, say, setup, tidy};

use counts::Counts;
use report::Row;

pub(crate) const HELP: &str = "\
Usage: cargo xtask test [--long] [--only SUITE]... [-- ARGUMENTS]

Sets up what is missing (Debian packages, the Python environment, Node packages) and runs every suite. Ends
with a table and the line `total: N passed, M failed`. Fails when a test failed or was skipped, or when a
suite ran no test. A check such as fmt counts as one test.

Suites:
  fmt      formatting
  tidy     house rules
  deny     licences
  clippy   warnings of compiler and clippy
  rust     cargo test of the workspace: unit, property, suites of ports, kill -9
  docs     generated pages are fresh
  demo     the story of `cargo xtask demo`, each step a test
  python   official Python SDKs against a real hub
  node     official Node.js SDKs against a real hub
  edge     the edge runtime with real containers (needs root: starts a container engine of its own)

Options:
  --long         run the long versions (sets HOLDFAST_TEST_LONG=1, HOLDFAST_KILL9_CUTS=5000 and
                 HOLDFAST_PROVISION_DEVICES=10000)
  --only SUITE   run this suite; may be given several times
  ARGUMENTS      passed on to cargo test, pytest or node, of the suites that run";

/// What a suite needs to know.
struct Options {
    long: bool,
    passed_on: Vec<String>,
}

struct Suite {
    name: &'static str,
    run: fn(&Options) -> Result<Counts>,
}

const SUITES: &[Suite] = &[
    Suite {
        name: "fmt",
        run: |_| check::fmt().map(|()| Counts::one()),
    },
    Suite {
        name: "tidy",
        run: |_| tidy::run(Args::new("tidy", Vec::new())).map(|()| Counts::one()),
    },
    Suite {
        name: "deny",
        run: |_| deny::run(Args::new("deny", Vec::new())).map(|()| Counts::one()),
    },
    Suite {
        name: "clippy",
        run: |_| clippy(),
    },
    Suite {
        name: "rust",
        run: rust,
    },
    Suite {
        name: "docs",
        run: |_| reference(),
    },
    Suite {
        name: "demo",
        run: |_| story(),
    },
    Suite {
        name: "python",
        run: python,
    },
    Suite {
        name: "node",
        run: node,
    },
    Suite {
        name: "edge",
        run: containers,
    },
];

pub(crate) fn run(mut args: Args) -> Result<()> {
    let long = args.flag("--long");
    let mut only = Vec::new();
    while let Some(name) = args.value("--only")? {
        if !SUITES.iter().any(|suite| suite.name == name) {
            let names: Vec<&str> = SUITES.iter().map(|suite| suite.name).collect();
            bail!("there is no suite {name:?}; there are {}", names.join(", "));
        }
        only.push(name);
    }
    let options = Options {
        long,
        passed_on: args.finish()?,
    };
    let wanted = |suite: &&Suite| only.is_empty() || only.iter().any(|name| name == suite.name);
    let suites: Vec<&Suite> = SUITES.iter().filter(wanted).collect();
    let mut rows = Vec::new();
    for (index, suite) in suites.iter().enumerate() {
        say(&format!("\n=== [{}/{}] {}", index + 1, suites.len(), suite.name));
        rows.push(run_suite(suite, &options));
    }
    say(&format!("\n{}", report::table(&rows)));
    let failed: Vec<&str> = rows
        .iter()
        .filter(|row| row.counts.failed > 0)
        .map(|row| row.name)
        .collect();
    if !failed.is_empty() {
        say(&format!("failed suites: {}\n", failed.join(", ")));
    }
    let total = report::total(&rows);
    // The very last line of standard output, for people and for programs that read a log.
    say(&format!(
        "total: {} passed, {} failed",
        total.passed, total.failed
    ));
    if failed.is_empty() {
        Ok(())
    } else {
        Err(Reported.into())
    }
}

fn run_suite(suite: &Suite, options: &Options) -> Row {
    let start = Instant::now();
    let counts = (suite.run)(options).unwrap_or_else(|error| {
        say(&format!("{}: {error:#}", suite.name));
        Counts::failure(first_line(&format!("{error:#}")))
    });
    Row {
        name: suite.name,
        counts: counts.strict(),
        duration: start.elapsed(),
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(90).collect()
}

fn clippy() -> Result<Counts> {
    setup::compiler()?;
    check::clippy()?;
    Ok(Counts::one())
}

fn rust(options: &Options) -> Result<Counts> {
    setup::compiler()?;
    let nats = setup::brokers()?;
    setup::software_tpm()?;
    let mut command = paths::cargo();
    command
        .args(["test", "--workspace", "--no-fail-fast"])
        .env("HOLDFAST_TEST_NATS_SERVER", nats);
    long(&mut command, options);
    if !options.passed_on.is_empty() {
        command.arg("--").args(&options.passed_on);
    }
    let minutes = if options.long { 240 } else { 40 };
    let outcome = tee(&mut command, Duration::from_secs(minutes * 60))?;
    Ok(counts::cargo(&outcome.lines).with_status(outcome.success, outcome.note))
}

fn reference() -> Result<Counts> {
    setup::build_holdfast()?;
    setup::build_edge()?;
    docs::check_built()?;
    Ok(Counts::one())
}

fn story() -> Result<Counts> {
    let (passed, failed) = demo::play()?;
    Ok(Counts {
        passed,
        failed,
        ..Counts::default()
    })
}

fn python(options: &Options) -> Result<Counts> {
    setup::build_holdfast()?;
    let python = setup::python()?;
    // Azurite, to which the endpoint `storage` writes there.
    setup::node()?;
    // The suite takes the lock for the fixed TCP ports itself.
    let mut command = Command::new(python);
    command.current_dir(paths::root().join("tests/clients/python"));
    command.args(["-m", "pytest", "-rfEs", "-p", "no:cacheprovider", "--color=no"]);
    client_suite(&mut command, options, counts::pytest)
}

fn node(options: &Options) -> Result<Counts> {
    setup::build_holdfast()?;
    setup::node()?;
    let mut command = Command::new("npm");
    command.current_dir(paths::root().join("tests/clients/node"));
    command.args(["test", "--silent"]);
    if !options.passed_on.is_empty() {
        command.arg("--");
    }
    // Node.js has no call for file locks, so the lock is taken for it.
    let _ports = lock::fixed_ports()?;
    client_suite(&mut command, options, counts::node)
}

/// The module runtime against a real engine, then the scenarios of `tests/edge`, which start engines of their own.
fn containers(options: &Options) -> Result<Counts> {
    let images = prepare_containers()?;
    let runtime = module_runtime(options, &images)?;
    let mut command = scenarios(&images)?;
    // Most of the time they wait: for links to be found cut, for pauses to pass. Each half has a site of its own.
    command.args(["--numprocesses", "2", "--dist", "loadfile", "--durations", "10"]);
    long(&mut command, options);
    command.args(&options.passed_on);
    let minutes = if options.long { 120 } else { 25 };
    let outcome = tee(&mut command, Duration::from_secs(minutes * 60))?;
    let scenarios = counts::pytest(&outcome.lines).with_status(outcome.success, outcome.note);
    Ok(runtime.strict().and(scenarios.strict()))
}

/// Everything that the edge suite needs; the storage of a registry with its images.
fn prepare_containers() -> Result<PathBuf> {
    setup::containers()?;
    setup::faketime()?;
    setup::podman_and_systemd()?;
    setup::software_tpm()?;
    // Downstream devices run on the Node.js SDK, too.
    setup::node()?;
    setup::build_holdfast()?;
    setup::build_edge()?;
    edge::images::storage()
}

/// `pytest` in `tests/edge`.
fn scenarios(images: &Path) -> Result<Command> {
    let mut command = Command::new(setup::python()?);
    command.current_dir(paths::root().join("tests/edge"));
    command.args([
        "-m",
        "pytest",
        "-v",
        "-rfEs",
        "-p",
        "no:cacheprovider",
        "--color=no",
    ]);
    command
        .env("HOLDFAST_BIN", paths::holdfast())
        .env("HOLDFAST_EDGE_BIN", paths::edge())
        .env("HOLDFAST_EDGE_IMAGES", images);
    Ok(command)
}

/// The numbers of the edge runtime in SPECIFICATION.md: tests that print what they measure.
pub(crate) fn edge_numbers(passed_on: &[String]) -> Result<()> {
    let images = prepare_containers()?;
    let mut command = scenarios(&images)?;
    command.args(["--capture=no", "test_numbers.py"]).args(passed_on);
    command.env("HOLDFAST_TEST_LONG", "1");
    crate::process::run(&mut command)
}

/// `crates/docker/tests/engine.rs`: without an engine these tests are not run by `cargo test`, and here they must.
fn module_runtime(options: &Options, images: &Path) -> Result<Counts> {
    let dir = edge::cache().join("engine");
    let mut engine = Engine::start(&dir, None, None, &paths::logs())?;
    let registry = Registry::start(images, Ipv4Addr::LOCALHOST, &dir.join("registry"), &paths::logs())?;
    let mut command = paths::cargo();
    command
        .args([
            "test",
            "--package",
            "holdfast-docker",
            "--test",
            "engine",
            "--",
            "--include-ignored",
        ])
        .env("HOLDFAST_TEST_DOCKER", engine.host())
        .env("HOLDFAST_TEST_REGISTRY", registry.address())
        .env("HOLDFAST_TEST_REGISTRY_USER", USER)
        .env("HOLDFAST_TEST_REGISTRY_PASSWORD", PASSWORD);
    long(&mut command, options);
    let outcome = tee(&mut command, Duration::from_secs(15 * 60))?;
    engine.stop()?;
    Ok(counts::cargo(&outcome.lines).with_status(outcome.success, outcome.note))
}

/// A suite that runs SDKs against the release binary.
fn client_suite(command: &mut Command, options: &Options, count: fn(&[String]) -> Counts) -> Result<Counts> {
    long(command, options);
    command
        .args(&options.passed_on)
        .env("HOLDFAST_BIN", paths::holdfast());
    let outcome = tee(command, Duration::from_secs(20 * 60))?;
    Ok(count(&outcome.lines).with_status(outcome.success, outcome.note))
}

fn long(command: &mut Command, options: &Options) {
    if options.long {
        command
            .env("HOLDFAST_TEST_LONG", "1")
            .env("HOLDFAST_KILL9_CUTS", "5000")
            .env("HOLDFAST_PROVISION_DEVICES", "10000");
    }
}
