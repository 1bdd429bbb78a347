//! The files that a configuration names, looked at without a network and without a change: whether they can be read, hold
//! what they should, belong together and are in force. What the daemon makes itself is not looked at.

use std::path::Path;

use holdfast_program::failure::Failure;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::certificates::pem;
use crate::config::{CertificateFiles, Credential, EdgeCa, HierarchyAuth, KeySource, Provisioning, Settings};
use crate::system::SystemInfo;
use crate::{keys, time_text};

/// Certificates that end sooner are told, seconds.
pub(super) const EXPIRY_WARNING: i64 = 7 * DAY;
const DAY: i64 = 86_400;

/// Something that is wrong with a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Problem {
    /// The file.
    pub(super) file: String,
    /// What is wrong; names the file.
    pub(super) reason: String,
    /// What to do.
    pub(super) remedy: String,
    /// The daemon cannot work with it; else it can, but an operator should know.
    pub(super) is_fault: bool,
}

impl Problem {
    pub(super) fn tell(&self) -> Value {
        json!({ "file": self.file, "reason": self.reason, "remedy": self.remedy })
    }
}

/// What was seen.
#[derive(Default, Debug)]
pub(super) struct Looked {
    /// How many files.
    pub(super) files: usize,
    /// What is wrong with them.
    pub(super) problems: Vec<Problem>,
}

impl Looked {
    fn add(&mut self, file: &Path, reason: String, remedy: &str, is_fault: bool) {
        self.problems.push(Problem {
            file: file.display().to_string(),
            reason,
            remedy: remedy.to_owned(),
            is_fault,
        });
    }

    /// Notes a failure; what was read, if it was.
    fn take<T>(&mut self, file: &Path, read: Result<T, Failure>) -> Option<T> {
        self.files += 1;
        let failure = match read {
            Ok(content) => return Some(content),
            Err(failure) => failure,
        };
        let remedy = failure
            .hint
            .unwrap_or_else(|| "correct the file or its path".to_owned());
        self.add(file, failure.message, &remedy, true);
        None
    }
}

/// Looks at the files of a configuration.
pub(super) fn look(settings: &Settings) -> Looked {
    let now = time_text::now().as_seconds();
    let mut looked = Looked::default();
    let (Provisioning::Manual { credential, .. } | Provisioning::Dps { credential, .. }) =
        &settings.provisioning;
    match credential {
        Credential::Certificate(files) => look_at_pair(&mut looked, files, false, now),
        Credential::Key(source) => look_at_key(&mut looked, source, "of the device"),
        Credential::Tpm => {
            for auth in [&settings.tpm.owner_auth, &settings.tpm.endorsement_auth] {
                if let HierarchyAuth::File(path) = auth {
                    let read = read(path, "authorization value").map(drop);
                    looked.take(path, read);
                }
            }
        }
    }
    if let Provisioning::Dps {
        payload: Some(path), ..
    } = &settings.provisioning
    {
        let parsed = read(path, "payload").and_then(|text| {
            serde_json::from_slice::<Value>(&text).map_err(|error| {
                Failure::usage(format!("{} is no JSON: {error}", path.display()))
                    .hint("provisioning.payload names a file with a JSON object")
            })
        });
        looked.take(path, parsed);
    }
    match &settings.edge_ca {
        EdgeCa::Files(files) => look_at_pair(&mut looked, files, true, now),
        EdgeCa::LocalCa { authority, .. } => look_at_pair(&mut looked, authority, true, now),
        EdgeCa::SelfSigned { .. } => {}
    }
    if let Some(source) = &settings.encryption_key {
        look_at_key(&mut looked, source, "for encryption");
    }
    let bundles = [
        &settings.trust_bundle,
        &settings.manifest_trust_bundle,
        &settings.upstream.ca,
    ];
    for path in bundles.into_iter().flatten() {
        look_at_bundle(&mut looked, path, now);
    }
    if let Some(path) = &settings.additional_info {
        looked.take(path, SystemInfo::new(settings).map(drop));
    }
    looked
}

