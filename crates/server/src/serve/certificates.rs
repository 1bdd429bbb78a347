//! The hub's private certificate authority and its server certificates.
//!
//! The authority (P-256, ten years) is made at the first start and never replaced, because devices in the field trust
//! it. It signs two server certificates, one with a P-256 key and one with an RSA key; both are valid for a year and
//! issued again, with the same key, when a third of that is left or the hub's names changed.
//!
//! ```text
//! ca.pem                       for clients
//! tls/ca.key                   stays here
//! tls/server-ec.pem|key        made at the first start
//! tls/server-rsa.pem|key       made in the background, since drawing an RSA key takes a moment
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use holdfast_program::failure::Failure;
use holdfast_program::files::{self, PRIVATE, PUBLIC};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SerialNumber,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::config::TlsConfig;
use super::data_dir::make_private_dir;
use super::rsa_key;

const CA_LIFE: Duration = Duration::days(3652);
const LEAF_LIFE: Duration = Duration::days(365);
/// Certificates start a day in the past, for devices whose clock is behind.
const BACKDATED: Duration = Duration::days(1);

/// A certificate chain with its key.
#[derive(Debug)]
pub struct ServerIdentity {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Private key of the leaf.
    pub key: PrivateKeyDer<'static>,
}

/// What listeners present, most wanted first.
#[derive(Debug, Default)]
pub struct ServerIdentities {
    /// One per kind of key.
    pub identities: Vec<ServerIdentity>,
    /// When the first of them ends, Unix seconds.
    pub not_after: i64,
}

/// Kinds of keys of the server certificates that the hub makes itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum KeyKind {
    Ecdsa,
    Rsa,
}

impl KeyKind {
    const fn stem(self) -> &'static str {
        match self {
            KeyKind::Ecdsa => "server-ec",
            KeyKind::Rsa => "server-rsa",
        }
    }

    fn generate(self) -> anyhow::Result<KeyPair> {
        Ok(match self {
            KeyKind::Ecdsa => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?,
            KeyKind::Rsa => {
                let der = rsa_key::generate_pkcs8()?;
                KeyPair::from_pkcs8_der_and_sign_algo(
                    &PrivatePkcs8KeyDer::from(der.as_slice()),
                    &rcgen::PKCS_RSA_SHA256,
                )?
            }
        })
    }
}

/// Where certificates come from, and the names they must carry.
#[derive(Clone, Debug)]
pub struct Certificates {
    data_dir: PathBuf,
    names: Vec<String>,
    provided: TlsConfig,
}

impl Certificates {
    /// Certificates of the hub in `data_dir`, for `names`; those of `provided` go first.
    #[must_use]
    pub fn new(data_dir: &Path, names: Vec<String>, provided: TlsConfig) -> Self {
        Certificates {
            data_dir: data_dir.to_owned(),
            names,
            provided,
        }
    }

    /// CA certificate that clients need; `None` when they trust the operator's own certificate anyway.
    #[must_use]
    pub fn ca_path(&self) -> Option<PathBuf> {
        match (&self.provided.ca, &self.provided.certificate) {
            (Some(ca), _) => Some(fs::canonicalize(ca).unwrap_or_else(|_| ca.clone())),
            (None, Some(_)) => None,
            (None, None) => Some(self.data_dir.join("ca.pem")),
        }
    }

    /// Makes and renews what is missing or due, except a missing RSA key; returns whether anything changed.
    ///
    /// # Errors
    /// When files cannot be read or written, or the CA certificate or key is damaged.
    pub fn ensure(&self) -> anyhow::Result<bool> {
        if self.provided.certificate.is_some() {
            return Ok(false);
        }
        let authority = self.authority()?;
        let mut changed = self.ensure_leaf(&authority, KeyKind::Ecdsa)?;
        if self.file(KeyKind::Rsa, "key").exists() {
            changed |= self.ensure_leaf(&authority, KeyKind::Rsa)?;
        }
        Ok(changed)
    }

