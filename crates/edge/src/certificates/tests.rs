//! Certificates as `openssl` and `rustls` judge them.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::Timestamp;
use holdfast_ports::clock::ManualClock;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::*;
use crate::config::CertificateFiles;

const DAY: u64 = 86_400;

fn settings(folder: &std::path::Path, more: &str) -> Settings {
    let text = format!(
        "device.home = \"{}\"\nprovisioning.connection_string = \"HostName=h;DeviceId=d;SharedAccessKey=AAAAAAAAAAAAAAAAAAAAAA==\"\n{more}",
        folder.display()
    );
    std::fs::create_dir_all(folder.join("identity")).unwrap();
    crate::config::parse(&text, "edge.toml").unwrap().settings
}

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::at(Timestamp::from_seconds(1_800_000_000)))
}

fn server<'a>(names: &'a [String]) -> Request<'a> {
    Request {
        common_name: &names[0],
        names,
        usage: Usage::Server,
    }
}

/// Whether `rustls` takes the chain for a server of this name, with these roots only.
fn trusts(roots_pem: &str, issued: &Issued, name: &str, at: i64) -> Result<(), rustls::Error> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots_pem.as_bytes()) {
        roots.add(root.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(at as u64));
    use rustls::client::danger::ServerCertVerifier as _;
    verifier
        .verify_server_cert(&issued.chain[0], &issued.chain[1..], &name, &[], now)
        .map(drop)
}

/// The part of the trust bundle that stays: its first certificate.
fn root_only(bundle: &str) -> String {
    let end = bundle.find("-----END CERTIFICATE-----\n").unwrap();
    bundle[..end + 26].to_owned()
}

#[test]
fn a_renewed_edge_ca_is_trusted_by_who_trusted_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let certificates = Certificates::new(&settings(dir.path(), ""), "d", clock.clone());
    assert!(certificates.ensure().unwrap());
    assert!(!certificates.ensure().unwrap());
    let trusted = root_only(&certificates.trust_bundle().unwrap());
    let names = [
        "edge.example".to_owned(),
        "edgeHub".to_owned(),
        "10.0.0.1".to_owned(),
    ];
    let first = certificates.issue(&server(&names)).unwrap();
    let now = clock.now().as_seconds();
    for name in ["edge.example", "edgehub", "10.0.0.1"] {
        trusts(&trusted, &first, name, now).unwrap();
    }
    assert!(trusts(&trusted, &first, "other", now).is_err());

    let before = certificates.authority().unwrap();
    clock.advance(Duration::from_secs(70 * DAY));
    assert!(!certificates.ensure().unwrap(), "not before 80 % of its life");
    clock.advance(Duration::from_secs(3 * DAY));
    assert!(certificates.ensure().unwrap());
    let after = certificates.authority().unwrap();
    assert_ne!(before.chain[0], after.chain[0]);
    assert_eq!(before.chain[1], after.chain[1], "the root stays");
    let second = certificates.issue(&server(&names)).unwrap();
    trusts(&trusted, &second, "edge.example", clock.now().as_seconds()).unwrap();
    // Another process finds the same.
    let again = Certificates::new(&settings(dir.path(), ""), "d", clock.clone());
    assert_eq!(again.authority().unwrap().chain, after.chain);
}

#[test]
fn a_renewal_that_fails_is_tried_again_as_configured_and_modules_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let settings = settings(dir.path(), "");
    let certificates = Certificates::new(&settings, "d", clock.clone());
    assert!(certificates.ensure().unwrap());
    let before = certificates.authority().unwrap();
    clock.advance(Duration::from_secs(73 * DAY));
    // Nothing can be written over a folder.
    let key = settings.identity_folder().join("edge-ca.key");
    std::fs::remove_file(&key).unwrap();
    std::fs::create_dir(&key).unwrap();
    std::fs::write(key.join("x"), "").unwrap();
    assert!(certificates.ensure().is_err());
    let names = ["edge".to_owned()];
    certificates.issue(&server(&names)).expect("by the one in force");
    std::fs::remove_dir_all(&key).unwrap();
    clock.advance(Duration::from_secs(3 * DAY));
    assert!(
        !certificates.ensure().unwrap(),
        "after 4 % of its life, which is 3.6 days"
    );
    assert_eq!(certificates.authority().unwrap().chain, before.chain);
    clock.advance(Duration::from_secs(DAY));
    assert!(certificates.ensure().unwrap());
    // One that has ended is tried again at once.
    clock.advance(Duration::from_secs(91 * DAY));
    std::fs::remove_file(&key).unwrap();
    std::fs::create_dir(&key).unwrap();
    std::fs::write(key.join("x"), "").unwrap();
    assert!(certificates.ensure().is_err());
    assert!(certificates.issue(&server(&names)).is_err());
    std::fs::remove_dir_all(&key).unwrap();
    assert!(certificates.ensure().unwrap());
}

