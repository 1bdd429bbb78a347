//! The commands, and what is done with them.
//!
//! Nothing stays in the TPM's memory: what a call loads, it takes out again, also when it fails. What is kept in the TPM for
//! good are its endorsement key and its storage root key, at the handles where the SDKs keep them.

use std::fmt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use crate::address::Address;
use crate::error::TpmError;
use crate::keys::{
    ALG_AES, ALG_CFB, ALG_NULL, ALG_SHA256, Blob, DIGEST_BYTES_MAX, PRIVATE_BYTES_MAX, PUBLIC_BYTES_MAX,
    PublicKeys, Root, SealedKey,
};
use crate::response_code::ResponseCode;
use crate::transport::{self, Transport};
use crate::wire::{self, ANSWER_BYTES_MAX, Answer, Auth, Code, Command, Malformed, NO_PASSWORD, Writer};

/// Bytes that a TPM takes at once to sign (TPM 2.0 Part 2, `MAX_DIGEST_BUFFER`).
const SIGN_BYTES_MAX: usize = 1_024;
/// How long a TPM that has no time is asked again, and the pauses.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// Nonce of a session (at least 16 bytes).
const NONCE_BYTES: usize = 32;

/// `TPM_RH_NULL`.
const RH_NULL: u32 = 0x4000_0007;
/// `TPM_SE_POLICY`.
const SE_POLICY: u8 = 1;
/// `TPM_CAP_TPM_PROPERTIES`, and the properties that are asked for.
const CAP_PROPERTIES: u32 = 6;
const PT_FIXED: u32 = 0x100;
const PT_COUNT: u32 = 16;
const PT_MANUFACTURER: u32 = 0x105;
const PT_VENDOR: std::ops::RangeInclusive<u32> = 0x106..=0x109;
const PT_FIRMWARE: u32 = 0x10b;

/// Where a TPM is, and the authorization values of its hierarchies.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// Where it is.
    pub address: Address,
    /// Of the owner hierarchy: needed to make and keep keys. Empty unless somebody has set one.
    pub owner_auth: Zeroizing<Vec<u8>>,
    /// Of the endorsement hierarchy: needed to activate a key. Empty unless somebody has set one.
    pub endorsement_auth: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// What a TPM says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Description {
    /// Four letters that the Trusted Computing Group has given out, such as `IFX` or `STM`.
    pub manufacturer: String,
    /// The manufacturer's own text.
    pub model: String,
    /// Version of its firmware.
    pub firmware: String,
}

/// An open TPM. Calls block, for up to half a minute when keys are made.
pub struct Tpm {
    transport: Box<dyn Transport>,
    owner_auth: Zeroizing<Vec<u8>>,
    endorsement_auth: Zeroizing<Vec<u8>>,
}

/// One of the two keys of a TPM, ready for use.
struct Loaded {
    handle: u32,
    /// To be taken out again.
    is_transient: bool,
    /// `TPMT_PUBLIC`.
    public: Vec<u8>,
}

impl Tpm {
    /// Opens it. Nothing is sent yet.
    ///
    /// # Errors
    /// [`TpmError::Open`].
    pub fn open(config: &Config) -> Result<Self, TpmError> {
        let transport = transport::open(&config.address).map_err(|cause| TpmError::Open {
            address: config.address.clone(),
            cause,
        })?;
        Ok(Tpm::over(transport, config))
    }

    pub(crate) fn over(transport: Box<dyn Transport>, config: &Config) -> Self {
        Tpm {
            transport,
            owner_auth: config.owner_auth.clone(),
            endorsement_auth: config.endorsement_auth.clone(),
        }
    }