    /// Whether [`Certificates::ensure_rsa`] has something to do.
    #[must_use]
    pub fn lacks_rsa(&self) -> bool {
        self.provided.certificate.is_none() && !self.file(KeyKind::Rsa, "key").exists()
    }

    /// Makes the RSA certificate; slow when its key is missing.
    ///
    /// # Errors
    /// As [`Certificates::ensure`].
    pub fn ensure_rsa(&self) -> anyhow::Result<bool> {
        if self.provided.certificate.is_some() {
            return Ok(false);
        }
        self.ensure_leaf(&self.authority()?, KeyKind::Rsa)
    }

    /// Reads the certificates that listeners present now.
    ///
    /// # Errors
    /// When a file is missing, damaged, or a key does not belong to its certificate.
    pub fn load(&self) -> anyhow::Result<ServerIdentities> {
        let mut pairs = Vec::new();
        if let (Some(certificate), Some(key)) = (&self.provided.certificate, &self.provided.key) {
            pairs.push((certificate.clone(), key.clone()));
            if let (Some(certificate), Some(key)) = (&self.provided.rsa_certificate, &self.provided.rsa_key) {
                pairs.push((certificate.clone(), key.clone()));
            }
        } else {
            for kind in [KeyKind::Ecdsa, KeyKind::Rsa] {
                let (certificate, key) = (self.file(kind, "pem"), self.file(kind, "key"));
                // The RSA key stands before its certificate while it is being made.
                if kind == KeyKind::Ecdsa || certificate.exists() {
                    pairs.push((certificate, key));
                }
            }
        }
        let mut loaded = ServerIdentities {
            identities: Vec::new(),
            not_after: i64::MAX,
        };
        for (certificate, key) in pairs {
            let identity = read_identity(&certificate, &key).map_err(|error| {
                Failure::usage(format!(
                    "cannot use the server certificate {}: {error:#}",
                    certificate.display()
                ))
                .hint(
                    "give a PEM chain, leaf first, and its unencrypted PEM key ([tls] in the configuration)",
                )
            })?;
            let (_, leaf) = X509Certificate::from_der(&identity.chain[0])?;
            loaded.not_after = loaded.not_after.min(leaf.validity().not_after.timestamp());
            loaded.identities.push(identity);
        }
        Ok(loaded)
    }

    fn file(&self, kind: KeyKind, extension: &str) -> PathBuf {
        self.data_dir
            .join("tls")
            .join(format!("{}.{extension}", kind.stem()))
    }

    /// Opens the authority, making it if there is none.
    fn authority(&self) -> anyhow::Result<Authority> {
        let certificate_path = self.data_dir.join("ca.pem");
        let key_path = self.data_dir.join("tls/ca.key");
        if !certificate_path.exists() {
            if key_path.exists() {
                bail!(Failure::usage(format!(
                    "{} is missing, but its key {} exists",
                    certificate_path.display(),
                    key_path.display()
                ))
                .hint("restore ca.pem from a backup, since devices trust it; or delete the key to start a new authority"));
            }
            let tls = self.data_dir.join("tls");
            make_private_dir(&tls).with_context(|| format!("cannot make {}", tls.display()))?;
            let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
            let certificate = authority_params()?.self_signed(&key)?;
            // The certificate comes last: where it stands, everything is there.
            files::write(&key_path, key.serialize_pem().as_bytes(), PRIVATE)
                .with_context(|| format!("cannot write {}", key_path.display()))?;
            files::write(&certificate_path, certificate.pem().as_bytes(), PUBLIC)
                .with_context(|| format!("cannot write {}", certificate_path.display()))?;
        }
        let pem = fs::read_to_string(&certificate_path)
            .with_context(|| format!("cannot read {}", certificate_path.display()))?;
        let key_pem =
            fs::read_to_string(&key_path).with_context(|| format!("cannot read {}", key_path.display()))?;
        let key =
            KeyPair::from_pem(&key_pem).with_context(|| format!("cannot use {}", key_path.display()))?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .with_context(|| format!("cannot use {}", certificate_path.display()))?;
        let issuer = Issuer::from_ca_cert_der(&der, key)
            .with_context(|| format!("cannot use {}", certificate_path.display()))?;
        Ok(Authority { der, issuer })
    }

