//! Changelog fragments: `changelog.d/NAME.KIND.md` with a section line.

use super::{Finding, Source};

const KINDS: &[&str] = &["breaking", "security", "feature", "enhancement", "fix"];
const SECTIONS: &[&str] = &["Hub", "Provisioning", "Edge", "Portal", "Compatibility"];

pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let fragments = sources
        .iter()
        .filter_map(|source| Some((source, source.path.strip_prefix("changelog.d/")?)))
        .filter(|(_, name)| *name != "README.md");
    fragments
        .filter_map(|(source, name)| Some(Finding::new(&source.path, fault(name, &source.text)?)))
        .collect()
}

/// What is wrong with one fragment.
fn fault(file: &str, text: &str) -> Option<String> {
    let parts: Vec<&str> = file.split('.').collect();
    let [name, kind, "md"] = parts[..] else {
        return Some(format!(
            "must be named NAME.KIND.md, KIND one of {}",
            KINDS.join(", ")
        ));
    };
    if name.is_empty()
        || !name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    {
        return Some("the name must be lower-case words joined by hyphens".to_owned());
    }
    if !KINDS.contains(&kind) {
        return Some(format!("kind {kind:?} is not one of {}", KINDS.join(", ")));
    }
    let section = text
        .lines()
        .next()
        .and_then(|line| line.strip_prefix("Section: "));
    if !section.is_some_and(|section| SECTIONS.contains(&section)) {
        return Some(format!(
            "the first line must be `Section: X`, X one of {}",
            SECTIONS.join(", ")
        ));
    }
    if text.lines().skip(1).all(|line| line.trim().is_empty()) {
        return Some("there is no text below the section line".to_owned());
    }
    let migration = text.lines().any(|line| line.starts_with("Migration:"));
    (kind == "breaking" && !migration)
        .then(|| "a breaking change needs a paragraph that starts with `Migration:`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_fragments_pass() {
        assert_eq!(fault("twin-etag.fix.md", "Section: Hub\n\nText."), None);
        assert_eq!(
            fault("x.breaking.md", "Section: Edge\n\nText.\n\nMigration: do this."),
            None
        );
    }

    #[test]
    fn bad_fragments_are_found() {
        for (file, text, expected) in [
            ("twin.md", "Section: Hub\n\nText.", "NAME.KIND.md"),
            ("Twin.fix.md", "Section: Hub\n\nText.", "lower-case"),
            ("twin.bugfix.md", "Section: Hub\n\nText.", "bugfix"),
            ("twin.fix.md", "Text.", "first line"),
            ("twin.fix.md", "Section: Cloud\n\nText.", "first line"),
            ("twin.fix.md", "Section: Hub\n\n", "no text"),
            ("twin.breaking.md", "Section: Hub\n\nText.", "Migration:"),
        ] {
            let fault = fault(file, text).unwrap_or_default();
            assert!(fault.contains(expected), "{file}: {fault:?}");
        }
    }

    #[test]
    fn only_fragments_are_looked_at() {
        let source = |path: &str| Source {
            path: path.to_owned(),
            text: String::new(),
        };
        let found = check(&[
            source("changelog.d/README.md"),
            source("docs/x.md"),
            source("changelog.d/x.txt"),
        ]);
        assert_eq!(found.len(), 1);
    }
}
