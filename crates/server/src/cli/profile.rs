//! Which hub a command talks to.
//!
//! In this order: `--login` or `HOLDFAST_CONNECTION_STRING`; `connection.env` of `--data-dir`, `HOLDFAST_DATA_DIR` or
//! `./holdfast-data`; the profile of the user, which `holdfast serve` writes at its start.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use holdfast_model::credential::SymmetricKey;
use holdfast_program::failure::Failure;
use holdfast_wire::connection_string::{ConnectionString, Credential, Party};

use crate::serve::connection_env as variables;

/// The default data directory.
pub const DEFAULT_DATA_DIR: &str = "holdfast-data";

/// Variable of the profile that names the data directory of the hub.
const DATA_DIR: &str = "HOLDFAST_DATA_DIR";

/// Where and as whom.
#[derive(Clone, Debug)]
pub struct Login {
    /// Host name without port.
    pub host: String,
    /// Name of the policy.
    pub policy: String,
    /// Key of the policy.
    pub key: SymmetricKey,
    /// Port of HTTPS.
    pub https_port: u16,
    /// Port of MQTT over TLS.
    pub mqtt_port: u16,
    /// Address of the plain MQTT listener of the hub on this machine, if known.
    pub mqtt_plain: Option<String>,
    /// Port of AMQP over TLS.
    pub amqp_port: u16,
    /// Address of the plain AMQP listener of the hub on this machine, if known.
    pub amqp_plain: Option<String>,
    /// CA certificate to trust instead of the system's.
    pub ca: Option<PathBuf>,
    /// Where this came from, for messages.
    pub source: String,
}

/// What the command line says about the login.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// `--login`
    pub login: Option<String>,
    /// `--ca`
    pub ca: Option<PathBuf>,
    /// `--data-dir`
    pub data_dir: Option<PathBuf>,
    /// `--no-profile`
    pub no_profile: bool,
}

impl Login {
    /// The connection string of the login.
    #[must_use]
    pub fn connection_string(&self) -> String {
        let credential = Credential::Policy {
            name: self.policy.clone(),
            key: self.key.clone(),
        };
        ConnectionString {
            host: self.host.clone(),
            gateway_host: None,
            party: Party::Service,
            credential,
        }
        .reveal()
    }

    /// Finds the login for a command.
    ///
    /// # Errors
    /// When there is none, or what there is cannot be read.
    pub fn find(wanted: &Wanted) -> anyhow::Result<Login> {
        Self::find_in(wanted, variables::OWNER_CS)
    }

    /// As [`Login::find`], with the policy of the provisioning service.
    ///
    /// # Errors
    /// When there is none, or what there is cannot be read.
    pub fn find_provisioning(wanted: &Wanted) -> anyhow::Result<Login> {
        Self::find_in(wanted, variables::DPS_CS)
    }

    fn find_in(wanted: &Wanted, variable: &'static str) -> anyhow::Result<Login> {
        let profile = find_profile(wanted)?;
        let (text, source) = match (&wanted.login, &profile) {
            (Some(login), _) => (login.clone(), "--login or HOLDFAST_CONNECTION_STRING".to_owned()),
            (None, Some((values, path))) => {
                let text = values.get(variable).cloned().ok_or_else(|| {
                    Failure::usage(format!("{} has no {variable}", path.display()))
                        .hint("start `holdfast serve` again, which writes the file, or give --login")
                })?;
                (text, path.display().to_string())
            }
            (None, None) => return Err(no_login().into()),
        };
        let mut login = parse(&text).map_err(|why| {
            Failure::usage(format!(
                "the connection string from {source} is not usable: {why}"
            ))
            .hint("the form is HostName=HOST;SharedAccessKeyName=POLICY;SharedAccessKey=KEY")
        })?;
        login.source = source;
        // Ports and CA are not in a connection string; take them from the profile if it is of the same hub.
        if let Some((values, _)) = &profile
            && values
                .get(variables::HOST)
                .is_some_and(|host| host.eq_ignore_ascii_case(&login.host))
        {
            login.apply(values)?;
        }
        let environment = [
            variables::HTTPS_PORT,
            variables::MQTT_PORT,
            variables::MQTT_PLAIN,
            variables::AMQP_PORT,
            variables::AMQP_PLAIN,
            variables::CA,
        ];
        let set = environment
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), env::var(name).ok()?)));
        login.apply(&set.collect())?;
        if let Some(ca) = &wanted.ca {
            login.ca = Some(ca.clone());
        }
        Ok(login)
    }

    fn apply(&mut self, values: &BTreeMap<String, String>) -> anyhow::Result<()> {
        let port = |name: &str| -> anyhow::Result<Option<u16>> {
            let Some(text) = values.get(name).filter(|text| !text.is_empty()) else {
                return Ok(None);
            };
            let port = text
                .parse()
                .map_err(|_| Failure::usage(format!("{name}={text} is not a port number")))?;
            Ok(Some(port))
        };
        self.https_port = port(variables::HTTPS_PORT)?.unwrap_or(self.https_port);
        self.mqtt_port = port(variables::MQTT_PORT)?.unwrap_or(self.mqtt_port);
        if let Some(plain) = values.get(variables::MQTT_PLAIN) {
            self.mqtt_plain = Some(plain.clone());
        }
        self.amqp_port = port(variables::AMQP_PORT)?.unwrap_or(self.amqp_port);
        if let Some(plain) = values.get(variables::AMQP_PLAIN) {
            self.amqp_plain = Some(plain.clone());
        }
        if let Some(ca) = values.get(variables::CA).filter(|ca| !ca.is_empty()) {
            self.ca = Some(PathBuf::from(ca));
        }
        Ok(())
    }
}

