//! Against a software TPM (Debian's package swtpm): what a TPM says must be what is expected of it.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use holdfast_tpm::{Address, Config, SealedKey, Tpm, TpmError};
use ring::{digest, hmac};

const PASSWORD_AUTH: [u8; 9] = [0x40, 0, 0, 9, 0, 0, 1, 0, 0];
const KEY: [u8; 32] = [0x6b; 32];
const STORAGE_ROOT: u32 = 0x8100_0001;
const OWNER: u32 = 0x4000_0001;
const ENDORSEMENT: u32 = 0x4000_000b;
const LOCKOUT: u32 = 0x4000_000a;

/// A software TPM that has never been used.
struct SoftwareTpm {
    folder: tempfile::TempDir,
    process: Child,
}

impl SoftwareTpm {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let process = run(folder.path(), &["--flags", "startup-clear"]);
        SoftwareTpm { folder, process }.ready()
    }

    /// Takes its power away and gives it back.
    fn restart(mut self, flags: &[&str]) -> Self {
        self.end();
        self.process = run(self.folder.path(), flags);
        self.ready()
    }

    fn ready(self) -> Self {
        let deadline = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(self.socket()).is_err() {
            assert!(Instant::now() < deadline, "swtpm does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        self
    }

    fn end(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_file(self.socket());
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn config(&self) -> Config {
        Config {
            address: Address::SwtpmUnix(self.socket()),
            ..Config::default()
        }
    }

    fn open(&self) -> Tpm {
        Tpm::open(&self.config()).expect("a TPM")
    }

    /// A command with a plain authorization, which must succeed; the answer without header.
    fn raw(&self, code: u32, handles: &[u32], parameters: &[u8]) -> Vec<u8> {
        let mut body: Vec<u8> = handles.iter().flat_map(|handle| handle.to_be_bytes()).collect();
        body.extend_from_slice(&9u32.to_be_bytes());
        body.extend_from_slice(&PASSWORD_AUTH);
        body.extend_from_slice(parameters);
        let mut command = vec![0x80, 2];
        command.extend_from_slice(&(10 + body.len() as u32).to_be_bytes());
        command.extend_from_slice(&code.to_be_bytes());
        command.extend_from_slice(&body);
        let mut stream = UnixStream::connect(self.socket()).expect("swtpm");
        stream.write_all(&command).expect("sent");
        let mut header = [0; 10];
        stream.read_exact(&mut header).expect("an answer");
        assert_eq!(header[6..], [0; 4], "command {code:#x}");
        let size = u32::from_be_bytes(header[2..6].try_into().expect("four bytes"));
        let mut rest = vec![0; size as usize - 10];
        stream.read_exact(&mut rest).expect("the rest");
        rest
    }

    /// An HMAC key that the TPM takes in the clear, sealed by it.
    fn seal(&self, key: &[u8]) -> SealedKey {
        self.open().public_keys().expect("a storage root key");
        let seed = [0x0b; 32];
        let unique = digest::digest(&digest::SHA256, &[&seed, key].concat());
        // Keyed hash, SHA-256; sign, userWithAuth, noDA; no policy; HMAC with SHA-256.
        let mut public = vec![0, 8, 0, 0x0b, 0, 4, 4, 0x40, 0, 0, 0, 5, 0, 0x0b];
        public.extend_from_slice(&sized(unique.as_ref()));
        let sensitive = [&[0, 8][..], &sized(&[]), &sized(&seed), &sized(key)].concat();
        let parameters = [sized(&[]), sized(&public), sized(&sized(&sensitive)), sized(&[])].concat();
        // No symmetric algorithm: neither wrapper is there.
        let answer = self.raw(0x156, &[STORAGE_ROOT], &[&parameters[..], &[0, 0x10]].concat());
        let size = usize::from(u16::from_be_bytes([answer[4], answer[5]]));
        SealedKey {
            public: sized(&public),
            private: answer[4..6 + size].to_vec(),
        }
    }

    fn set_auth(&self, hierarchy: u32, value: &[u8]) {
        self.raw(0x129, &[hierarchy], &sized(value));
    }

    fn clear(&self) {
        self.raw(0x126, &[LOCKOUT], &[]);
    }
}

impl Drop for SoftwareTpm {
    fn drop(&mut self) {
        self.end();
    }
}

fn run(folder: &std::path::Path, flags: &[&str]) -> Child {
    let server = format!("type=unixio,path={}", folder.join("socket").display());
    let started = Command::new("swtpm")
        .args(["socket", "--tpm2", "--tpmstate"])
        .arg(format!("dir={}", folder.display()))
        .args(["--server", &server])
        .args(flags)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    started.expect("swtpm can be run: apt-get install swtpm (`cargo xtask test` does)")
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

#[test]
fn its_keys_stay_over_restarts() {
    let chip = SoftwareTpm::new();
    let keys = chip.open().public_keys().expect("keys");
    assert_eq!(keys.endorsement.len(), 316);
    assert_eq!(chip.open().public_keys().expect("keys"), keys);
    assert_eq!(chip.open().describe().expect("told").manufacturer, "IBM");
    // Nobody starts it, as nobody but a kernel would.
    let chip = chip.restart(&["--flags", "not-need-init"]);
    assert_eq!(chip.open().public_keys().expect("keys"), keys);
    let other = SoftwareTpm::new().open().public_keys().expect("keys");
    assert_ne!(other.endorsement, keys.endorsement);
}

#[test]
fn signatures_are_those_of_the_key() {
    let chip = SoftwareTpm::new();
    let sealed = chip.seal(&KEY);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &KEY);
    for length in [0, 1, 200, 1_023, 1_024, 1_025, 2_048, 5_000] {
        let text: Vec<u8> = (0..length).map(|number| (number * 7) as u8).collect();
        let signature = chip.open().sign(&sealed, &text).expect("signed");
        assert_eq!(signature, hmac::sign(&key, &text).as_ref(), "{length} bytes");
    }
    let chip = chip.restart(&["--flags", "startup-clear"]);
    let signature = chip.open().sign(&sealed, b"after a restart").expect("signed");
    assert_eq!(signature, hmac::sign(&key, b"after a restart").as_ref());
}

#[test]
fn a_sealed_key_is_of_no_use_elsewhere_and_after_a_clear() {
    let chip = SoftwareTpm::new();
    let sealed = chip.seal(&KEY);
    chip.open().check(&sealed).expect("its own key");
    let foreign = SoftwareTpm::new().open().check(&sealed).expect_err("another TPM");
    assert!(matches!(foreign, TpmError::ForeignKey { .. }), "{foreign}");
    let before = chip.open().public_keys().expect("keys");
    chip.clear();
    let after = chip.open().public_keys().expect("keys");
    assert_eq!(after.endorsement, before.endorsement);
    assert_ne!(after.storage_root, before.storage_root);
    // One connection at a time is served.
    let checked = chip.open().check(&sealed);
    let signed = chip.open().sign(&sealed, b"x").map(drop);
    for outcome in [checked, signed] {
        let error = outcome.expect_err("cleared");
        assert!(matches!(error, TpmError::ForeignKey { .. }), "{error}");
    }
    let damaged = SealedKey {
        private: sealed.private[..sealed.private.len() - 1].to_vec(),
        ..sealed
    };
    assert!(chip.open().check(&damaged).is_err());
}

#[test]
fn refused_calls_leave_nothing_behind() {
    let chip = SoftwareTpm::new();
    let sealed = chip.seal(&KEY);
    let foreign = SoftwareTpm::new().seal(&KEY);
    let parts: [&[u8]; 5] = [&[9; 52], &[1; 256], &[9; 120], &[1; 256], &sealed.public[2..]];
    let blob: Vec<u8> = parts.iter().flat_map(|part| sized(part)).collect();
    // It has room for three objects and three sessions; all on one connection, as a resource manager would tidy up between.
    let mut tpm = chip.open();
    for _ in 0..12 {
        let error = tpm.activate(&blob).expect_err("made for nobody");
        assert!(error.to_string().contains("TPM2_ActivateCredential"), "{error}");
        assert!(tpm.check(&foreign).is_err());
        tpm.sign(&sealed, &[0; 3_000]).expect("signed");
    }
}

#[test]
fn hierarchies_may_have_authorization_values() {
    let chip = SoftwareTpm::new();
    chip.set_auth(OWNER, b"owner's");
    chip.set_auth(ENDORSEMENT, b"endorser's");
    let refused = chip.open().public_keys().expect_err("no value");
    let code = refused.code().expect("a code");
    assert!(code.is_wrong_authorization(), "{refused}");
    let config = Config {
        owner_auth: b"owner's".to_vec().into(),
        endorsement_auth: b"endorser's".to_vec().into(),
        ..chip.config()
    };
    let mut tpm = Tpm::open(&config).expect("a TPM");
    let keys = tpm.public_keys().expect("keys");
    drop(tpm);
    // They are kept now, and reading them takes no value.
    assert_eq!(chip.open().public_keys().expect("keys"), keys);
}

#[test]
fn a_key_of_somebody_else_is_left_alone() {
    let chip = SoftwareTpm::new();
    // A storage root key on an elliptic curve, as some systems make it: P-256, AES-128 in CFB mode.
    let template = [
        &[
            0, 0x23, 0, 0x0b, 0, 3, 4, 0x72, 0, 0, 0, 6, 0, 128, 0, 0x43, 0, 0x10, 0, 3, 0, 0x10,
        ][..],
        &[0, 0, 0, 0],
    ];
    let parameters = [
        &sized(&[0, 0, 0, 0])[..],
        &sized(&template.concat()),
        &[0, 0],
        &[0, 0, 0, 0],
    ];
    let made = chip.raw(0x131, &[OWNER], &parameters.concat());
    let transient = u32::from_be_bytes(made[..4].try_into().expect("a handle"));
    chip.raw(0x120, &[OWNER, transient], &STORAGE_ROOT.to_be_bytes());
    let first = chip.open().public_keys().expect("keys");
    assert_eq!(first.storage_root[2..4], [0, 1], "RSA");
    // The same each time, though it is not kept.
    for _ in 0..4 {
        assert_eq!(chip.open().public_keys().expect("keys"), first);
    }
}
