//! Commands and answers as bytes (TPM 2.0 Part 1, "Command/Response Structure"). Everything is big-endian; most fields are
//! buffers with their size before them, whose inside nobody here looks at.

use zeroize::Zeroizing;

/// Tag, size, code.
pub(crate) const HEADER_BYTES: usize = 10;
/// Longest command and longest answer: what the kernel's driver takes.
pub(crate) const COMMAND_BYTES_MAX: usize = 4_096;
pub(crate) const ANSWER_BYTES_MAX: usize = 4_096;

const ST_NO_SESSIONS: u16 = 0x8001;
const ST_SESSIONS: u16 = 0x8002;
/// Tag of the answers of a TPM 1.2.
const TAG_TPM_1_2: u16 = 0x00c4;

/// Handle of the session that stands for a plain authorization value.
const RS_PW: u32 = 0x4000_0009;

/// A command that is sent here (TPM 2.0 Part 2, `TPM_CC`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum Code {
    EvictControl = 0x0120,
    CreatePrimary = 0x0131,
    SequenceComplete = 0x013e,
    Startup = 0x0144,
    ActivateCredential = 0x0147,
    PolicySecret = 0x0151,
    Hmac = 0x0155,
    Import = 0x0156,
    Load = 0x0157,
    HmacStart = 0x015b,
    SequenceUpdate = 0x015c,
    FlushContext = 0x0165,
    ReadPublic = 0x0173,
    StartAuthSession = 0x0176,
    GetCapability = 0x017a,
}

impl Code {
    /// As the specification writes it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Code::EvictControl => "TPM2_EvictControl",
            Code::CreatePrimary => "TPM2_CreatePrimary",
            Code::SequenceComplete => "TPM2_SequenceComplete",
            Code::Startup => "TPM2_Startup",
            Code::ActivateCredential => "TPM2_ActivateCredential",
            Code::PolicySecret => "TPM2_PolicySecret",
            Code::Hmac => "TPM2_HMAC",
            Code::Import => "TPM2_Import",
            Code::Load => "TPM2_Load",
            Code::HmacStart => "TPM2_HMAC_Start",
            Code::SequenceUpdate => "TPM2_SequenceUpdate",
            Code::FlushContext => "TPM2_FlushContext",
            Code::ReadPublic => "TPM2_ReadPublic",
            Code::StartAuthSession => "TPM2_StartAuthSession",
            Code::GetCapability => "TPM2_GetCapability",
        }
    }

    /// Whether its answer begins with a handle.
    const fn gives_handle(self) -> bool {
        matches!(
            self,
            Code::CreatePrimary | Code::Load | Code::HmacStart | Code::StartAuthSession
        )
    }
}

/// How a handle of a command is authorized.
#[derive(Clone, Copy)]
pub(crate) enum Auth<'a> {
    /// With its authorization value.
    Password(&'a [u8]),
    /// With a policy session, which ends with the command if that succeeds.
    Policy(u32),
}

/// No authorization value.
pub(crate) const NO_PASSWORD: Auth<'static> = Auth::Password(&[]);

/// Bytes put together.
#[derive(Default)]
pub(crate) struct Writer(Zeroizing<Vec<u8>>);

impl Writer {
    #[must_use]
    pub(crate) fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    #[must_use]
    pub(crate) fn u16(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    #[must_use]
    pub(crate) fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    #[must_use]
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A buffer with its size before it. One that is too long for a size makes a command that is too long, too, which is
    /// found before it is sent.
    #[must_use]
    pub(crate) fn sized(self, bytes: &[u8]) -> Self {
        let size = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        self.u16(size).raw(bytes)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A command before it is bytes.
pub(crate) struct Command<'a> {
    pub(crate) code: Code,
    pub(crate) handles: &'a [u32],
    /// For the first handles, one each; none for a command without authorization.
    pub(crate) auths: &'a [Auth<'a>],
    pub(crate) parameters: Writer,
}

impl Command<'_> {
    /// The command as bytes, or its length if it is too long.
    pub(crate) fn encode(&self) -> Result<Zeroizing<Vec<u8>>, usize> {
        let mut areas = Writer::default();
        for auth in self.auths {
            areas = match auth {
                // No nonce; the session goes on (TPM 2.0 Part 1, "Password Authorizations").
                Auth::Password(value) => areas.u32(RS_PW).sized(&[]).u8(1).sized(value),
                // No nonce and no HMAC: the session has no key, and the policy needs none.
                Auth::Policy(session) => areas.u32(*session).sized(&[]).u8(0).sized(&[]),
            };
        }
        let mut body = Writer::default();
        for handle in self.handles {
            body = body.u32(*handle);
        }
        if !self.auths.is_empty() {
            body = body.u32(areas.bytes().len() as u32).raw(areas.bytes());
        }
        let body = body.raw(self.parameters.bytes());
        let size = HEADER_BYTES + body.bytes().len();
        if size > COMMAND_BYTES_MAX {
            return Err(size);
        }
        let tag = match self.auths {
            [] => ST_NO_SESSIONS,
            _ => ST_SESSIONS,
        };
        let whole = Writer::default().u16(tag).u32(size as u32);
        Ok(whole.u32(self.code as u32).raw(body.bytes()).0)
    }
}

