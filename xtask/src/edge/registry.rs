//! An image registry on loopback, with a user and a password.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process::{Service, output};

pub(crate) const USER: &str = "holdfast";
pub(crate) const PASSWORD: &str = "only-for-tests";
const PATIENCE: Duration = Duration::from_secs(20);

/// A running registry. Stopped when dropped.
pub(crate) struct Registry {
    _service: Service,
    address: SocketAddr,
}

impl Registry {
    /// Starts a registry that keeps its images in `images`.
    pub(crate) fn start(images: &Path, address: Ipv4Addr, dir: &Path, log_dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        // Free until somebody else takes it between here and the registry's start, which is then told.
        let address = TcpListener::bind((address, 0))?.local_addr()?;
        let config = dir.join("registry.yml");
        std::fs::write(&config, configuration(images, address, &passwords(dir)?))
            .with_context(|| format!("cannot write {}", config.display()))?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config);
        let mut service = Service::start("registry", &mut command, log_dir)?;
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(address).is_err() {
            if !service.is_running() {
                bail!("docker-registry ended at its start:\n{}", service.log_tail());
            }
            if Instant::now() > deadline {
                bail!(
                    "docker-registry does not listen on {address}:\n{}",
                    service.log_tail()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(Self {
            _service: service,
            address,
        })
    }

    /// `127.0.0.1:40123`: what names of images begin with.
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }
}

/// A file of users as `htpasswd -B` makes it. Perl, which every Debian has, knows bcrypt through the C library.
fn passwords(dir: &Path) -> Result<PathBuf> {
    const SALT: &str = "$2b$05$holdfastholdfastholdfO";
    let hash = output(Command::new("perl").args(["-e", "print crypt($ARGV[0], $ARGV[1])", PASSWORD, SALT]))?;
    if !hash.starts_with("$2b$") {
        bail!("perl's crypt knows no bcrypt on this machine; it answered {hash:?}");
    }
    let file = dir.join("htpasswd");
    std::fs::write(&file, format!("{USER}:{hash}\n"))
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

fn configuration(images: &Path, address: SocketAddr, passwords: &Path) -> String {
    format!(
        "version: 0.1\n\
         log: {{level: warn, accesslog: {{disabled: true}}}}\n\
         storage: {{filesystem: {{rootdirectory: {}}}}}\n\
         http: {{addr: \"{address}\", secret: for-one-run}}\n\
         auth: {{htpasswd: {{realm: holdfast, path: {}}}}}\n",
        images.display(),
        passwords.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_hashed() {
        let dir = std::env::temp_dir().join(format!("holdfast-registry-test-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let text = std::fs::read_to_string(passwords(&dir).unwrap()).unwrap();
        assert!(text.starts_with("holdfast:$2b$05$") && text.trim_end().len() == "holdfast:".len() + 60);
        assert!(!text.contains(PASSWORD));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
