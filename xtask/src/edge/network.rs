//! A bridge with a network namespace on it: a hub's address, and a machine for an edge device.

use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::{Result, bail};

use crate::process::output;

/// A bridge in this network, and a namespace joined to it. Both go when it is dropped.
pub(crate) struct Network {
    number: u8,
}

impl Network {
    /// Takes the first free number: it is part of names and addresses.
    pub(crate) fn make() -> Result<Self> {
        let mut last = None;
        for number in 1..=u8::MAX - 1 {
            let made = Self { number };
            // Without one of its own a bridge takes the lowest address of its ports, which changes when a port goes.
            let own = format!("02:48:46:00:01:{number:02x}");
            match ip(&["link", "add", &made.bridge(), "address", &own, "type", "bridge"]) {
                Ok(()) => {
                    made.join()?;
                    return Ok(made);
                }
                Err(error) => {
                    last = Some(error);
                    // Not ours to delete.
                    std::mem::forget(made);
                }
            }
        }
        match last {
            Some(error) => Err(error.context("cannot make a network bridge; network namespaces need root")),
            None => bail!("there is no free number for a network bridge"),
        }
    }

    fn join(&self) -> Result<()> {
        let (bridge, namespace) = (self.bridge(), self.namespace());
        let (outer, inner) = (format!("{namespace}o"), format!("{namespace}i"));
        ip(&[
            "address",
            "add",
            &format!("{}/24", self.address()),
            "dev",
            &bridge,
        ])?;
        ip(&["link", "set", &bridge, "up"])?;
        ip(&["netns", "add", &namespace])?;
        ip(&["link", "add", &outer, "type", "veth", "peer", "name", &inner])?;
        ip(&["link", "set", &outer, "master", &bridge, "up"])?;
        ip(&["link", "set", &inner, "netns", &namespace])?;
        ip(&["-n", &namespace, "link", "set", "lo", "up"])?;
        ip(&[
            "-n",
            &namespace,
            "address",
            "add",
            &format!("10.214.{}.2/24", self.number),
            "dev",
            &inner,
        ])?;
        ip(&["-n", &namespace, "link", "set", &inner, "up"])
    }

    fn bridge(&self) -> String {
        format!("hfd{}", self.number)
    }

    /// Name of the namespace.
    pub(crate) fn namespace(&self) -> String {
        format!("hfd{}m", self.number)
    }

    /// Where hub and registry listen.
    pub(crate) fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 214, self.number, 1)
    }

    /// A program that runs in the namespace.
    pub(crate) fn inside(&self, program: &std::path::Path) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.namespace()))
            .arg(program);
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let namespace = self.namespace();
        let _ = ip(&["link", "delete", &format!("{namespace}o")]);
        let _ = ip(&["netns", "delete", &namespace]);
        let _ = ip(&["link", "delete", &self.bridge()]);
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    output(Command::new("ip").args(arguments)).map(drop)
}
