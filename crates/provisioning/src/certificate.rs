//! Certificates of devices and groups: reading them, comparing them, checking chains.
//!
//! Chains are checked as the hub checks them (`holdfast_trust`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use holdfast_model::provisioning::{CertificateInfo, EnrolledCertificate};
use holdfast_model::{Error, Timestamp};
use holdfast_trust::{ChainFault, parse, validity};
use ring::digest;
use rustls_pki_types::CertificateDer;
use x509_parser::pem::Pem;

use crate::failure::invalid;

/// Largest certificate of an enrollment, as text.
const TEXT_BYTES_MAX: usize = 64 * 1024;

/// Why a chain is not accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ChainError {
    /// It does not lead to the authority.
    Untrusted,
    /// Its time has not come or is over.
    NotValidNow,
}

/// Reads PEM or base64 of DER.
pub(crate) fn read(text: &str) -> Result<EnrolledCertificate, Error> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(invalid("the certificate is too large"));
    }
    let der = if text.trim_start().starts_with("-----BEGIN") {
        Pem::iter_from_buffer(text.as_bytes())
            .filter_map(Result::ok)
            .find(|pem| pem.label == "CERTIFICATE")
            .map(|pem| pem.contents)
            .ok_or_else(|| invalid("the PEM text has no certificate"))?
    } else {
        let plain: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        let decoded = STANDARD
            .decode(plain)
            .map_err(|_| invalid("a certificate must be PEM, or base64 of DER"))?;
        // Tools also send base64 of a whole PEM file.
        match std::str::from_utf8(&decoded) {
            Ok(inner) if inner.trim_start().starts_with("-----BEGIN") => return read(inner),
            _ => decoded,
        }
    };
    let info = describe(&der).ok_or_else(|| invalid("the certificate is malformed"))?;
    Ok(EnrolledCertificate {
        der: STANDARD.encode(der),
        info,
    })
}

/// DER of an enrolled certificate.
pub(crate) fn der_of(certificate: &EnrolledCertificate) -> Vec<u8> {
    // It was read from DER when it was stored.
    STANDARD.decode(&certificate.der).unwrap_or_default()
}

/// What a certificate says.
pub(crate) fn describe(der: &[u8]) -> Option<CertificateInfo> {
    let certificate = parse(der)?;
    let (not_before, not_after) = validity(&certificate);
    Some(CertificateInfo {
        subject_name: certificate.subject().to_string(),
        sha1_thumbprint: hex(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, der).as_ref()),
        sha256_thumbprint: hex(digest::digest(&digest::SHA256, der).as_ref()),
        issuer_name: certificate.issuer().to_string(),
        not_before,
        not_after,
        serial_number: hex(certificate.raw_serial()),
        version: certificate.version().0 + 1,
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

/// Whether its time is now.
pub(crate) fn is_valid_at(der: &[u8], now: Timestamp) -> bool {
    holdfast_trust::check_dates(der, now).is_ok()
}

/// The subject's common name, if there is exactly one: with several it is unclear who is meant.
pub(crate) fn common_name(der: &[u8]) -> Option<String> {
    holdfast_trust::common_name(&parse(der)?).map(str::to_owned)
}

/// A certificate that can stand at the end of a chain.
pub(crate) fn check_authority(der: &[u8]) -> Result<(), Error> {
    let certificate = parse(der).ok_or_else(|| invalid("the certificate is malformed"))?;
    if !certificate.is_ca() {
        return Err(invalid(
            "a signing certificate must be a CA certificate: its basic constraints do not say so",
        ));
    }
    webpki::anchor_from_trusted_cert(&der.into())
        .map(drop)
        .map_err(|error| invalid(format!("the certificate cannot be used as an authority: {error}")))
}

/// Checks that `chain` leads to `authority`; returns how many certificates stand between the two.
pub(crate) fn check_chain(chain: &[Bytes], authority: &[u8], now: Timestamp) -> Result<usize, ChainError> {
    // webpki does not look at the time of a trust anchor.
    if !chain.is_empty() && !is_valid_at(authority, now) {
        return Err(ChainError::NotValidNow);
    }
    let authority = CertificateDer::from(authority);
    let anchor = webpki::anchor_from_trusted_cert(&authority).map_err(|_| ChainError::Untrusted)?;
    holdfast_trust::check_path(chain, &[anchor], now).map_err(|fault| match fault {
        ChainFault::NotValidNow => ChainError::NotValidNow,
        _ => ChainError::Untrusted,
    })
}