    /// Who made it.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn describe(&mut self) -> Result<Description, TpmError> {
        let parameters = Writer::default().u32(CAP_PROPERTIES).u32(PT_FIXED).u32(PT_COUNT);
        let answer = self.plain(Code::GetCapability, &[], parameters)?;
        let read = || {
            let mut fields = answer.fields();
            fields.u8()?;
            if fields.u32()? != CAP_PROPERTIES {
                return Err(Malformed::WrongSize);
            }
            let mut told = Description::default();
            for _ in 0..fields.u32()? {
                let (property, value) = (fields.u32()?, fields.u32()?);
                if property == PT_MANUFACTURER {
                    told.manufacturer = letters(value);
                } else if PT_VENDOR.contains(&property) {
                    told.model.push_str(&letters(value));
                } else if property == PT_FIRMWARE {
                    told.firmware = format!("{}.{}", value >> 16, value & 0xffff);
                }
            }
            fields.end().map(|()| told)
        };
        let mut told: Description = read().map_err(|what| malformed(Code::GetCapability, what))?;
        // Filled up with blanks.
        told.model = told.model.split_whitespace().collect::<Vec<_>>().join(" ");
        Ok(told)
    }

    /// Public parts of endorsement key and storage root key; makes and keeps them in a TPM that has none.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn public_keys(&mut self) -> Result<PublicKeys, TpmError> {
        let mut public = |root| self.with_root(root, |_, loaded| Ok(sized(&loaded.public)));
        Ok(PublicKeys {
            endorsement: public(Root::Endorsement)?,
            storage_root: public(Root::Storage)?,
        })
    }

    /// Takes a key that a service has made for this TPM.
    ///
    /// # Errors
    /// [`TpmError::Blob`], and [`TpmError::Refused`] when it was made for another TPM.
    pub fn activate(&mut self, blob: &[u8]) -> Result<SealedKey, TpmError> {
        let blob = Blob::read(blob).map_err(TpmError::Blob)?;
        self.with_root(Root::Storage, |tpm, storage| {
            let inner_key = tpm.with_root(Root::Endorsement, |tpm, endorsement| {
                tpm.activate_credential(storage.handle, endorsement.handle, &blob)
            })?;
            let private = tpm.import(storage.handle, &inner_key, &blob)?;
            let key = SealedKey {
                public: sized(blob.public),
                private,
            };
            // That it can be used is known now, and not when it is needed.
            tpm.with_key(storage.handle, &key, |_, _| Ok(()))?;
            Ok(key)
        })
    }

    /// Checks that a key can be used.
    ///
    /// # Errors
    /// [`TpmError::ForeignKey`] for one of another TPM or from before this one was cleared.
    pub fn check(&mut self, key: &SealedKey) -> Result<(), TpmError> {
        self.with_root(Root::Storage, |tpm, storage| {
            tpm.with_key(storage.handle, key, |_, _| Ok(()))
        })
    }

    /// HMAC-SHA256 of a text of any length.
    ///
    /// # Errors
    /// As of [`Tpm::check`].
    pub fn sign(&mut self, key: &SealedKey, text: &[u8]) -> Result<[u8; 32], TpmError> {
        self.with_root(Root::Storage, |tpm, storage| {
            tpm.with_key(storage.handle, key, |tpm, key| tpm.hmac(key, text))
        })
    }

    fn with_root<R>(
        &mut self,
        root: Root,
        work: impl FnOnce(&mut Self, &Loaded) -> Result<R, TpmError>,
    ) -> Result<R, TpmError> {
        let loaded = self.root(root)?;
        let outcome = work(self, &loaded);
        if loaded.is_transient {
            self.flush(loaded.handle);
        }
        outcome
    }

    /// The kept key, if it is of the right kind. If there is none, one is made and kept. If it is of another kind, somebody
    /// else needs it as it is, and the right one is made for this call only: from one TPM, always the same.
    fn root(&mut self, root: Root) -> Result<Loaded, TpmError> {
        let is_free = match self.read_public(root.handle()) {
            Ok(public) if root.fits(&public) => {
                return Ok(Loaded {
                    handle: root.handle(),
                    is_transient: false,
                    public,
                });
            }
            Ok(_) => false,
            Err(TpmError::Refused { code, .. }) if code.is_no_such_handle() => true,
            Err(error) => return Err(error),
        };
        let mut loaded = self.create_primary(root)?;
        if is_free {
            let kept = self.keep(loaded.handle, root.handle());
            match kept {
                Ok(()) => {
                    self.flush(loaded.handle);
                    loaded.handle = root.handle();
                    loaded.is_transient = false;
                }
                // It can be used all the same.
                Err(TpmError::Refused { code, .. }) if code.is_not_kept() => {}
                Err(error) => {
                    self.flush(loaded.handle);
                    return Err(error);
                }
            }
        }
        Ok(loaded)
    }

    fn with_key<R>(
        &mut self,
        parent: u32,
        key: &SealedKey,
        work: impl FnOnce(&mut Self, u32) -> Result<R, TpmError>,
    ) -> Result<R, TpmError> {
        let (public, private) = key.areas().map_err(|_| TpmError::ForeignKey {
            code: ResponseCode(0x095),
        })?;
        let parameters = Writer::default().sized(private).sized(public);
        let answer = match self.run(Code::Load, &[parent], &[NO_PASSWORD], parameters) {
            // All that it is given is the key.
            Err(TpmError::Refused { code, .. }) if code.is_of_parameter() => {
                return Err(TpmError::ForeignKey { code });
            }
            answer => answer?,
        };
        let handle = handle(&answer, Code::Load)?;
        let outcome = work(self, handle);
        self.flush(handle);
        outcome
    }

    fn read_public(&mut self, handle: u32) -> Result<Vec<u8>, TpmError> {
        let answer = self.plain(Code::ReadPublic, &[handle], Writer::default())?;
        let mut fields = answer.fields();
        let read = fields.sized(PUBLIC_BYTES_MAX);
        // Name and qualified name follow.
        read.map(<[u8]>::to_vec)
            .map_err(|what| malformed(Code::ReadPublic, what))
    }

    fn create_primary(&mut self, root: Root) -> Result<Loaded, TpmError> {
        let auth = match root {
            Root::Endorsement => self.endorsement_auth.clone(),
            Root::Storage => self.owner_auth.clone(),
        };
        // No authorization value, no data, no PCRs.
        let no_secrets = Writer::default().sized(&[]).sized(&[]);
        let parameters = Writer::default()
            .sized(no_secrets.bytes())
            .sized(root.template().bytes())
            .sized(&[])
            .u32(0);
        let auths = [Auth::Password(&auth)];
        let answer = self.run(Code::CreatePrimary, &[root.hierarchy()], &auths, parameters)?;
        let public = answer.fields().sized(PUBLIC_BYTES_MAX).map(<[u8]>::to_vec);
        let handle = handle(&answer, Code::CreatePrimary)?;
        match public {
            Ok(public) if root.fits(&public) => Ok(Loaded {
                handle,
                is_transient: true,
                public,
            }),
            _ => {
                self.flush(handle);
                Err(malformed(Code::CreatePrimary, Malformed::WrongSize))
            }
        }
    }

    fn keep(&mut self, transient: u32, persistent: u32) -> Result<(), TpmError> {
        let auth = self.owner_auth.clone();
        let handles = [Root::Storage.hierarchy(), transient];
        let parameters = Writer::default().u32(persistent);
        self.run(Code::EvictControl, &handles, &[Auth::Password(&auth)], parameters)
            .map(drop)
    }

    /// The inner wrapping key of a blob, which a TPM tells only if both its keys are those that the blob was made for.
    fn activate_credential(
        &mut self,
        storage: u32,
        endorsement: u32,
        blob: &Blob<'_>,
    ) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let session = self.start_policy()?;
        let activated = self.satisfy_policy(session).and_then(|()| {
            let parameters = Writer::default()
                .sized(blob.credential)
                .sized(blob.credential_secret);
            let auths = [NO_PASSWORD, Auth::Policy(session)];
            self.run(
                Code::ActivateCredential,
                &[storage, endorsement],
                &auths,
                parameters,
            )
        });
        let answer = match activated {
            Ok(answer) => answer,
            Err(error) => {
                // A session that a command has used up is gone by itself.
                self.flush(session);
                return Err(error);
            }
        };
        let inner_key = one_buffer(&answer, DIGEST_BYTES_MAX);
        inner_key.map_err(|what| malformed(Code::ActivateCredential, what))
    }

    fn start_policy(&mut self) -> Result<u32, TpmError> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(|_| TpmError::Random)?;
        let parameters = Writer::default().sized(&nonce).sized(&[]);
        let parameters = parameters.u8(SE_POLICY).u16(ALG_NULL).u16(ALG_SHA256);
        let answer = self.plain(Code::StartAuthSession, &[RH_NULL, RH_NULL], parameters)?;
        handle(&answer, Code::StartAuthSession)
    }

    /// `TPM2_PolicySecret` of the endorsement hierarchy: what endorsement keys want.
    fn satisfy_policy(&mut self, session: u32) -> Result<(), TpmError> {
        let auth = self.endorsement_auth.clone();
        let handles = [Root::Endorsement.hierarchy(), session];
        let parameters = Writer::default().sized(&[]).sized(&[]).sized(&[]).u32(0);
        self.run(Code::PolicySecret, &handles, &[Auth::Password(&auth)], parameters)
            .map(drop)
    }

    fn import(&mut self, parent: u32, inner_key: &[u8], blob: &Blob<'_>) -> Result<Vec<u8>, TpmError> {
        // The service chooses the size, the rest is fixed.
        let bits = match inner_key.len() {
            bytes @ (16 | 24 | 32) => bytes as u16 * 8,
            _ => return Err(TpmError::Blob("its wrapping key is none of AES")),
        };
        let parameters = Writer::default()
            .sized(inner_key)
            .sized(blob.public)
            .sized(blob.duplicate)
            .sized(blob.seed)
            .u16(ALG_AES)
            .u16(bits)
            .u16(ALG_CFB);
        let answer = self.run(Code::Import, &[parent], &[NO_PASSWORD], parameters)?;
        let private = one_buffer(&answer, PRIVATE_BYTES_MAX);
        let private = private.map_err(|what| malformed(Code::Import, what))?;
        Ok(sized(&private))
    }

    fn hmac(&mut self, key: u32, text: &[u8]) -> Result<[u8; 32], TpmError> {
        if text.len() <= SIGN_BYTES_MAX {
            let parameters = Writer::default().sized(text).u16(ALG_SHA256);
            let answer = self.run(Code::Hmac, &[key], &[NO_PASSWORD], parameters)?;
            return signature(&answer, Code::Hmac);
        }
        // The sequence has no authorization value of its own.
        let parameters = Writer::default().sized(&[]).u16(ALG_SHA256);
        let answer = self.run(Code::HmacStart, &[key], &[NO_PASSWORD], parameters)?;
        let sequence = handle(&answer, Code::HmacStart)?;
        let mut pieces = text.chunks(SIGN_BYTES_MAX).peekable();
        let outcome = loop {
            let piece = pieces.next().unwrap_or_default();
            let (code, parameters) = match pieces.peek() {
                Some(_) => (Code::SequenceUpdate, Writer::default().sized(piece)),
                None => (
                    Code::SequenceComplete,
                    Writer::default().sized(piece).u32(RH_NULL),
                ),
            };
            match self.run(code, &[sequence], &[NO_PASSWORD], parameters) {
                Ok(answer) if code == Code::SequenceComplete => break signature(&answer, code),
                Ok(_) => {}
                Err(error) => break Err(error),
            }
        };
        if outcome.is_err() {
            self.flush(sequence);
        }
        outcome
    }

    /// Takes something out of the TPM's memory.
    fn flush(&mut self, handle: u32) {
        // What came before decides; and a TPM that fails here fails the next command, too.
        let _ = self.plain(Code::FlushContext, &[], Writer::default().u32(handle));
    }

    /// A command without authorization.
    fn plain(&mut self, code: Code, handles: &[u32], parameters: Writer) -> Result<Answer, TpmError> {
        self.run(code, handles, &[], parameters)
    }

    /// Sends a command, again if the TPM wants it so.
    fn run(
        &mut self,
        code: Code,
        handles: &[u32],
        auths: &[Auth<'_>],
        parameters: Writer,
    ) -> Result<Answer, TpmError> {
        let command = Command {
            code,
            handles,
            auths,
            parameters,
        };
        let bytes = command
            .encode()
            .map_err(|_| TpmError::Blob("it makes a command that is too long for a TPM"))?;
        let (started, mut pause) = (Instant::now(), PAUSE.0);
        let mut was_started = false;
        loop {
            let code = match self.exchange(code, &bytes, auths.len())? {
                Ok(answer) => return Ok(answer),
                Err(code) => ResponseCode(code),
            };
            if code.is_not_started() && !was_started {
                // A device node is never like this: the kernel has done it.
                self.start()?;
                was_started = true;
            } else if code.is_try_again() && started.elapsed() + pause < PATIENCE {
                sleep(pause);
                pause = (pause * 2).min(PAUSE.1);
            } else {
                let command = command.code.name();
                return Err(TpmError::Refused { command, code });
            }
        }
    }

    /// `TPM2_Startup`, with a state that is cleared.
    fn start(&mut self) -> Result<(), TpmError> {
        let command = Command {
            code: Code::Startup,
            handles: &[],
            auths: &[],
            parameters: Writer::default().u16(0),
        };
        let bytes = command.encode().map_err(|_| TpmError::Random)?;
        self.exchange(Code::Startup, &bytes, 0)?
            .map(drop)
            .map_err(|code| TpmError::Refused {
                command: Code::Startup.name(),
                code: ResponseCode(code),
            })
    }

    fn exchange(&mut self, code: Code, command: &[u8], auths: usize) -> Result<wire::Outcome, TpmError> {
        let answer = self
            .transport
            .exchange(command)
            .map_err(|cause| TpmError::Exchange {
                command: code.name(),
                cause,
            })?;
        if answer.len() > ANSWER_BYTES_MAX {
            return Err(malformed(code, Malformed::TooLong));
        }
        wire::decode(&answer, code, auths).map_err(|what| malformed(code, what))
    }
}

