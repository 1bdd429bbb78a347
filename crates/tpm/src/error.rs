//! What can go wrong with a TPM.

use std::io;

use crate::address::Address;
use crate::response_code::ResponseCode;
use crate::wire::Malformed;

/// Something that a TPM did not do.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// There is none, it is in use, or this user may not use it.
    #[error("the TPM at {address} cannot be opened: {cause}")]
    Open {
        /// Where.
        address: Address,
        /// Why.
        cause: io::Error,
    },
    /// It went away, or did not answer in time.
    #[error("the TPM gives no answer to {command}: {cause}")]
    Exchange {
        /// As the specification calls it.
        command: &'static str,
        /// Why.
        cause: io::Error,
    },
    /// Its answer is none of a TPM 2.0.
    #[error("the TPM's answer to {command} cannot be read: {what}")]
    Answer {
        /// As the specification calls it.
        command: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// It answered that it will not.
    #[error("the TPM refuses {command}: {code}")]
    Refused {
        /// As the specification calls it.
        command: &'static str,
        /// Why.
        code: ResponseCode,
    },
    /// A key that was kept is of another TPM, or of this one before it was cleared.
    #[error("the key was not made for this TPM, or the TPM has been cleared since: {code}")]
    ForeignKey {
        /// What the TPM says.
        code: ResponseCode,
    },
    /// What a service sent is not a key for a TPM.
    #[error("what the service sent is no key for a TPM: {0}")]
    Blob(&'static str),
    /// The operating system gives no random numbers.
    #[error("the operating system's random source does not work")]
    Random,
}

impl TpmError {
    pub(crate) fn answer(command: &'static str, what: Malformed) -> Self {
        TpmError::Answer {
            command,
            what: what.to_string(),
        }
    }

    /// The code of a refusal.
    #[must_use]
    pub const fn code(&self) -> Option<ResponseCode> {
        match self {
            TpmError::Refused { code, .. } | TpmError::ForeignKey { code } => Some(*code),
            _ => None,
        }
    }
}