    fn ensure_leaf(&self, authority: &Authority, kind: KeyKind) -> anyhow::Result<bool> {
        let (certificate_path, key_path) = (self.file(kind, "pem"), self.file(kind, "key"));
        let key = match fs::read_to_string(&key_path) {
            Ok(pem) => {
                KeyPair::from_pem(&pem).with_context(|| format!("cannot use {}", key_path.display()))?
            }
            Err(_) => {
                let key = kind.generate()?;
                files::write(&key_path, key.serialize_pem().as_bytes(), PRIVATE)
                    .with_context(|| format!("cannot write {}", key_path.display()))?;
                key
            }
        };
        let wanted: BTreeSet<String> = self.names.iter().cloned().collect();
        if let Ok(leaf) = CertificateDer::from_pem_file(&certificate_path)
            && is_good(&leaf, &authority.der, &wanted, &key)
        {
            return Ok(false);
        }
        let certificate = leaf_params(&wanted)?.signed_by(&key, &authority.issuer)?;
        files::write(&certificate_path, certificate.pem().as_bytes(), PUBLIC)
            .with_context(|| format!("cannot write {}", certificate_path.display()))?;
        tracing::info!(file = %certificate_path.display(), "server certificate issued");
        Ok(true)
    }
}

struct Authority {
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

fn random_serial() -> anyhow::Result<SerialNumber> {
    let mut bytes = ring::rand::generate::<[u8; 16]>(&ring::rand::SystemRandom::new())
        .map_err(|_| anyhow::anyhow!("the operating system's random source does not work"))?
        .expose();
    // Positive and of full length.
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn params(names: Vec<String>, common_name: &str, life: Duration) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(names)?;
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATED;
    params.not_after = now + life;
    params.serial_number = Some(random_serial()?);
    params.distinguished_name.push(DnType::CommonName, common_name);
    Ok(params)
}

fn authority_params() -> anyhow::Result<CertificateParams> {
    // A name of its own for each hub: clients that trust two hubs look authorities up by name.
    let name = format!(
        "Holdfast CA {:08x}",
        u32::from_be_bytes(random_serial()?.to_bytes()[1..5].try_into()?)
    );
    let mut params = params(Vec::new(), &name, CA_LIFE)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn leaf_params(names: &BTreeSet<String>) -> anyhow::Result<CertificateParams> {
    let mut params = params(names.iter().cloned().collect(), "Holdfast hub", LEAF_LIFE)?;
    params.is_ca = IsCa::NoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

/// Whether the certificate is of this key and authority, carries exactly the wanted names and has a third of its life left.
fn is_good(
    leaf: &CertificateDer<'_>,
    ca: &CertificateDer<'_>,
    wanted: &BTreeSet<String>,
    key: &KeyPair,
) -> bool {
    let (Ok((_, leaf)), Ok((_, ca))) = (X509Certificate::from_der(leaf), X509Certificate::from_der(ca))
    else {
        return false;
    };
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let left = leaf.validity().not_after.timestamp() - now;
    let started = leaf.validity().not_before.timestamp() <= now;
    started
        && left > LEAF_LIFE.whole_seconds() / 3
        && leaf.verify_signature(Some(ca.public_key())).is_ok()
        && leaf.public_key().subject_public_key.data.as_ref() == rcgen::PublicKeyData::der_bytes(key)
        && names_of(&leaf) == *wanted
}

fn names_of(certificate: &X509Certificate<'_>) -> BTreeSet<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else {
        return BTreeSet::new();
    };
    let names = extension.value.general_names.iter();
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => match bytes.len() {
                4 => <[u8; 4]>::try_from(*bytes)
                    .ok()
                    .map(|octets| IpAddr::from(octets).to_string()),
                16 => <[u8; 16]>::try_from(*bytes)
                    .ok()
                    .map(|octets| IpAddr::from(octets).to_string()),
                _ => None,
            },
            _ => None,
        })
        .collect()
}

