//! The sequences of commands against a TPM that does as it is told, and that answers what no TPM should.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex};

use super::*;
use crate::wire::Fields;

const INNER_KEY: [u8; 16] = [0x17; 16];
const SIGNATURE: [u8; 32] = [0x51; 32];
const TRANSIENT: u32 = 0x8000_0000;
const SESSION: u32 = 0x0300_0000;

/// What happens to one answer.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fault {
    Refused(u32),
    /// Cut off after so many bytes of its body, with a header that agrees.
    Cut(usize),
    /// One byte of its body is all ones.
    Ones(usize),
    /// More at its end than there should be.
    Longer,
    Gone,
}

#[derive(Default)]
struct State {
    kept: BTreeSet<u32>,
    /// Objects and sessions in memory.
    loaded: BTreeSet<u32>,
    next: u32,
    commands: Vec<u32>,
    texts: Vec<Vec<u8>>,
    /// By number of the command.
    faults: VecDeque<(usize, Fault)>,
    /// Length of each answer's body.
    bodies: Vec<usize>,
    /// Has been asked to start.
    needs_start: bool,
}

#[derive(Clone, Default)]
struct FakeTpm(Arc<Mutex<State>>);

fn area(root: Root) -> Vec<u8> {
    let template = root.template();
    let head = &template.bytes()[..template.bytes().len() - 2];
    Writer::default().raw(head).sized(&[0xc3; 256]).bytes().to_vec()
}

impl State {
    fn load(&mut self, handle: u32) -> u32 {
        let handle = handle + self.next;
        self.next += 1;
        self.loaded.insert(handle);
        handle
    }

    /// Handle and parameters of the answer, or a code.
    fn act(&mut self, code: u32, body: &[u8]) -> Result<(Option<u32>, Writer), u32> {
        let mut fields = Fields(body);
        let mut word = || fields.u32().expect("a word");
        let none = Writer::default;
        Ok(match code {
            0x0173 => match word() {
                handle if self.kept.contains(&handle) => {
                    let root = match handle == Root::Storage.handle() {
                        true => Root::Storage,
                        false => Root::Endorsement,
                    };
                    (None, none().sized(&area(root)).sized(&[0; 34]).sized(&[0; 34]))
                }
                _ => return Err(0x18b),
            },
            0x0131 => {
                let root = match word() == Root::Storage.hierarchy() {
                    true => Root::Storage,
                    false => Root::Endorsement,
                };
                let ticket = none().u16(0x8021).u32(root.hierarchy()).sized(&[9; 32]);
                let made = none().sized(&area(root)).sized(&[1; 50]).sized(&[2; 32]);
                (
                    Some(self.load(TRANSIENT)),
                    made.raw(ticket.bytes()).sized(&[0; 34]),
                )
            }
            0x0120 => {
                let handle = u32::from_be_bytes(body[body.len() - 4..].try_into().expect("four"));
                self.kept.insert(handle);
                (None, none())
            }
            0x0176 => (Some(self.load(SESSION)), none().sized(&[3; 32])),
            0x0151 => (None, none().sized(&[]).u16(0x8023).u32(RH_NULL).sized(&[])),
            0x0147 => {
                // The policy session is used up.
                self.loaded.retain(|handle| handle >> 24 != 3);
                (None, none().sized(&INNER_KEY))
            }
            0x0156 => (None, none().sized(&[4; 100])),
            0x0157 => (Some(self.load(TRANSIENT)), none().sized(&[0; 34])),
            0x0155 => (None, none().sized(&SIGNATURE)),
            0x015b => (Some(self.load(TRANSIENT)), none()),
            0x015c => (None, none()),
            0x013e => {
                let handle = word();
                self.loaded.remove(&handle);
                let ticket = none().u16(0x8024).u32(RH_NULL).sized(&[]);
                (None, none().sized(&SIGNATURE).raw(ticket.bytes()))
            }
            0x0165 => match self.loaded.remove(&word()) {
                true => (None, none()),
                false => return Err(0x1cb),
            },
            0x017a => {
                let told = none().u8(0).u32(CAP_PROPERTIES).u32(3);
                let told = told.u32(PT_MANUFACTURER).u32(u32::from_be_bytes(*b"IBM\0"));
                let told = told.u32(*PT_VENDOR.start()).u32(u32::from_be_bytes(*b"SW  "));
                (None, told.u32(PT_FIRMWARE).u32(0x0007_0001))
            }
            0x0144 => {
                self.needs_start = false;
                (None, none())
            }
            other => panic!("command {other:#x}"),
        })
    }
}

