//! Listening sockets, and what to do when one cannot be had.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::TcpListener;

use holdfast_program::failure::{Failure, Kind};

/// A port with the words for its messages.
#[derive(Clone, Copy)]
pub(super) struct Purpose {
    /// What listens there.
    pub(super) name: &'static str,
    /// Flag that chooses another one.
    pub(super) flag: &'static str,
    /// Port that SDKs expect, if they expect one.
    pub(super) fixed: Option<u16>,
}

pub(super) const MQTT: Purpose = Purpose {
    name: "MQTT over TLS",
    flag: "--mqtt-port",
    fixed: Some(8883),
};

pub(super) const AMQP: Purpose = Purpose {
    name: "AMQP over TLS",
    flag: "--amqp-port",
    fixed: Some(5671),
};

pub(super) const AMQP_PLAIN: Purpose = Purpose {
    name: "AMQP without TLS",
    flag: "--amqp-plain",
    fixed: None,
};

pub(super) const HTTPS: Purpose = Purpose {
    name: "HTTPS",
    flag: "--https-port",
    fixed: Some(443),
};

pub(super) const BLOB: Purpose = Purpose {
    name: "the blob store",
    flag: "--blob-port",
    // No SDK expects one, since signatures name it; the flag takes a port all the same.
    fixed: Some(0),
};

pub(super) const BLOB_PLAIN: Purpose = Purpose {
    name: "the blob store without TLS",
    flag: "blob.plain =",
    fixed: None,
};

pub(super) const MQTT_PLAIN: Purpose = Purpose {
    name: "MQTT without TLS",
    flag: "--mqtt-plain",
    fixed: None,
};

pub(super) const ADMIN: Purpose = Purpose {
    name: "health and metrics",
    flag: "--admin",
    fixed: None,
};

/// Opens one socket per address, all on one port; port 0 is drawn once. No address means all of them.
pub(super) fn bind_all(
    addresses: &[IpAddr],
    port: u16,
    purpose: Purpose,
) -> anyhow::Result<Vec<TcpListener>> {
    if addresses.is_empty() {
        let all = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        return match holdfast_heads::listener::bind(all) {
            Ok(listener) => Ok(vec![listener]),
            // No IPv6 on this machine.
            Err(error) if is_no_ipv6(&error) => {
                Ok(vec![bind((Ipv4Addr::UNSPECIFIED, port).into(), purpose)?])
            }
            Err(error) => Err(refused(all, purpose, error).into()),
        };
    }
    let mut port = port;
    let mut listeners = Vec::new();
    for address in addresses {
        let listener = bind(SocketAddr::new(*address, port), purpose)?;
        port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Opens one socket.
pub(super) fn bind(address: SocketAddr, purpose: Purpose) -> anyhow::Result<TcpListener> {
    holdfast_heads::listener::bind(address).map_err(|error| refused(address, purpose, error).into())
}

fn is_no_ipv6(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
}

fn refused(address: SocketAddr, purpose: Purpose, error: io::Error) -> Failure {
    let Purpose { name, flag, fixed } = purpose;
    let port = address.port();
    let other = match fixed {
        Some(_) => format!("{flag} PORT chooses another port (0 takes any free one)"),
        None => format!("{flag} ADDRESS:PORT chooses another address"),
    };
    let sdk = match fixed {
        Some(fixed) if fixed == port => format!("; SDK programs expect {fixed}, so redirect that port then"),
        _ => String::new(),
    };
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("stop the program that uses it (ss -ltnp 'sport = :{port}' shows it), or: {other}{sdk}")
        }
        io::ErrorKind::PermissionDenied => format!(
            "ports below 1024 need a right: run `setcap cap_net_bind_service=+ep $(command -v holdfast)` once, or as root, or: {other}{sdk}"
        ),
        io::ErrorKind::AddrNotAvailable => {
            "the address is not one of this machine; without --listen the hub listens on all of them"
                .to_owned()
        }
        _ => other,
    };
    Failure::new(
        Kind::Failed,
        format!("cannot listen on {address} for {name}: {error}"),
    )
    .hint(hint)
}