fn read_identity(certificate: &Path, key: &Path) -> anyhow::Result<ServerIdentity> {
    let chain: Vec<_> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .with_context(|| format!("cannot read {}", certificate.display()))?;
    if chain.is_empty() {
        bail!("{} holds no certificate", certificate.display());
    }
    let key = PrivateKeyDer::from_pem_file(key).with_context(|| format!("cannot read {}", key.display()))?;
    let signing =
        rustls::crypto::ring::sign::any_supported_type(&key).context("the key is of an unknown kind")?;
    rustls::sign::CertifiedKey::new(chain.clone(), signing)
        .keys_match()
        .context("the key does not belong to the certificate")?;
    Ok(ServerIdentity { chain, key })
}

/// Every name that the server certificate carries: those given, then the ones that always work on this machine.
#[must_use]
pub fn server_names(given: &[String]) -> Vec<String> {
    let mut names: Vec<String> = given.to_vec();
    let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
    for name in ["localhost", "127.0.0.1", "::1", &node] {
        let known = names.iter().any(|known| known.eq_ignore_ascii_case(name));
        if !known && super::config::check_host(name).is_ok() {
            names.push(name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn certificates(dir: &Path, names: &[&str]) -> Certificates {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Certificates::new(dir, names, TlsConfig::default())
    }

    #[test]
    fn made_once_and_issued_again_for_new_names() {
        let dir = tempfile::tempdir().unwrap();
        let first = certificates(dir.path(), &["localhost", "127.0.0.1", "::1"]);
        assert!(first.ensure().unwrap());
        assert!(!first.ensure().unwrap(), "nothing is due");
        let ca = fs::read(dir.path().join("ca.pem")).unwrap();
        let key = fs::read(dir.path().join("tls/server-ec.key")).unwrap();
        for file in ["tls/ca.key", "tls/server-ec.key"] {
            let mode = fs::metadata(dir.path().join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        let second = certificates(dir.path(), &["localhost", "127.0.0.1", "::1", "hub.test"]);
        assert!(second.ensure().unwrap(), "a name was added");
        assert_eq!(fs::read(dir.path().join("ca.pem")).unwrap(), ca);
        assert_eq!(fs::read(dir.path().join("tls/server-ec.key")).unwrap(), key);
        let loaded = second.load().unwrap();
        assert_eq!(loaded.identities.len(), 1);
        let (_, leaf) = X509Certificate::from_der(&loaded.identities[0].chain[0]).unwrap();
        assert!(names_of(&leaf).contains("hub.test") && names_of(&leaf).contains("::1"));
    }

    #[test]
    fn rsa_comes_later() {
        let dir = tempfile::tempdir().unwrap();
        let certificates = certificates(dir.path(), &["localhost"]);
        certificates.ensure().unwrap();
        assert!(certificates.lacks_rsa());
        assert!(certificates.ensure_rsa().unwrap());
        assert!(!certificates.lacks_rsa() && !certificates.ensure().unwrap());
        let loaded = certificates.load().unwrap();
        assert_eq!(loaded.identities.len(), 2);
    }

    #[test]
    fn a_foreign_key_is_refused() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        certificates(a.path(), &["localhost"]).ensure().unwrap();
        certificates(b.path(), &["localhost"]).ensure().unwrap();
        let provided = TlsConfig {
            certificate: Some(a.path().join("tls/server-ec.pem")),
            key: Some(b.path().join("tls/server-ec.key")),
            ..TlsConfig::default()
        };
        let error = Certificates::new(a.path(), Vec::new(), provided)
            .load()
            .unwrap_err();
        assert!(error.to_string().contains("does not belong"), "{error}");
    }
}
