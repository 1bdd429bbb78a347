//! Where a TPM is, in the words of the TPM software stack (TCTI names).

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Device node of the kernel's resource manager.
const RESOURCE_MANAGER: &str = "/dev/tpmrm0";
/// Where `swtpm` listens unless it is told.
const SWTPM_HOST: &str = "localhost";
const SWTPM_PORT: u16 = 2321;
/// What the software stack calls its own modules; a name may be given that way.
const MODULE_PREFIX: &str = "libtss2-tcti-";

/// Where a TPM is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// A device node: `/dev/tpmrm0`, which several programs can use at once, or `/dev/tpm0`.
    Device(PathBuf),
    /// `swtpm` on TCP. Nothing is encrypted, so it must be on this machine.
    SwtpmTcp {
        /// Host name or address.
        host: String,
        /// Port of its data channel.
        port: u16,
    },
    /// `swtpm` on a unix socket.
    SwtpmUnix(PathBuf),
}

/// A text that names no TPM.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AddressError {
    /// A way to a TPM that is not supported.
    #[error("there is no way to a TPM called {0:?}")]
    UnknownKind(String),
    /// `device:` without an absolute path.
    #[error("is not the path of a device node")]
    NotPath,
    /// `swtpm:` with something else than `host`, `port` and `path`.
    #[error("{0:?} is not a setting of swtpm")]
    UnknownSetting(String),
    /// `port` is none.
    #[error("{0:?} is not a port")]
    NotPort(String),
    /// `swtpm:` with `path` and `host` or `port`.
    #[error("swtpm is either at a path or at host and port")]
    Both,
}

impl Default for Address {
    fn default() -> Self {
        Address::Device(RESOURCE_MANAGER.into())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Device(path) => write!(f, "device:{}", path.display()),
            Address::SwtpmTcp { host, port } => write!(f, "swtpm:host={host},port={port}"),
            Address::SwtpmUnix(path) => write!(f, "swtpm:path={}", path.display()),
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    /// Reads `device:/dev/tpmrm0`, `swtpm:host=localhost,port=2321`, `swtpm:path=/run/swtpm.sock`, the path of a device node
    /// alone, or a kind alone for its defaults. An empty text is the default.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(Address::default());
        }
        if text.starts_with('/') {
            return Ok(Address::Device(text.into()));
        }
        let (name, settings) = text.split_once(':').unwrap_or((text, ""));
        let kind = name.strip_prefix(MODULE_PREFIX).unwrap_or(name);
        let kind = kind.split(".so").next().unwrap_or(kind);
        match (kind, settings) {
            ("device", "") => Ok(Address::default()),
            ("device", path) if path.starts_with('/') => Ok(Address::Device(path.into())),
            ("device", _) => Err(AddressError::NotPath),
            ("swtpm", settings) => swtpm(settings),
            (other, _) => Err(AddressError::UnknownKind(other.to_owned())),
        }
    }
}

fn swtpm(settings: &str) -> Result<Address, AddressError> {
    let (mut host, mut port, mut path) = (None, None, None);
    for setting in settings.split(',').filter(|setting| !setting.is_empty()) {
        match setting.split_once('=') {
            Some(("host", value)) => host = Some(value.to_owned()),
            Some(("port", value)) => {
                port = Some(
                    value
                        .parse()
                        .map_err(|_| AddressError::NotPort(value.to_owned()))?,
                );
            }
            Some(("path", value)) if value.starts_with('/') => path = Some(PathBuf::from(value)),
            Some(("path", _)) => return Err(AddressError::NotPath),
            _ => return Err(AddressError::UnknownSetting(setting.to_owned())),
        }
    }
    match (path, host, port) {
        (Some(path), None, None) => Ok(Address::SwtpmUnix(path)),
        (Some(_), ..) => Err(AddressError::Both),
        (None, host, port) => Ok(Address::SwtpmTcp {
            host: host.unwrap_or_else(|| SWTPM_HOST.to_owned()),
            port: port.unwrap_or(SWTPM_PORT),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Address, AddressError> {
        text.parse()
    }

    fn tcp(host: &str, port: u16) -> Result<Address, AddressError> {
        Ok(Address::SwtpmTcp {
            host: host.to_owned(),
            port,
        })
    }

    #[test]
    fn what_the_software_stack_writes_is_read() {
        let device = |path: &str| Ok(Address::Device(path.into()));
        for text in ["", "device", "device:", " device:/dev/tpmrm0 ", "/dev/tpmrm0"] {
            assert_eq!(read(text), device("/dev/tpmrm0"), "{text:?}");
        }
        assert_eq!(read("device:/dev/tpm1"), device("/dev/tpm1"));
        assert_eq!(read("libtss2-tcti-device.so.0:/dev/tpm0"), device("/dev/tpm0"));
        assert_eq!(read("swtpm"), tcp("localhost", 2321));
        assert_eq!(read("swtpm:port=7"), tcp("localhost", 7));
        assert_eq!(read("swtpm:host=::1,port=9"), tcp("::1", 9));
        assert_eq!(
            read("swtpm:path=/run/t.sock"),
            Ok(Address::SwtpmUnix("/run/t.sock".into()))
        );
    }

    #[test]
    fn what_is_none_is_refused() {
        for (text, error) in [
            ("mssim:host=x", AddressError::UnknownKind("mssim".to_owned())),
            ("tabrmd", AddressError::UnknownKind("tabrmd".to_owned())),
            ("device:tpm0", AddressError::NotPath),
            ("swtpm:path=t.sock", AddressError::NotPath),
            ("swtpm:port=70000", AddressError::NotPort("70000".to_owned())),
            ("swtpm:prt=1", AddressError::UnknownSetting("prt=1".to_owned())),
            ("swtpm:path=/t,port=1", AddressError::Both),
        ] {
            assert_eq!(read(text), Err(error), "{text}");
        }
    }

    #[test]
    fn an_address_is_written_as_it_is_read() {
        for text in ["device:/dev/tpm1", "swtpm:host=h,port=1", "swtpm:path=/t.sock"] {
            assert_eq!(read(text).expect("an address").to_string(), text);
        }
    }
}