impl Transport for FakeTpm {
    fn exchange(&mut self, command: &[u8]) -> io::Result<Zeroizing<Vec<u8>>> {
        let mut state = self.0.lock().expect("a lock");
        let mut fields = Fields(command);
        let (tag, size, code) = (fields.u16(), fields.u32(), fields.u32().expect("a code"));
        assert_eq!(size, Ok(command.len() as u32));
        let sessions = tag == Ok(0x8002);
        let number = state.commands.len();
        state.commands.push(code);
        if code == 0x0155 || code == 0x015c || code == 0x013e {
            // Handle, authorization area of nine bytes with its size; then the text.
            let text = Fields(&command[10 + 4 + 4 + 9..]).sized(ANSWER_BYTES_MAX);
            state.texts.push(text.expect("a text").to_vec());
        }
        let fault = match state.faults.front() {
            Some((at, _)) if *at == number => state.faults.pop_front().map(|(_, fault)| fault),
            _ => None,
        };
        let outcome = match fault {
            Some(Fault::Gone) => return Err(io::ErrorKind::BrokenPipe.into()),
            Some(Fault::Refused(code)) => Err(code),
            _ if state.needs_start && code != 0x0144 => Err(0x100),
            _ => state.act(code, fields.0),
        };
        let (tag, code, mut body) = match outcome {
            Err(code) => (0x8001, code, Vec::new()),
            Ok((handle, parameters)) => {
                let mut body = Writer::default();
                if let Some(handle) = handle {
                    body = body.u32(handle);
                }
                if sessions {
                    body = body.u32(parameters.bytes().len() as u32);
                }
                body = body.raw(parameters.bytes());
                if sessions {
                    // As many as were sent: two for an activation.
                    let count = if code == 0x0147 { 2 } else { 1 };
                    for _ in 0..count {
                        body = body.sized(&[]).u8(1).sized(&[]);
                    }
                }
                (if sessions { 0x8002 } else { 0x8001 }, 0, body.bytes().to_vec())
            }
        };
        state.bodies.push(body.len());
        match fault {
            Some(Fault::Cut(length)) => body.truncate(length),
            Some(Fault::Ones(at)) => {
                if let Some(byte) = body.get_mut(at) {
                    *byte = 0xff;
                }
            }
            Some(Fault::Longer) => body.resize(body.len() + 5_000, 7),
            _ => {}
        }
        let answer = Writer::default().u16(tag).u32((10 + body.len()) as u32).u32(code);
        Ok(Zeroizing::new(answer.raw(&body).bytes().to_vec()))
    }
}

fn blob() -> Vec<u8> {
    let parts: [&[u8]; 5] = [&[1; 52], &[2; 256], &[3; 120], &[4; 256], &[5; 48]];
    let whole = parts.iter().fold(Writer::default(), |out, part| out.sized(part));
    whole.sized(&[]).bytes().to_vec()
}

fn key() -> SealedKey {
    SealedKey {
        public: sized(&[5; 48]),
        private: sized(&[4; 100]),
    }
}

fn open(fake: &FakeTpm) -> Tpm {
    Tpm::over(Box::new(fake.clone()), &Config::default())
}

/// A call; what it gives does not matter.
type Call = fn(&mut Tpm) -> Result<(), TpmError>;

const CALLS: [(&str, Call); 6] = [
    ("public_keys", |tpm| tpm.public_keys().map(drop)),
    ("activate", |tpm| tpm.activate(&blob()).map(drop)),
    ("check", |tpm| tpm.check(&key())),
    ("sign", |tpm| tpm.sign(&key(), b"text").map(drop)),
    ("sign long", |tpm| tpm.sign(&key(), &[7; 3_000]).map(drop)),
    ("describe", |tpm| tpm.describe().map(drop)),
];

#[test]
fn keys_are_made_once_and_kept() {
    let fake = FakeTpm::default();
    let first = open(&fake).public_keys().expect("keys");
    assert_eq!(first.endorsement[..4], [1, 0x3a, 0, 1]);
    assert_eq!(first.storage_root[2..], area(Root::Storage));
    let state = || fake.0.lock().expect("a lock");
    assert_eq!(state().kept, BTreeSet::from([0x8100_0001, 0x8101_0001]));
    assert!(state().loaded.is_empty());
    state().commands.clear();
    assert_eq!(open(&fake).public_keys().expect("keys"), first);
    assert_eq!(state().commands, [0x173, 0x173]);
}

#[test]
fn a_key_that_cannot_be_kept_is_used_all_the_same() {
    let fake = FakeTpm::default();
    // The command after the first read and the first key.
    fake.0.lock().expect("a lock").faults = [(2, Fault::Refused(0x14b))].into();
    open(&fake).public_keys().expect("keys");
    let state = fake.0.lock().expect("a lock");
    assert_eq!(state.kept, BTreeSet::from([0x8100_0001]));
    assert!(state.loaded.is_empty());
}

#[test]
fn a_service_key_is_taken_in_the_order_of_the_sdks() {
    let fake = FakeTpm::default();
    open(&fake).public_keys().expect("keys");
    fake.0.lock().expect("a lock").commands.clear();
    let sealed = open(&fake).activate(&blob()).expect("a key");
    assert_eq!(sealed, key());
    let state = fake.0.lock().expect("a lock");
    assert_eq!(
        state.commands,
        [0x173, 0x173, 0x176, 0x151, 0x147, 0x156, 0x157, 0x165]
    );
    assert!(state.loaded.is_empty());
}

