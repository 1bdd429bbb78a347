//! What suite and demo of the edge runtime need: a container engine and a registry of our own, and images.
//!
//! The engine is Debian's `dockerd` with a data folder and a socket of its own: an engine that a person uses is never
//! touched, since an edge device removes the containers of another one it finds there. Nothing of it stays behind.

pub(crate) mod engine;
pub(crate) mod images;
pub(crate) mod network;
pub(crate) mod registry;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::paths;
use crate::process::output;

/// Where images and what they are made of are kept.
pub(crate) fn cache() -> PathBuf {
    paths::target().join("edge")
}

/// Container engines need root.
pub(crate) fn need_root() -> Result<()> {
    if output(Command::new("id").arg("-u"))?.trim() == "0" {
        return Ok(());
    }
    bail!(
        "this starts a container engine of its own, which needs root. Run it as root on Debian or Ubuntu \
         (`sudo --preserve-env=PATH,HOME cargo xtask …`, or as root in a virtual machine), where what is missing is \
         installed; on other systems install Docker Engine, docker-registry and debootstrap first"
    )
}