#[test]
fn a_clock_that_was_wrong_by_years_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::at(Timestamp::from_seconds(0)));
    let certificates = Certificates::new(&settings(dir.path(), ""), "d", clock.clone());
    certificates.ensure().unwrap();
    let trusted = root_only(&certificates.trust_bundle().unwrap());
    clock.advance(Duration::from_secs(56 * 365 * DAY));
    let names = ["edge".to_owned()];
    let issued = certificates.issue(&server(&names)).unwrap();
    trusts(&trusted, &issued, "edge", clock.now().as_seconds()).unwrap();
}

#[test]
fn openssl_takes_certificates_for_modules() {
    let dir = tempfile::tempdir().unwrap();
    let certificates = Certificates::new(
        &settings(dir.path(), ""),
        "d",
        Arc::new(holdfast_ports::clock::SystemClock::new()),
    );
    let names = ["host.example".to_owned(), "m".to_owned()];
    let issued = certificates.issue(&server(&names)).unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let chain = write("chain.pem", &issued.chain_pem());
    let key = write("key.pem", &issued.key_pem());
    let bundle = write("bundle.pem", &certificates.trust_bundle().unwrap());
    let run = |arguments: &[&std::ffi::OsStr]| {
        let output = Command::new("openssl")
            .args(arguments)
            .output()
            .expect("openssl is installed");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    run(&[
        "verify".as_ref(),
        "-x509_strict".as_ref(),
        "-purpose".as_ref(),
        "sslserver".as_ref(),
        "-verify_hostname".as_ref(),
        "host.example".as_ref(),
        "-CAfile".as_ref(),
        bundle.as_ref(),
        "-untrusted".as_ref(),
        chain.as_ref(),
        chain.as_ref(),
    ]);
    let of_certificate = run(&[
        "x509".as_ref(),
        "-in".as_ref(),
        chain.as_ref(),
        "-noout".as_ref(),
        "-pubkey".as_ref(),
    ]);
    let of_key = run(&["pkey".as_ref(), "-in".as_ref(), key.as_ref(), "-pubout".as_ref()]);
    assert_eq!(of_certificate, of_key);
}

#[test]
fn an_authority_of_the_site_signs_the_edge_ca() {
    let dir = tempfile::tempdir().unwrap();
    // Any authority will do: that of another device.
    let other = tempfile::tempdir().unwrap();
    let site = Certificates::new(&settings(other.path(), ""), "site", clock());
    site.ensure().unwrap();
    let identity = other.path().join("identity");
    let more = format!(
        "certificates.local_ca = \"{0}/ca.pem\"\ncertificates.local_ca_key = \"{0}/ca.key\"\ncertificates.life = \"30d\"",
        identity.display()
    );
    let clock = clock();
    let certificates = Certificates::new(&settings(dir.path(), &more), "d", clock.clone());
    let names = ["edge".to_owned()];
    let issued = certificates.issue(&server(&names)).unwrap();
    let trusted = std::fs::read_to_string(identity.join("ca.pem")).unwrap();
    trusts(&trusted, &issued, "edge", clock.now().as_seconds()).unwrap();
    assert!(!dir.path().join("identity/ca.pem").exists());
}

#[test]
fn a_given_edge_ca_is_used_and_judged() {
    let dir = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let given = Certificates::new(&settings(other.path(), ""), "given", clock());
    given.ensure().unwrap();
    let path = |name: &str| other.path().join("identity").join(name).display().to_string();
    let more = |certificate: &str, key: &str| {
        format!(
            "certificates.edge_ca = \"{}\"\ncertificates.edge_ca_key = \"{}\"",
            path(certificate),
            path(key)
        )
    };
    let good = Certificates::new(
        &settings(dir.path(), &more("edge-ca.pem", "edge-ca.key")),
        "d",
        clock(),
    );
    assert_eq!(good.authority().unwrap().chain, given.authority().unwrap().chain);
    let wrong = Certificates::new(
        &settings(dir.path(), &more("edge-ca.pem", "ca.key")),
        "d",
        clock(),
    );
    let error = wrong.ensure().unwrap_err().to_string();
    assert!(error.contains("the private key does not belong to it"), "{error}");
}

#[test]
fn keys_of_older_forms_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let run = |arguments: &str| {
        let output = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(dir.path())
            .output()
            .expect("openssl is installed");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    run("ecparam -name prime256v1 -genkey -noout -out sec1.key");
    run("genrsa -traditional -out pkcs1.key 2048");
    for name in ["sec1", "pkcs1"] {
        run(&format!(
            "req -x509 -new -key {name}.key -subj /CN={name} -days 30 -addext basicConstraints=critical,CA:TRUE -out {name}.pem"
        ));
        let identity = pem::read(&CertificateFiles {
            certificate: dir.path().join(format!("{name}.pem")),
            private_key: dir.path().join(format!("{name}.key")),
        })
        .unwrap();
        let provider = rustls::crypto::ring::default_provider();
        let key = rustls_pki_types::PrivateKeyDer::Pkcs8(identity.key.to_vec().into());
        rustls::sign::CertifiedKey::from_der(identity.chain, key, &provider)
            .unwrap()
            .keys_match()
            .unwrap();
    }
}
