//! Challenges that wait for their token.

use std::collections::HashMap;
use std::time::Duration;

use holdfast_model::credential::SymmetricKey;
use holdfast_model::{Error, ErrorCode};
use holdfast_ports::provisioning::TpmKeys;
use parking_lot::Mutex;

/// Open challenges of one device. More than one, because everybody who knows an endorsement key, which is no secret, can
/// ask for some; that must not make the device's own one worthless at once.
const PER_DEVICE_MAX: usize = 8;

struct Challenge {
    number: u64,
    /// The key that the device's TPM was sent.
    key: SymmetricKey,
    keys: TpmKeys,
    /// Millisecond of the monotonic clock.
    expires_at: u64,
    /// It served for a registration; the token is good for following that one.
    spent: bool,
}

#[derive(Default)]
struct Open {
    last: u64,
    of: HashMap<String, Vec<Challenge>>,
}

/// See the module documentation.
pub(crate) struct Challenges {
    open: Mutex<Open>,
    life_ms: u64,
    devices_max: usize,
}

impl Challenges {
    /// Challenges that live for `life`, of at most `devices_max` devices at once.
    pub(crate) fn new(life: Duration, devices_max: usize) -> Self {
        Challenges {
            open: Mutex::default(),
            life_ms: u64::try_from(life.as_millis()).unwrap_or(u64::MAX),
            devices_max,
        }
    }

    /// Remembers the key of a challenge. The oldest one of a device that has too many is forgotten.
    pub(crate) fn open(&self, id: String, key: SymmetricKey, keys: TpmKeys, now: u64) -> Result<(), Error> {
        let mut open = self.open.lock();
        if open.of.len() >= self.devices_max && !open.of.contains_key(&id) {
            open.of.retain(|_, challenges| {
                challenges.retain(|challenge| challenge.expires_at > now);
                !challenges.is_empty()
            });
            if open.of.len() >= self.devices_max {
                // Devices that only follow their registration can begin anew.
                open.of
                    .retain(|_, challenges| challenges.iter().any(|challenge| !challenge.spent));
            }
            if open.of.len() >= self.devices_max {
                return Err(Error::new(
                    ErrorCode::ThrottlingException,
                    "too many TPM challenges are open; try again later",
                ));
            }
        }
        open.last += 1;
        let number = open.last;
        let challenges = open.of.entry(id).or_default();
        challenges.retain(|challenge| challenge.expires_at > now);
        if challenges.len() >= PER_DEVICE_MAX {
            challenges.remove(0);
        }
        challenges.push(Challenge {
            number,
            key,
            keys,
            expires_at: now.saturating_add(self.life_ms),
            spent: false,
        });
        Ok(())
    }

    /// The challenge whose key made a token, which `verify` finds out.
    pub(crate) fn answered(
        &self,
        id: &str,
        now: u64,
        verify: impl Fn(&SymmetricKey) -> bool,
    ) -> Option<(u64, TpmKeys)> {
        let open = self.open.lock();
        let mut live = open
            .of
            .get(id)?
            .iter()
            .filter(|challenge| challenge.expires_at > now);
        let found = live.find(|challenge| verify(&challenge.key))?;
        Some((found.number, found.keys.clone()))
    }

    /// Uses a challenge for a registration; false when it was used before, or is gone.
    pub(crate) fn spend(&self, id: &str, number: u64) -> bool {
        self.set_spent(id, number, true)
    }

    /// The registration did not begin; the device may try again with the same token.
    pub(crate) fn give_back(&self, id: &str, number: u64) {
        self.set_spent(id, number, false);
    }

    fn set_spent(&self, id: &str, number: u64, spent: bool) -> bool {
        let mut open = self.open.lock();
        let challenges = open.of.get_mut(id).map(Vec::as_mut_slice).unwrap_or_default();
        challenges
            .iter_mut()
            .find(|challenge| challenge.number == number)
            .is_some_and(|challenge| std::mem::replace(&mut challenge.spent, spent) != spent)
    }
}