/// Why bytes are no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("it is cut off")]
    Truncated,
    #[error("it has bytes at its end that nobody knows")]
    TrailingBytes,
    #[error("its sizes contradict each other")]
    WrongSize,
    #[error("its tag is that of no answer")]
    WrongTag,
    #[error("it is that of a TPM 1.2")]
    Tpm12,
    #[error("a field is longer than it can be")]
    TooLong,
}

/// What an answer says besides that the command succeeded.
pub(crate) struct Answer {
    /// If the command gives one.
    pub(crate) handle: Option<u32>,
    parameters: Zeroizing<Vec<u8>>,
}

/// Success, or the code of the refusal.
pub(crate) type Outcome = Result<Answer, u32>;

/// Reads the answer to a command with so many authorizations.
pub(crate) fn decode(bytes: &[u8], code: Code, auths: usize) -> Result<Outcome, Malformed> {
    let mut fields = Fields(bytes);
    let (tag, size, response) = (fields.u16()?, fields.u32()?, fields.u32()?);
    match tag {
        ST_NO_SESSIONS | ST_SESSIONS => {}
        TAG_TPM_1_2 => return Err(Malformed::Tpm12),
        _ => return Err(Malformed::WrongTag),
    }
    if size as usize != bytes.len() {
        return Err(Malformed::WrongSize);
    }
    if response != 0 {
        return Ok(Err(response));
    }
    if (tag == ST_SESSIONS) != (auths > 0) {
        return Err(Malformed::WrongTag);
    }
    let handle = match code.gives_handle() {
        true => Some(fields.u32()?),
        false => None,
    };
    if auths > 0 {
        let size = fields.u32()? as usize;
        let parameters = fields.take(size)?;
        for _ in 0..auths {
            // Nonce, attributes, HMAC: nothing that a plain password or a policy without key has a use for.
            fields.sized(ANSWER_BYTES_MAX)?;
            fields.u8()?;
            fields.sized(ANSWER_BYTES_MAX)?;
        }
        fields.end()?;
        fields = Fields(parameters);
    }
    Ok(Ok(Answer {
        handle,
        parameters: Zeroizing::new(fields.0.to_vec()),
    }))
}

impl Answer {
    pub(crate) fn fields(&self) -> Fields<'_> {
        Fields(&self.parameters)
    }
}