fn read(path: &Path, what: &str) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| {
        Failure::usage(format!("cannot read the {what} in {}: {error}", path.display()))
            .hint("correct the path, or let this user read the file")
    })
}

fn look_at_key(looked: &mut Looked, source: &KeySource, whose: &str) {
    if let KeySource::File(path) = source {
        let key = keys::read_key(source, whose).map_err(|error| {
            Failure::usage(error.to_string())
                .hint("give a file with the key in base64 that this user may read")
        });
        looked.take(path, key);
    }
}

/// A certificate chain and its key.
fn look_at_pair(looked: &mut Looked, files: &CertificateFiles, is_authority: bool, now: i64) {
    let chain = looked.take(&files.certificate, pem::read_chain(&files.certificate));
    let key = looked.take(&files.private_key, pem::read_key(&files.private_key));
    let Some(chain) = chain else {
        return;
    };
    if let Some(key) = key
        && let Err(error) = belongs(&chain, &key)
    {
        let reason = format!(
            "{} and {} do not belong together: {error}",
            files.certificate.display(),
            files.private_key.display()
        );
        let remedy = "give the key for which the certificate was issued, and the leaf first in the chain";
        looked.add(&files.private_key, reason, remedy, true);
    }
    let leaf = chain.first().and_then(|der| X509Certificate::from_der(der).ok());
    if is_authority && leaf.is_some_and(|(_, leaf)| !leaf.is_ca()) {
        let reason = format!(
            "{} is not the certificate of an authority (CA:TRUE is missing)",
            files.certificate.display()
        );
        looked.add(
            &files.certificate,
            reason,
            "give the certificate of an authority: the daemon signs with it",
            true,
        );
    }
    for der in &chain {
        look_at_life(looked, &files.certificate, der, now, true);
    }
}

/// Authorities to trust. One that has ended does no harm to the others.
fn look_at_bundle(looked: &mut Looked, path: &Path, now: i64) {
    for der in looked.take(path, pem::read_chain(path)).unwrap_or_default() {
        look_at_life(looked, path, &der, now, false);
    }
}

fn look_at_life(looked: &mut Looked, path: &Path, der: &CertificateDer<'_>, now: i64, is_fault: bool) {
    let file = path.display();
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        let reason = format!("{file} is damaged: something in it is no certificate");
        return looked.add(path, reason, "put the certificate there anew", true);
    };
    let (name, life) = (certificate.subject(), certificate.validity());
    let left = life.not_after.timestamp() - now;
    if left <= 0 {
        let days = left.unsigned_abs() / DAY.unsigned_abs();
        let reason = format!("{file}: {name} ended {days} days ago");
        looked.add(
            path,
            reason,
            "issue a new certificate and put it in its place",
            is_fault,
        );
    } else if life.not_before.timestamp() > now {
        let reason = format!("{file}: {name} is not valid before {}", life.not_before);
        looked.add(
            path,
            reason,
            "set the clock, or issue the certificate anew",
            is_fault,
        );
    } else if left < EXPIRY_WARNING {
        let reason = format!("{file}: {name} ends in {} days", left / DAY);
        looked.add(
            path,
            reason,
            "issue a new certificate and put it in its place",
            false,
        );
    }
}

/// Whether the private key (PKCS#8) is that of the first certificate.
fn belongs(chain: &[CertificateDer<'static>], key: &[u8]) -> Result<(), String> {
    let provider = rustls::crypto::ring::default_provider();
    let key = PrivateKeyDer::Pkcs8(key.to_vec().into());
    let matched = rustls::sign::CertifiedKey::from_der(chain.to_vec(), key, &provider)
        .and_then(|certified| certified.keys_match());
    matched.map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => "the certificate was issued for another key".to_owned(),
        error => error.to_string(),
    })
}
