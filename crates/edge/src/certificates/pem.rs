//! Certificates and keys from PEM files, in the forms that other tools write them.

use std::path::Path;

use holdfast_program::failure::Failure;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use crate::config::CertificateFiles;

/// A chain with its key.
pub struct Identity {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS#8.
    pub key: Zeroizing<Vec<u8>>,
}

/// Reads a chain and its key.
///
/// # Errors
/// When a file cannot be read, or holds no certificate or no unencrypted key.
pub fn read(files: &CertificateFiles) -> Result<Identity, Failure> {
    Ok(Identity {
        chain: read_chain(&files.certificate)?,
        key: read_key(&files.private_key)?,
    })
}

/// Reads all certificates of a file; at least one.
///
/// # Errors
/// When it cannot be read or holds none.
pub fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let unusable = |error: &dyn std::fmt::Display| {
        Failure::usage(format!(
            "cannot use the certificates in {}: {error}",
            path.display()
        ))
        .hint("give a PEM file, the leaf first, that this user may read")
    };
    let content = std::fs::read(path).map_err(|error| unusable(&error))?;
    let chain = CertificateDer::pem_slice_iter(&content)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unusable(&error))?;
    if chain.is_empty() {
        return Err(unusable(&"there is none"));
    }
    Ok(chain)
}

/// Reads a private key as PKCS#8.
///
/// # Errors
/// When it cannot be read, is encrypted, or is of a kind that is not used here.
pub fn read_key(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let unusable = |error: &dyn std::fmt::Display| {
        Failure::usage(format!(
            "cannot use the private key in {}: {error}",
            path.display()
        ))
        .hint("give an unencrypted PEM key (RSA or elliptic curve) that this user may read")
    };
    let content = std::fs::read(path)
        .map(Zeroizing::new)
        .map_err(|error| unusable(&error))?;
    let key = PrivateKeyDer::from_pem_slice(&content).map_err(|error| unusable(&error))?;
    match &key {
        PrivateKeyDer::Pkcs8(key) => Ok(Zeroizing::new(key.secret_pkcs8_der().to_vec())),
        PrivateKeyDer::Pkcs1(key) => Ok(wrap(RSA_ENCRYPTION, key.secret_pkcs1_der())),
        PrivateKeyDer::Sec1(key) => {
            let der = key.secret_sec1_der();
            let algorithm = [(P256, EC_P256), (P384, EC_P384)]
                .into_iter()
                .find(|(curve, _)| der.windows(curve.len()).any(|window| window == *curve))
                .map(|(_, algorithm)| algorithm)
                .ok_or_else(|| unusable(&"its curve is neither P-256 nor P-384"))?;
            Ok(wrap(algorithm, der))
        }
        _ => Err(unusable(&"its form is not known")),
    }
}

/// rsaEncryption with NULL parameters.
const RSA_ENCRYPTION: &[u8] = &[
    0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00,
];
/// Object identifiers of curves.
const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];
/// ecPublicKey with these curves.
const EC_P256: &[u8] = &[
    0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07,
];
const EC_P384: &[u8] = &[
    0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81, 0x04, 0x00,
    0x22,
];

/// PrivateKeyInfo (RFC 5208) around a key of the older forms: version 0, algorithm, key in an octet string.
fn wrap(algorithm: &[u8], key: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut info = Zeroizing::new(Vec::with_capacity(key.len() + 64));
    info.extend_from_slice(&[0x02, 0x01, 0x00]);
    info.extend_from_slice(algorithm);
    element(&mut info, 0x04, key);
    let mut out = Zeroizing::new(Vec::with_capacity(info.len() + 8));
    element(&mut out, 0x30, &info);
    out
}

fn element(out: &mut Vec<u8>, tag: u8, content: &[u8]) {
    out.push(tag);
    let length = content.len();
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let bytes = length.to_be_bytes();
        let significant = &bytes[bytes.iter().position(|byte| *byte != 0).unwrap_or(0)..];
        out.push(0x80 | significant.len() as u8);
        out.extend_from_slice(significant);
    }
    out.extend_from_slice(content);
}

/// PEM text of one object.
#[must_use]
pub fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    use base64::Engine as _;
    let text = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(der));
    let mut pem = Zeroizing::new(String::with_capacity(text.len() + text.len() / 64 + 64));
    pem.push_str(&format!("-----BEGIN {label}-----\n"));
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

/// PEM text of certificates, one after the other.
#[must_use]
pub fn encode_chain(chain: &[CertificateDer<'_>]) -> String {
    chain
        .iter()
        .map(|der| encode("CERTIFICATE", der).to_string())
        .collect()
}