/// Reads fields from the front.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (front, rest) = self.0.split_at_checked(count).ok_or(Malformed::Truncated)?;
        self.0 = rest;
        Ok(front)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// A buffer with its size before it, of at most `max` bytes.
    pub(crate) fn sized(&mut self, max: usize) -> Result<&'a [u8], Malformed> {
        let size = usize::from(self.u16()?);
        match size <= max {
            true => self.take(size),
            false => Err(Malformed::TooLong),
        }
    }

    pub(crate) fn end(&self) -> Result<(), Malformed> {
        match self.0 {
            [] => Ok(()),
            _ => Err(Malformed::TrailingBytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_those_of_the_specification() {
        let read = Command {
            code: Code::ReadPublic,
            handles: &[0x8101_0001],
            auths: &[],
            parameters: Writer::default(),
        };
        assert_eq!(
            read.encode().expect("a command").as_slice(),
            b"\x80\x01\x00\x00\x00\x0e\x00\x00\x01\x73\x81\x01\x00\x01"
        );
        let policy = Command {
            code: Code::ActivateCredential,
            handles: &[0x8100_0001, 0x8101_0001],
            auths: &[Auth::Password(b"pw"), Auth::Policy(0x0300_0000)],
            parameters: Writer::default().sized(b"blob").sized(b""),
        };
        let expected = [
            &b"\x80\x02\x00\x00\x00\x32\x00\x00\x01\x47"[..],
            b"\x81\x00\x00\x01\x81\x01\x00\x01",
            b"\x00\x00\x00\x14",
            b"\x40\x00\x00\x09\x00\x00\x01\x00\x02pw\x03\x00\x00\x00\x00\x00\x00\x00\x00",
            b"\x00\x04blob\x00\x00",
        ];
        assert_eq!(policy.encode().expect("a command").as_slice(), expected.concat());
    }

    #[test]
    fn commands_have_a_bound() {
        for (length, taken) in [(COMMAND_BYTES_MAX - HEADER_BYTES - 2, true), (70_000, false)] {
            let command = Command {
                code: Code::Load,
                handles: &[],
                auths: &[],
                parameters: Writer::default().sized(&vec![7; length]),
            };
            assert_eq!(command.encode().is_ok(), taken, "{length}");
        }
    }

    fn answer(tag: u16, rest: &[u8]) -> Vec<u8> {
        let head = Writer::default().u16(tag).u32((HEADER_BYTES + rest.len()) as u32);
        head.u32(0).raw(rest).bytes().to_vec()
    }

    #[test]
    fn answers_are_taken_apart() {
        let body = b"\x80\xff\xff\xff\x00\x00\x00\x04\x00\x02ok\x00\x00\x01\x00\x00";
        let bytes = answer(ST_SESSIONS, body);
        let read = decode(&bytes, Code::Load, 1).expect("well formed");
        let read = read.unwrap_or_else(|code| panic!("refused with {code}"));
        assert_eq!(read.handle, Some(0x80ff_ffff));
        let mut fields = read.fields();
        assert_eq!(fields.sized(2), Ok(&b"ok"[..]));
        assert_eq!(fields.end(), Ok(()));
    }

    #[test]
    fn every_shorter_and_longer_answer_is_malformed() {
        let body = b"\x80\xff\xff\xff\x00\x00\x00\x04\x00\x02ok\x00\x00\x01\x00\x00";
        let whole = answer(ST_SESSIONS, body);
        for length in 0..whole.len() {
            // Cut off as received, and cut off with a header that agrees.
            assert!(decode(&whole[..length], Code::Load, 1).is_err(), "{length}");
            if length >= HEADER_BYTES {
                let agreed = answer(ST_SESSIONS, &body[..length - HEADER_BYTES]);
                assert!(decode(&agreed, Code::Load, 1).is_err(), "{length}");
            }
        }
        let mut longer = body.to_vec();
        longer.push(0);
        let longer = answer(ST_SESSIONS, &longer);
        assert_eq!(
            decode(&longer, Code::Load, 1).err(),
            Some(Malformed::TrailingBytes)
        );
    }

    #[test]
    fn sizes_that_cannot_be_are_malformed() {
        // Parameters longer than the answer.
        let far = answer(ST_SESSIONS, b"\xff\xff\xff\xff\x00\x00\x01\x00\x00");
        assert_eq!(decode(&far, Code::Hmac, 1).err(), Some(Malformed::Truncated));
        let mut fields = Fields(b"\x00\x21");
        assert_eq!(fields.sized(0x20), Err(Malformed::TooLong));
        let mut wrong = answer(ST_NO_SESSIONS, b"");
        wrong[5] = 11;
        assert_eq!(
            decode(&wrong, Code::FlushContext, 0).err(),
            Some(Malformed::WrongSize)
        );
    }

    #[test]
    fn tags_must_fit() {
        let plain = answer(ST_NO_SESSIONS, b"");
        assert!(decode(&plain, Code::FlushContext, 0).is_ok());
        assert_eq!(decode(&plain, Code::Hmac, 1).err(), Some(Malformed::WrongTag));
        let old = answer(TAG_TPM_1_2, b"");
        assert_eq!(decode(&old, Code::ReadPublic, 0).err(), Some(Malformed::Tpm12));
        let strange = answer(0x1234, b"");
        assert_eq!(
            decode(&strange, Code::ReadPublic, 0).err(),
            Some(Malformed::WrongTag)
        );
    }

    #[test]
    fn a_refusal_has_a_code() {
        let refused = b"\x80\x01\x00\x00\x00\x0a\x00\x00\x01\x8b";
        let outcome = decode(refused, Code::ReadPublic, 0).expect("well formed");
        assert_eq!(outcome.err(), Some(0x018b));
        // Also to a command with authorizations.
        assert!(decode(refused, Code::Load, 1).is_ok());
    }
}
