//! Rules on the text of files.

use super::{Finding, Source};

const LINES_MAX: usize = 800;

/// Files that may be longer, each with the reason.
const LONG_FILES: &[(&str, &str)] = &[];

/// Crates without I/O, clock or tasks: time is passed in, so that every run can be repeated.
const PURE_CRATES: &[&str] = &["model", "mqtt", "amqp", "wire", "query", "dtdl"];

/// Written in two parts, so that this file does not hold what it looks for.
const FORBIDDEN_MACROS: &[&str] = &[concat!("todo", "!("), concat!("dbg", "!(")];
const IMPURE: &[&str] = &[
    concat!("SystemTime", "::now"),
    concat!("Instant", "::now"),
    concat!("tokio", "::spawn"),
    concat!("thread", "::spawn"),
];
const HOMES: &[&str] = &[
    concat!("/ho", "me/"),
    concat!("/Us", "ers/"),
    concat!("/ro", "ot/"),
];

/// Hosts that a lock file may name as the place of a package.
const PUBLIC_HOSTS: &[&str] = &["registry.npmjs.org", "github.com", "files.pythonhosted.org"];

pub(super) fn check(sources: &[Source], machine_paths: &[String]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources {
        findings.extend(paths_of_machines(source, machine_paths));
        findings.extend(private_registries(source));
        if source.path.ends_with(".rs") {
            findings.extend(length(source));
            findings.extend(forbidden_macros(source));
            findings.extend(unsafe_without_reason(source));
            findings.extend(impure(source));
            findings.extend(crate_docs(source));
        }
        findings.extend(lints(source));
    }
    findings
}

/// Lines with their numbers from 1.
fn lines(source: &Source) -> impl Iterator<Item = (usize, &str)> {
    source
        .text
        .lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line))
}

/// Lines that are code, roughly: not comments.
fn code(source: &Source) -> impl Iterator<Item = (usize, &str)> {
    lines(source).filter(|(_, line)| !line.trim_start().starts_with("//"))
}

fn length(source: &Source) -> Option<Finding> {
    let count = source.text.lines().count();
    let ours = source.path.starts_with("crates/") || source.path.starts_with("xtask/");
    let excused = LONG_FILES.iter().any(|(path, _)| *path == source.path);
    let message =
        || format!("{count} lines; split it by subject (limit {LINES_MAX}, exceptions in tidy/sources.rs)");
    (ours && !excused && count > LINES_MAX).then(|| Finding::new(&source.path, message()))
}

fn forbidden_macros(source: &Source) -> Vec<Finding> {
    let hits = code(source).filter_map(|(number, line)| {
        let word = FORBIDDEN_MACROS.iter().find(|word| line.contains(*word))?;
        Some(Finding::at(
            &source.path,
            number,
            format!("{word}…) does not belong into a commit"),
        ))
    });
    hits.collect()
}

fn paths_of_machines(source: &Source, machine_paths: &[String]) -> Vec<Finding> {
    let words = || {
        HOMES
            .iter()
            .copied()
            .chain(machine_paths.iter().map(String::as_str))
    };
    let hits = lines(source).filter_map(|(number, line)| {
        let word = words().find(|word| holds_path(line, word))?;
        Some(Finding::at(
            &source.path,
            number,
            format!("path of one machine ({word})"),
        ))
    });
    hits.collect()
}

/// Whether the line holds the path as a path, not as the end of a longer one or of a URL.
fn holds_path(line: &str, path: &str) -> bool {
    let starts = |at: usize| {
        !line[..at]
            .chars()
            .next_back()
            .is_some_and(|c| c.is_alphanumeric() || matches!(c, '.' | '/' | '-' | '_' | '}'))
    };
    let ends = |at: usize| {
        path.ends_with('/')
            || !line[at + path.len()..]
                .chars()
                .next()
                .is_some_and(|c| c.is_alphanumeric() || matches!(c, '-' | '_'))
    };
    line.match_indices(path).any(|(at, _)| starts(at) && ends(at))
}

/// Package sources that only one network has: indexes in pip files, hosts in lock files, npm and cargo settings.
fn private_registries(source: &Source) -> Vec<Finding> {
    let file = source.path.rsplit('/').next().unwrap_or_default();
    let place_marks: &[&str] = match file {
        "package-lock.json" | "npm-shrinkwrap.json" => &["\"resolved\": \""],
        "Cargo.lock" => &["source = \"registry+", "source = \"git+"],
        _ if file.starts_with("requirements") => &["--index-url", "--extra-index-url", "-i http", " @ "],
        ".npmrc" => &["registry"],
        _ => return Vec::new(),
    };
    let hits = lines(source).filter_map(|(number, line)| {
        let (_, rest) = place_marks.iter().find_map(|mark| line.split_once(mark))?;
        let host = rest.split_once("://").map_or("", |(_, rest)| {
            rest.split(['/', '"', '?', ' ']).next().unwrap_or("")
        });
        let message = format!("package source {host:?} is not a public registry");
        (!PUBLIC_HOSTS.contains(&host)).then(|| Finding::at(&source.path, number, message))
    });
    hits.collect()
}

fn unsafe_without_reason(source: &Source) -> Vec<Finding> {
    const MARKS: [&str; 2] = [concat!("unsafe", " {"), concat!("unsafe", " impl")];
    let all: Vec<&str> = source.text.lines().collect();
    let hits = code(source).filter_map(|(number, line)| {
        MARKS.iter().find(|mark| line.contains(*mark))?;
        // On the line, or in the lines just above: a comment may run over several.
        let reason = all[number.saturating_sub(6)..number]
            .iter()
            .any(|line| line.contains("SAFETY:"));
        (!reason).then(|| {
            Finding::at(
                &source.path,
                number,
                "unsafe code needs a `// SAFETY:` comment above it",
            )
        })
    });
    hits.collect()
}

fn impure(source: &Source) -> Vec<Finding> {
    let pure = PURE_CRATES
        .iter()
        .any(|name| source.path.starts_with(&format!("crates/{name}/src/")));
    if !pure || source.path.ends_with("/tests.rs") || source.path.contains("/tests/") {
        return Vec::new();
    }
    // By custom, tests inside a file stand at its end.
    let code = code(source).take_while(|(_, line)| !line.starts_with("#[cfg(test)]"));
    let hits = code.filter_map(|(number, line)| {
        let word = IMPURE.iter().find(|word| line.contains(*word))?;
        Some(Finding::at(
            &source.path,
            number,
            format!("{word} in a pure crate; let the caller pass it in"),
        ))
    });
    hits.collect()
}

fn crate_docs(source: &Source) -> Option<Finding> {
    let mut parts = source.path.rsplit('/');
    let root = matches!(parts.next(), Some("lib.rs" | "main.rs")) && parts.next() == Some("src");
    let documented = source.text.trim_start().starts_with("//!");
    (root && !documented).then(|| {
        Finding::new(
            &source.path,
            "must begin with //! docs that say what the crate is for",
        )
    })
}

fn lints(source: &Source) -> Option<Finding> {
    let manifest = source.path.ends_with("/Cargo.toml") && !source.path.contains("/fuzz/");
    let inherits = source.text.contains("[lints]\nworkspace = true");
    (manifest && !inherits).then(|| {
        Finding::new(
            &source.path,
            "must take the workspace lints: [lints] workspace = true",
        )
    })
}

#[cfg(test)]
mod tests;
