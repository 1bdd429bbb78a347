//! Reference pages made from the code: configuration and command line.

use std::path::Path;

use holdfast_program::reference::{self, Configuration};

use super::own::Config;

/// Order of the sections, the most wanted first.
const ORDER: &[&str] = &[
    "device",
    "provisioning",
    "tpm",
    "upstream",
    "hub",
    "certificates",
    "engine",
    "agent",
    "images",
    "api",
    "observe",
];

/// What `holdfast_program::failure::Kind` means here.
const EXIT_CODES: &[(u8, &str)] = &[
    (0, "done"),
    (1, "failed for another reason; `check`: a check failed"),
    (2, "the command line or a configuration value is wrong"),
    (3, "there is no such module"),
    (4, "the daemon or the hub does not let the caller in"),
    (
        5,
        "the deployment wants it otherwise, or another daemon uses the folder",
    ),
    (6, "the daemon, the container engine or the hub cannot be reached"),
    (7, "a file of the daemon cannot be read or written"),
    (
        153,
        "`run`: the device was provisioned anew, start the daemon again",
    ),
];

/// Writes every page below `out`, with its path in the repository.
///
/// # Errors
/// When a file cannot be written.
pub fn write_all(out: &Path) -> anyhow::Result<()> {
    let configuration = Configuration::of::<Config>(ORDER)?;
    let pages = [
        ("docs/reference/edge-config.md", config_page(&configuration)),
        ("docs/reference/edge-config-example.toml", example(&configuration)),
        ("docs/reference/edge-cli.md", cli_page()),
    ];
    reference::write(out, &pages)
}

fn config_page(configuration: &Configuration) -> String {
    configuration.page(
        "# Configuration of `holdfast-edge`\n\n\
         The daemon reads `--config FILE`, else the variable `HOLDFAST_EDGE_CONFIG`, else `/etc/holdfast/edge.toml`, else \
         `/etc/aziot/config.toml`. A file of the original runtime (it has `source` in `[provisioning]`) is understood as it \
         is; keys in it that do nothing here are named in warnings, and a table `[holdfast]` in it may hold `home`, `rollback`, \
         `rollback_after` and the tables `hub`, `upstream` and `observe` of this page.\n\n\
         In a file of this kind only `[provisioning]` is needed, and a key that is not listed is refused. Flags of `run` win over \
         the file. `holdfast-edge config check` tells what is wrong.\n\n\
         Durations are written with a unit: `250ms`, `30s`, `5m`, `12h`, `7d`, `1h30m`. \
         [edge-config-example.toml](edge-config-example.toml) holds every key with its default.\n",
    )
}

fn example(configuration: &Configuration) -> String {
    configuration.example("Every key of holdfast-edge with its default.")
}

fn cli_page() -> String {
    let title = "The command line of `holdfast-edge`";
    reference::command_line(title, EXIT_CODES, "", crate::commands::command())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_the_default_configuration() {
        let example = example(&Configuration::of::<Config>(ORDER).unwrap());
        assert_eq!(
            toml::from_str::<Config>(&example).unwrap(),
            Config::default(),
            "{example}"
        );
    }

    #[test]
    fn every_key_is_explained() {
        let configuration = Configuration::of::<Config>(ORDER).unwrap();
        assert_eq!(configuration.unexplained(ORDER), [""; 0]);
    }
}