/// The id scope of the provisioning service: that of the data directory that the command line names, else
/// `HOLDFAST_ID_SCOPE`, else the one of the nearest profile.
///
/// # Errors
/// When a file that is there cannot be read.
pub fn id_scope(wanted: &Wanted) -> anyhow::Result<Option<String>> {
    let of_profile = || -> anyhow::Result<Option<String>> {
        let profile = find_profile(wanted)?;
        Ok(profile.and_then(|(values, _)| values.get(variables::ID_SCOPE).cloned()))
    };
    match env::var(variables::ID_SCOPE) {
        Ok(text) if wanted.data_dir.is_none() => Ok(Some(text)),
        _ => of_profile(),
    }
}

fn no_login() -> Failure {
    Failure::usage("no hub to talk to: there is no --login, no connection.env and no profile").hint(
        "start one with `holdfast serve`, or give --login 'HostName=…;SharedAccessKeyName=…;SharedAccessKey=…' \
         (or the variable HOLDFAST_CONNECTION_STRING), or --data-dir of a running hub",
    )
}

/// Parses a service connection string.
fn parse(text: &str) -> Result<Login, String> {
    let parsed =
        ConnectionString::parse(text.trim().trim_end_matches(';')).map_err(|error| error.to_string())?;
    let (Party::Service, Credential::Policy { name, key }) = (parsed.party, parsed.credential) else {
        return Err("it is not one of a shared access policy".to_owned());
    };
    // SDKs want no port here (clients.md section 2), but a person may well write one.
    let (host, https_port) = match parsed.host.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') => {
            let port = port.parse().map_err(|_| format!("{port:?} is not a port"))?;
            (host.to_owned(), port)
        }
        _ => (parsed.host, 443),
    };
    Ok(Login {
        host,
        policy: name,
        key,
        https_port,
        mqtt_port: 8883,
        mqtt_plain: None,
        amqp_port: 5671,
        amqp_plain: None,
        ca: None,
        source: String::new(),
    })
}

/// The variables of the nearest profile and its path.
fn find_profile(wanted: &Wanted) -> anyhow::Result<Option<(BTreeMap<String, String>, PathBuf)>> {
    if let Some(dir) = &wanted.data_dir {
        let path = dir.join(variables::FILE_NAME);
        // Named by hand, so its absence is a mistake, unless --login makes it needless.
        return match read(&path)? {
            None if wanted.login.is_none() => Err(Failure::usage(format!("there is no {}", path.display()))
                .hint("is the hub started? `holdfast serve --data-dir DIR` writes the file")
                .into()),
            found => Ok(found.map(|values| (values, path))),
        };
    }
    let local = Path::new(DEFAULT_DATA_DIR).join(variables::FILE_NAME);
    if let Some(values) = read(&local)? {
        return Ok(Some((values, local)));
    }
    if wanted.no_profile {
        return Ok(None);
    }
    // The profile only points at a data directory, so that keys lie in one place.
    let Some(pointer) = user_profile() else {
        return Ok(None);
    };
    let Some(dir) = read(&pointer)?.and_then(|mut values| values.remove(DATA_DIR)) else {
        return Ok(None);
    };
    let path = Path::new(&dir).join(variables::FILE_NAME);
    Ok(read(&path)?.map(|values| (values, path)))
}

/// Points the profile of the user at a data directory.
///
/// # Errors
/// Those of the file system.
pub fn write_user_profile(data_dir: &Path) -> io::Result<()> {
    let Some(path) = user_profile() else { return Ok(()) };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut pointer = variables::ConnectionEnv::new();
    pointer.set(
        DATA_DIR,
        data_dir.to_string_lossy(),
        "The hub that was started last",
    );
    pointer.write(&path)
}

fn read(path: &Path) -> anyhow::Result<Option<BTreeMap<String, String>>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(variables::parse(&text))),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(Failure::usage(format!("cannot read {}: {error}", path.display()))
            .hint("the file belongs to the user who runs the hub; run as that user, or give --login")
            .into()),
    }
}

/// `${XDG_CONFIG_HOME:-~/.config}/holdfast/profile.env`.
#[must_use]
pub fn user_profile() -> Option<PathBuf> {
    let absolute = |name: &str| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let base = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")))?;
    Some(base.join("holdfast/profile.env"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_strings_parse() {
        let login =
            parse("HostName=hub.test;SharedAccessKeyName=owner;SharedAccessKey=MDEyMzQ1Njc4OWFiY2RlZg==")
                .unwrap();
        assert_eq!(
            (login.host.as_str(), login.policy.as_str(), login.https_port),
            ("hub.test", "owner", 443)
        );
        assert_eq!(login.key.reveal(), "MDEyMzQ1Njc4OWFiY2RlZg==");
        let login =
            parse("hostname=hub.test:9443;sharedaccesskeyname=o;sharedaccesskey=MDEyMzQ1Njc4OWFiY2RlZg==;")
                .unwrap();
        assert_eq!(login.https_port, 9443);
        assert!(parse("HostName=x").unwrap_err().contains("SharedAccessKey"));
        assert!(parse("nonsense").is_err());
        assert!(parse("HostName=h;DeviceId=d;SharedAccessKey=MDEyMzQ1Njc4OWFiY2RlZg==").is_err());
    }
}
