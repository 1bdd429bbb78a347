//! Where an engine listens.

use std::fmt;
use std::path::PathBuf;

/// Address of a container engine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Endpoint {
    /// A unix socket, `unix:///var/run/docker.sock`.
    Unix(PathBuf),
    /// Plain HTTP, `tcp://127.0.0.1:2375` or `http://127.0.0.1:2375`. Whoever reaches it owns the machine.
    Tcp {
        /// Host name or address.
        host: String,
        /// Port; 2375 by default.
        port: u16,
    },
}

/// An address that is none.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{given:?} is no address of a container engine: write unix:///PATH/TO/SOCKET or tcp://HOST:PORT")]
pub struct EndpointError {
    /// What was given.
    pub given: String,
}

const PORT: u16 = 2375;

impl Endpoint {
    /// Reads `unix:///path`, `tcp://host:port`, `http://host:port` or a bare absolute path.
    ///
    /// # Errors
    /// [`EndpointError`] for anything else.
    pub fn parse(text: &str) -> Result<Self, EndpointError> {
        let error = || EndpointError {
            given: text.to_owned(),
        };
        let trimmed = text.trim();
        if let Some(path) = trimmed
            .strip_prefix("unix://")
            .or_else(|| trimmed.starts_with('/').then_some(trimmed))
        {
            return if path.len() > 1 && path.starts_with('/') {
                Ok(Self::Unix(PathBuf::from(path)))
            } else {
                Err(error())
            };
        }
        let rest = trimmed
            .strip_prefix("tcp://")
            .or_else(|| trimmed.strip_prefix("http://"))
            .ok_or_else(error)?;
        let authority = rest.trim_end_matches('/');
        let (host, port) = match authority.rsplit_once(':') {
            // `[::1]` has colons and no port.
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| error())?),
            _ => (authority, PORT),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || host.contains(['/', '@', ' ']) {
            return Err(error());
        }
        Ok(Self::Tcp {
            host: host.to_owned(),
            port,
        })
    }

    /// What stands in the `Host` header.
    pub(crate) fn authority(&self) -> String {
        match self {
            // The socket has no name; engines want the header and ignore it.
            Self::Unix(_) => "localhost".to_owned(),
            Self::Tcp { host, port } if host.contains(':') => format!("[{host}]:{port}"),
            Self::Tcp { host, port } => format!("{host}:{port}"),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp { .. } => write!(f, "tcp://{}", self.authority()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_prints() {
        for (given, printed) in [
            ("unix:///var/run/docker.sock", "unix:///var/run/docker.sock"),
            ("/run/podman/podman.sock", "unix:///run/podman/podman.sock"),
            ("tcp://10.0.0.1:2376", "tcp://10.0.0.1:2376"),
            ("http://engine/", "tcp://engine:2375"),
            ("tcp://[::1]:2375", "tcp://[::1]:2375"),
            ("tcp://[::1]", "tcp://[::1]:2375"),
        ] {
            assert_eq!(Endpoint::parse(given).unwrap().to_string(), printed, "{given}");
        }
    }

    #[test]
    fn refuses_the_rest() {
        for given in [
            "",
            "unix://",
            "unix:///",
            "unix://relative",
            "https://host",
            "fd://x",
            "tcp://",
            "tcp://:1",
            "tcp://h:99999",
            "tcp://u@h:1",
        ] {
            let error = Endpoint::parse(given).unwrap_err().to_string();
            assert!(error.contains("unix:///"), "{given}: {error}");
        }
    }
}
