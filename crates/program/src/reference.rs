//! Pages that a program writes about itself, from its code: configuration, an example of it, the command line.
//!
//! The doc comments of the configuration's fields are the text. `cargo xtask docs` has both programs write their pages.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Context as _;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

pub mod schema;

use schema::{Notation, kind, members, one_line, resolve};

/// First line of every page.
pub const NOTICE: &str = "<!-- Made by `cargo xtask docs` from the source code. Do not edit. -->\n";

/// Width of comments in the example file.
const EXAMPLE_WIDTH: usize = 110;

/// Writes pages below `out`, each with its path in the repository.
///
/// # Errors
/// When a file cannot be written.
pub fn write(out: &Path, pages: &[(&str, String)]) -> anyhow::Result<()> {
    for (name, text) in pages {
        let path = out.join(name);
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// One key of a configuration.
struct Key {
    name: String,
    kind: String,
    default: Value,
    text: String,
}

/// A table of a configuration.
struct Section {
    name: String,
    text: String,
    keys: Vec<Key>,
}

/// What can be configured, section by section.
pub struct Configuration {
    sections: Vec<Section>,
}

impl Configuration {
    /// Reads schema and defaults of `C`, whose members are the sections. `order` names the sections, the most wanted first:
    /// the schema's own order is alphabetical.
    ///
    /// # Errors
    /// When the default of `C` is nothing that JSON can hold.
    pub fn of<C: JsonSchema + Serialize + Default>(order: &[&str]) -> anyhow::Result<Self> {
        let schema = serde_json::to_value(schemars::schema_for!(C))?;
        let defaults = serde_json::to_value(C::default())?;
        Ok(Self::read(&schema, &defaults, order))
    }

    fn read(schema: &Value, defaults: &Value, order: &[&str]) -> Self {
        let mut sections = Vec::new();
        for (section, reference) in members(&schema["properties"]) {
            let definition = resolve(schema, reference);
            let keys = members(&definition["properties"]).map(|(name, property)| Key {
                name: name.clone(),
                kind: kind(schema, property, Notation::Toml),
                default: defaults[section][name].clone(),
                text: one_line(property["description"].as_str()),
            });
            sections.push(Section {
                name: section.clone(),
                text: one_line(reference["description"].as_str()),
                keys: keys.collect(),
            });
        }
        sections.sort_by_key(|section| order.iter().position(|known| *known == section.name));
        Configuration { sections }
    }

    /// The page: `introduction`, with its heading, and a table of keys for each section.
    #[must_use]
    pub fn page(&self, introduction: &str) -> String {
        let mut page = format!("{NOTICE}\n{introduction}");
        for Section { name, text, keys } in &self.sections {
            let _ = write!(
                page,
                "\n## `[{name}]`\n\n{text}\n\n| Key | Value | Default | Meaning |\n|---|---|---|---|\n"
            );
            for key in keys {
                let default = match &key.default {
                    Value::Null => "none".to_owned(),
                    value => format!("`{value}`"),
                };
                let text = key.text.replace('|', "\\|");
                let _ = writeln!(page, "| `{}` | {} | {default} | {text} |", key.name, key.kind);
            }
        }
        page
    }

    /// A file with every key and its default, below the comment `title`.
    #[must_use]
    pub fn example(&self, title: &str) -> String {
        let mut text = format!("# {title} Made by `cargo xtask docs`.\n");
        for section in &self.sections {
            let _ = write!(text, "\n# {}\n[{}]\n", section.text, section.name);
            for key in &section.keys {
                for line in wrap(&key.text, EXAMPLE_WIDTH) {
                    let _ = writeln!(text, "# {line}");
                }
                let _ = match &key.default {
                    Value::Null => writeln!(text, "# {} =", key.name),
                    value => writeln!(text, "{} = {value}", key.name),
                };
            }
        }
        text
    }

    /// What a reader would be told nothing of: sections and keys without a text, keys without a type, sections that are not
    /// in `order`. For a test, which wants none.
    #[must_use]
    pub fn unexplained(&self, order: &[&str]) -> Vec<String> {
        let mut found = Vec::new();
        for section in &self.sections {
            if section.text.is_empty() || !order.contains(&section.name.as_str()) {
                found.push(format!("[{}]", section.name));
            }
            let keys = section
                .keys
                .iter()
                .filter(|key| key.text.is_empty() || key.kind.is_empty());
            found.extend(keys.map(|key| format!("{}.{}", section.name, key.name)));
        }
        found
    }
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let mut last = lines.pop().unwrap_or_default();
        if !last.is_empty() && last.len() + 1 + word.len() > width {
            lines.push(last);
            last = String::new();
        } else if !last.is_empty() {
            last.push(' ');
        }
        last.push_str(word);
        lines.push(last);
    }
    lines
}

/// The page of a command line: `title`, exit codes, what else is to be said, and the help of every command that is shown.
#[must_use]
pub fn command_line(
    title: &str,
    exit_codes: &[(u8, &str)],
    introduction: &str,
    command: clap::Command,
) -> String {
    let mut page = format!("{NOTICE}\n# {title}\n\n## Exit codes\n\n| Code | Meaning |\n|---|---|\n");
    for (code, meaning) in exit_codes {
        let _ = writeln!(page, "| {code} | {meaning} |");
    }
    page.push_str(introduction);
    let mut command = command.term_width(100);
    command.build();
    let name = command.get_name().to_owned();
    describe(&mut page, &mut command, &name, 2);
    page
}

fn describe(page: &mut String, command: &mut clap::Command, path: &str, level: usize) {
    let help = command.render_help().to_string();
    let mut in_global = false;
    let lines = help.lines().map(str::trim_end).filter(|line| {
        // Printed once, for the program itself.
        if level > 2 && !line.is_empty() && !line.starts_with(' ') {
            in_global = *line == "Global options:";
        }
        !in_global
    });
    let lines: Vec<&str> = lines.collect();
    let _ = write!(
        page,
        "\n{} {path}\n\n```text\n{}\n```\n",
        "#".repeat(level),
        lines.join("\n").trim()
    );
    let names: Vec<String> = command
        .get_subcommands()
        .filter(|child| !child.is_hide_set() && child.get_name() != "help")
        .map(|child| child.get_name().to_owned())
        .collect();
    for name in names {
        if let Some(child) = command.find_subcommand_mut(&name) {
            describe(page, child, &format!("{path} {name}"), (level + 1).min(4));
        }
    }
}

#[cfg(test)]
mod tests;