#[test]
fn texts_are_signed_whole_whatever_their_length() {
    for (length, pieces) in [(0, 1), (1_024, 1), (1_025, 2), (2_048, 2), (5_000, 5)] {
        let fake = FakeTpm::default();
        let text: Vec<u8> = (0..length).map(|number| number as u8).collect();
        assert_eq!(open(&fake).sign(&key(), &text).expect("signed"), SIGNATURE);
        let state = fake.0.lock().expect("a lock");
        assert_eq!((state.texts.len(), state.texts.concat()), (pieces, text));
        assert!(state.loaded.is_empty());
    }
}

#[test]
fn the_manufacturer_is_told() {
    let told = open(&FakeTpm::default()).describe().expect("told");
    assert_eq!(
        (
            told.manufacturer.as_str(),
            told.model.as_str(),
            told.firmware.as_str()
        ),
        ("IBM", "SW", "7.1")
    );
}

#[test]
fn a_tpm_without_time_is_asked_again_and_one_that_sleeps_is_started() {
    let fake = FakeTpm::default();
    fake.0.lock().expect("a lock").faults = [(0, Fault::Refused(0x922)), (1, Fault::Refused(0x908))].into();
    open(&fake).check(&key()).expect("a key");
    let fake = FakeTpm::default();
    fake.0.lock().expect("a lock").needs_start = true;
    open(&fake).check(&key()).expect("a key");
    assert_eq!(
        fake.0.lock().expect("a lock").commands[..3],
        [0x173, 0x144, 0x173]
    );
    // Once only.
    fake.0.lock().expect("a lock").commands.clear();
    fake.0.lock().expect("a lock").faults = [(0, Fault::Refused(0x100)), (2, Fault::Refused(0x100))].into();
    let error = open(&fake).check(&key()).expect_err("refused");
    assert_eq!(error.code(), Some(ResponseCode(0x100)));
}

#[test]
fn keys_of_another_tpm_are_told_from_other_refusals() {
    for (code, is_foreign) in [(0x1df, true), (0x1d5, true), (0x98e, false), (0x902, false)] {
        let fake = FakeTpm::default();
        open(&fake).public_keys().expect("keys");
        let load = fake.0.lock().expect("a lock").commands.len() + 1;
        fake.0.lock().expect("a lock").faults = [(load, Fault::Refused(code))].into();
        let error = open(&fake).check(&key()).expect_err("refused");
        assert_eq!(
            matches!(error, TpmError::ForeignKey { .. }),
            is_foreign,
            "{error}"
        );
        assert_eq!(error.code(), Some(ResponseCode(code)));
    }
    let damaged = SealedKey {
        public: vec![1],
        private: vec![],
    };
    let error = open(&FakeTpm::default()).check(&damaged).expect_err("damaged");
    assert!(matches!(error, TpmError::ForeignKey { .. }));
}

#[test]
fn a_refused_activation_leaves_no_session() {
    let fake = FakeTpm::default();
    fake.0.lock().expect("a lock").kept = BTreeSet::from([0x8100_0001, 0x8101_0001]);
    // Integrity of the credential: made for another TPM.
    fake.0.lock().expect("a lock").faults = [(4, Fault::Refused(0x1df))].into();
    let error = open(&fake).activate(&blob()).expect_err("refused");
    assert!(error.to_string().contains("TPM2_ActivateCredential"), "{error}");
    assert!(fake.0.lock().expect("a lock").loaded.is_empty());
    let cut = open(&fake).activate(&blob()[..100]).expect_err("cut off");
    assert!(matches!(cut, TpmError::Blob(_)));
}

/// Every call with every one of its answers spoilt in every way: it fails in words or does not care, and leaves nothing in
/// the TPM's memory if that can still be told what to forget.
#[test]
fn no_answer_confuses() {
    for (name, call) in CALLS {
        let whole = FakeTpm::default();
        call(&mut open(&whole)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (answers, bodies) = {
            let state = whole.0.lock().expect("a lock");
            (state.commands.clone(), state.bodies.clone())
        };
        for (number, (code, length)) in answers.iter().zip(bodies).enumerate() {
            let cuts = (0..length).map(Fault::Cut);
            let ones = (0..length).map(Fault::Ones);
            let others = [Fault::Longer, Fault::Gone, Fault::Refused(0x101)];
            for fault in cuts.chain(ones).chain(others) {
                let fake = FakeTpm::default();
                fake.0.lock().expect("a lock").faults = [(number, fault)].into();
                let outcome = call(&mut open(&fake));
                let state = fake.0.lock().expect("a lock");
                let flushes = *code == 0x165;
                match fault {
                    // Nobody waits for what forgetting says.
                    _ if flushes => {}
                    Fault::Longer | Fault::Gone | Fault::Refused(_) => {
                        assert!(outcome.is_err(), "{name}: {fault:?} of command {number}");
                    }
                    Fault::Cut(_) | Fault::Ones(_) => {}
                }
                // A handle that was not read cannot be forgotten.
                let hidden = matches!(*code, 0x131 | 0x157 | 0x15b | 0x176) || flushes;
                assert!(
                    hidden || state.loaded.is_empty(),
                    "{name}: {fault:?} of command {number} leaves {:x?}",
                    state.loaded
                );
            }
        }
    }
}