fn malformed(code: Code, what: Malformed) -> TpmError {
    TpmError::answer(code.name(), what)
}

fn handle(answer: &Answer, code: Code) -> Result<u32, TpmError> {
    answer.handle.ok_or_else(|| malformed(code, Malformed::Truncated))
}

/// An answer that is one buffer.
fn one_buffer(answer: &Answer, max: usize) -> Result<Zeroizing<Vec<u8>>, Malformed> {
    let mut fields = answer.fields();
    let buffer = fields.sized(max)?;
    fields.end()?;
    Ok(Zeroizing::new(buffer.to_vec()))
}

/// The first buffer of an answer, which must be an HMAC-SHA256.
fn signature(answer: &Answer, code: Code) -> Result<[u8; 32], TpmError> {
    let read = answer.fields().sized(DIGEST_BYTES_MAX);
    let read = read.map_err(|what| malformed(code, what))?;
    read.try_into().map_err(|_| malformed(code, Malformed::WrongSize))
}

/// A buffer with its size before it.
fn sized(bytes: &[u8]) -> Vec<u8> {
    Writer::default().sized(bytes).bytes().to_vec()
}

/// Four letters in a number.
fn letters(value: u32) -> String {
    let bytes = value.to_be_bytes();
    let letters = bytes
        .iter()
        .filter(|byte| byte.is_ascii_graphic() || **byte == b' ');
    letters.map(|byte| char::from(*byte)).collect()
}

#[cfg(test)]
mod tests;
