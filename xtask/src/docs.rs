//! `cargo xtask docs`: reference pages that `holdfast` and `holdfast-edge` write about themselves.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::args::Args;
use crate::paths;
use crate::process::output;
use crate::say;
use crate::setup;

pub(crate) const HELP: &str = "\
Usage: cargo xtask docs [--check]

Builds holdfast and holdfast-edge and has them write their reference pages (command line, configuration with an
example file, errors) and the OpenAPI document. `holdfast internal docs --out DIR` and `holdfast-edge internal docs
--out DIR` write them with their paths in the repository, such as docs/reference/config.md and openapi/hub.json.

Options:
  --check   change nothing; fail when a page in the repository is missing or old";

pub(crate) fn run(mut args: Args) -> Result<()> {
    let check = args.flag("--check");
    args.finish()?;
    setup::compiler()?;
    setup::build_holdfast()?;
    setup::build_edge()?;
    let pages = generate()?;
    if check { compare(&pages) } else { write(&pages) }
}

/// Checks freshness with the binary that is already built.
pub(crate) fn check_built() -> Result<()> {
    compare(&generate()?)
}

/// A page: its path relative to the root, and its content.
type Page = (PathBuf, Vec<u8>);

fn generate() -> Result<Vec<Page>> {
    let dir = paths::target().join("xtask-docs");
    if dir.exists() {
        std::fs::remove_dir_all(&dir).with_context(|| format!("cannot empty {}", dir.display()))?;
    }
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    output(
        Command::new(paths::holdfast())
            .args(["internal", "docs", "--out"])
            .arg(&dir),
    )
    .context("holdfast cannot write its reference pages")?;
    output(
        Command::new(paths::edge())
            .args(["internal", "docs", "--out"])
            .arg(&dir),
    )
    .context("holdfast-edge cannot write its reference pages")?;
    let mut pages = Vec::new();
    collect(&dir, &dir, &mut pages)?;
    if pages.is_empty() {
        bail!("holdfast internal docs wrote no page");
    }
    Ok(pages)
}

fn collect(base: &Path, dir: &Path, pages: &mut Vec<Page>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(base, &path, pages)?;
        } else {
            let content = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            pages.push((path.strip_prefix(base)?.to_owned(), content));
        }
    }
    pages.sort();
    Ok(())
}

fn write(pages: &[Page]) -> Result<()> {
    for (path, content) in pages {
        let full = paths::root().join(path);
        if std::fs::read(&full).is_ok_and(|old| old == *content) {
            continue;
        }
        if let Some(dir) = full.parent() {
            std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        std::fs::write(&full, content).with_context(|| format!("cannot write {}", full.display()))?;
        say(&format!("wrote {}", path.display()));
    }
    for path in left_over(&paths::root(), pages) {
        say(&format!("no longer generated, remove it: {}", path.display()));
    }
    say(&format!("docs: {} pages are fresh", pages.len()));
    Ok(())
}

fn compare(pages: &[Page]) -> Result<()> {
    let root = paths::root();
    let old = pages
        .iter()
        .filter(|(path, content)| !std::fs::read(root.join(path)).is_ok_and(|present| present == *content));
    let mut faults: Vec<String> = old.map(|(path, _)| path.display().to_string()).collect();
    faults.extend(
        left_over(&root, pages)
            .iter()
            .map(|path| format!("{} (no longer generated)", path.display())),
    );
    if !faults.is_empty() {
        bail!(
            "these pages are not fresh; run: cargo xtask docs\n  {}",
            faults.join("\n  ")
        );
    }
    say(&format!("docs: {} pages are fresh", pages.len()));
    Ok(())
}

/// Files in `docs/reference`, which holds generated pages only, that are not generated.
fn left_over(root: &Path, pages: &[Page]) -> Vec<PathBuf> {
    let generated: BTreeSet<&PathBuf> = pages.iter().map(|(path, _)| path).collect();
    let Ok(entries) = std::fs::read_dir(root.join("docs/reference")) else {
        return Vec::new();
    };
    let present = entries
        .flatten()
        .map(|entry| Path::new("docs/reference").join(entry.file_name()));
    present.filter(|path| !generated.contains(path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_pages_left_over() {
        let root = std::env::temp_dir().join(format!("holdfast-docs-test-{}", std::process::id()));
        std::fs::create_dir_all(root.join("docs/reference")).unwrap();
        std::fs::write(root.join("docs/reference/old.md"), "x").unwrap();
        std::fs::write(root.join("docs/reference/cli.md"), "x").unwrap();
        let pages = [(PathBuf::from("docs/reference/cli.md"), b"x".to_vec())];
        assert_eq!(left_over(&root, &pages), [PathBuf::from("docs/reference/old.md")]);
        std::fs::remove_dir_all(root).unwrap();
    }
}
