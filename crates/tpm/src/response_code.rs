//! Response codes in words (TPM 2.0 Part 2, "TPM_RC").

use std::fmt;

/// Codes of format one have this bit; the part behind it says what is wrong, the rest with what.
const FORMAT_ONE: u32 = 0x080;
const FORMAT_ONE_CODE: u32 = 0x0bf;
/// The fault is in a parameter, whose number stands above; else in a handle or a session.
const IN_PARAMETER: u32 = 0x040;
const IN_SESSION: u32 = 0x800;

/// What a TPM says when it refuses a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ResponseCode(pub u32);

/// Codes that occur with the commands of this crate, with the name of the specification and a meaning.
const KNOWN: &[(u32, &str, &str)] = &[
    (0x100, "TPM_RC_INITIALIZE", "it has not been started"),
    (
        0x101,
        "TPM_RC_FAILURE",
        "it has failed its self-test; restart the machine",
    ),
    (0x120, "TPM_RC_DISABLED", "the command is switched off"),
    (0x143, "TPM_RC_COMMAND_CODE", "it does not know the command"),
    (0x14b, "TPM_RC_NV_SPACE", "there is no room for another kept key"),
    (0x14c, "TPM_RC_NV_DEFINED", "a key is kept there already"),
    (
        0x902,
        "TPM_RC_OBJECT_MEMORY",
        "other programs have filled its memory with keys",
    ),
    (
        0x903,
        "TPM_RC_SESSION_MEMORY",
        "other programs have filled its memory with sessions",
    ),
    (0x904, "TPM_RC_MEMORY", "its memory is full"),
    (
        0x905,
        "TPM_RC_SESSION_HANDLES",
        "other programs use all its sessions",
    ),
    (
        0x906,
        "TPM_RC_OBJECT_HANDLES",
        "other programs use all its handles",
    ),
    (0x908, "TPM_RC_YIELDED", "it was interrupted"),
    (0x90a, "TPM_RC_TESTING", "it is testing itself"),
    (0x920, "TPM_RC_NV_RATE", "it spares its memory; try again later"),
    (
        0x921,
        "TPM_RC_LOCKOUT",
        "it is locked after wrong authorization values; it opens by itself with time",
    ),
    (0x922, "TPM_RC_RETRY", "it has no time now"),
    (0x923, "TPM_RC_NV_UNAVAILABLE", "its memory cannot be written now"),
    (0x082, "TPM_RC_ATTRIBUTES", "a key's attributes do not allow it"),
    (0x084, "TPM_RC_VALUE", "a value is out of range"),
    (0x085, "TPM_RC_HIERARCHY", "the hierarchy is switched off"),
    (0x08b, "TPM_RC_HANDLE", "there is no such key"),
    (0x08e, "TPM_RC_AUTH_FAIL", "the authorization value is wrong"),
    (0x095, "TPM_RC_SIZE", "a size is wrong"),
    (0x09c, "TPM_RC_KEY", "the key does not fit"),
    (0x09d, "TPM_RC_POLICY_FAIL", "the key's policy is not satisfied"),
    (0x09f, "TPM_RC_INTEGRITY", "it was not made for a key of this TPM"),
    (0x0a2, "TPM_RC_BAD_AUTH", "the authorization value is wrong"),
    (
        0x0a5,
        "TPM_RC_BINDING",
        "public and private part do not belong together",
    ),
];

impl ResponseCode {
    /// The code without the place of the fault.
    const fn base(self) -> u32 {
        match self.0 & FORMAT_ONE {
            0 => self.0,
            _ => self.0 & FORMAT_ONE_CODE,
        }
    }

    const fn is(self, base: u32) -> bool {
        self.base() == base
    }

    /// The TPM wants the same command again, later.
    pub(crate) const fn is_try_again(self) -> bool {
        matches!(self.0, 0x908 | 0x90a | 0x920 | 0x922)
    }

    /// It has not been started since it has power.
    pub(crate) const fn is_not_started(self) -> bool {
        self.0 == 0x100
    }

    /// There is nothing at a handle. Absence of what was kept only; other handles are known.
    pub(crate) const fn is_no_such_handle(self) -> bool {
        self.is(0x08b)
    }

    /// A key cannot be kept, since there is no room or another one is there.
    pub(crate) const fn is_not_kept(self) -> bool {
        matches!(self.0, 0x14b | 0x14c)
    }

    /// Something is wrong with what was handed over.
    pub(crate) const fn is_of_parameter(self) -> bool {
        self.0 & FORMAT_ONE != 0 && self.0 & IN_PARAMETER != 0
    }

    /// The authorization value of a hierarchy or a key is wrong.
    #[must_use]
    pub const fn is_wrong_authorization(self) -> bool {
        self.is(0x08e) || self.is(0x0a2)
    }

    /// Too many wrong authorization values were tried.
    #[must_use]
    pub const fn is_lockout(self) -> bool {
        self.0 == 0x921
    }

    /// Other programs hold what the TPM has; the kernel's resource manager would have made room.
    #[must_use]
    pub const fn is_full(self) -> bool {
        matches!(self.0, 0x902..=0x906)
    }
}

impl fmt::Display for ResponseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match KNOWN.iter().find(|(code, ..)| self.is(*code)) {
            Some((_, name, meaning)) => write!(f, "{meaning} ({name}, {:#05x}", self.0)?,
            None => write!(f, "code {:#05x}", self.0)?,
        }
        if self.0 & FORMAT_ONE != 0 {
            let number = self.0 >> 8 & 0xf;
            match (self.0 & IN_PARAMETER != 0, self.0 & IN_SESSION != 0) {
                (true, _) => write!(f, ", parameter {number}")?,
                (false, true) => write!(f, ", session {}", number & 7)?,
                (false, false) => write!(f, ", handle {number}")?,
            }
        }
        match KNOWN.iter().any(|(code, ..)| self.is(*code)) {
            true => f.write_str(")"),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_told_with_the_place_of_the_fault() {
        for (code, text) in [
            (0x18b, "there is no such key (TPM_RC_HANDLE, 0x18b, handle 1)"),
            (
                0x1df,
                "it was not made for a key of this TPM (TPM_RC_INTEGRITY, 0x1df, parameter 1)",
            ),
            (
                0x9a2,
                "the authorization value is wrong (TPM_RC_BAD_AUTH, 0x9a2, session 1)",
            ),
            (0x922, "it has no time now (TPM_RC_RETRY, 0x922)"),
            (0x1ff, "code 0x1ff, parameter 1"),
            (0x7, "code 0x007"),
        ] {
            assert_eq!(ResponseCode(code).to_string(), text);
        }
    }

    #[test]
    fn codes_are_told_apart() {
        assert!(ResponseCode(0x18b).is_no_such_handle() && !ResponseCode(0x10b).is_no_such_handle());
        assert!(ResponseCode(0x1df).is_of_parameter() && !ResponseCode(0x18b).is_of_parameter());
        assert!(ResponseCode(0x98e).is_wrong_authorization() && ResponseCode(0x9a2).is_wrong_authorization());
        assert!(ResponseCode(0x921).is_lockout() && !ResponseCode(0x921).is_try_again());
        assert!(ResponseCode(0x902).is_full() && ResponseCode(0x14b).is_not_kept());
    }
}
