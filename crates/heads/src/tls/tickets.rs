//! Session tickets whose keys survive a restart.
//!
//! The ready-made ticketer of `rustls` draws its keys at start, so after a restart every device would need a full
//! handshake at the moment when all of them come back. Here the key of each period is derived from one secret: nothing
//! to rotate by hand, nothing to share between listeners or nodes but the secret itself.
//!
//! ```text
//! ticket := period:u64 nonce:12 sealed          sealed with AES-256-GCM, period as additional data
//! key    := HMAC-SHA256(secret, "holdfast session ticket" period)
//! ```
//!
//! A ticket is good in its own period and the next one. Resumption in TLS 1.3 still exchanges fresh keys, so the secret
//! does not open recorded TLS 1.3 connections; with TLS 1.2 it would, for tickets of the same period.

use std::fmt;
use std::sync::Arc;

use holdfast_ports::clock::Clock;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use rustls::server::ProducesTickets;

/// Length of a period, seconds.
const PERIOD_SECONDS: i64 = 6 * 3_600;
const PERIOD_LEN: usize = 8;

/// The secret that session ticket keys are derived from: 32 random bytes, kept with the server's private keys.
#[derive(Clone)]
pub struct TicketSecret([u8; 32]);

impl TicketSecret {
    /// From stored bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        TicketSecret(bytes)
    }

    /// A new one. `None` when the system has no random numbers.
    #[must_use]
    pub fn generate() -> Option<Self> {
        let mut bytes = [0; 32];
        SystemRandom::new().fill(&mut bytes).ok()?;
        Some(TicketSecret(bytes))
    }

    /// The bytes to be stored.
    #[must_use]
    pub const fn reveal(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for TicketSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketSecret")
    }
}

pub(super) struct Tickets {
    secret: hmac::Key,
    random: SystemRandom,
    clock: Arc<dyn Clock>,
}

impl Tickets {
    pub(super) fn new(secret: &TicketSecret, clock: Arc<dyn Clock>) -> Self {
        Tickets {
            secret: hmac::Key::new(hmac::HMAC_SHA256, &secret.0),
            random: SystemRandom::new(),
            clock,
        }
    }

    fn period(&self) -> i64 {
        self.clock.now().as_seconds().div_euclid(PERIOD_SECONDS)
    }

    /// Derived anew for each ticket: a microsecond, against the handshake's hundreds.
    fn key(&self, period: [u8; PERIOD_LEN]) -> Option<LessSafeKey> {
        let mut context = hmac::Context::with_key(&self.secret);
        context.update(b"holdfast session ticket");
        context.update(&period);
        UnboundKey::new(&AES_256_GCM, context.sign().as_ref())
            .ok()
            .map(LessSafeKey::new)
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        2 * PERIOD_SECONDS as u32
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let period = self.period().to_be_bytes();
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).ok()?;
        let mut ticket = Vec::with_capacity(PERIOD_LEN + NONCE_LEN + plain.len() + AES_256_GCM.tag_len());
        ticket.extend_from_slice(&period);
        ticket.extend_from_slice(&nonce);
        ticket.extend_from_slice(plain);
        let tag = self
            .key(period)?
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(period),
                &mut ticket[PERIOD_LEN + NONCE_LEN..],
            )
            .ok()?;
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let (period, rest) = cipher.split_first_chunk::<PERIOD_LEN>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let age = self.period().checked_sub(i64::from_be_bytes(*period))?;
        if !(0..=1).contains(&age) {
            return None;
        }
        let mut sealed = sealed.to_vec();
        let length = self
            .key(*period)?
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(*period),
                &mut sealed,
            )
            .ok()?
            .len();
        sealed.truncate(length);
        Some(sealed)
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tickets")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holdfast_model::Timestamp;
    use holdfast_ports::clock::ManualClock;

    use super::*;

    #[test]
    fn tickets_survive_a_restart_and_die_of_age() {
        let clock = Arc::new(ManualClock::at(Timestamp::from_seconds(1_800_000_000)));
        let secret = TicketSecret::new([7; 32]);
        let before = Tickets::new(&secret, clock.clone());
        let ticket = before.encrypt(b"session").expect("a ticket");
        assert_ne!(before.encrypt(b"session"), Some(ticket.clone()), "nonces differ");
        let after = Tickets::new(&secret, clock.clone());
        assert_eq!(after.decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        let other = Tickets::new(&TicketSecret::new([8; 32]), clock.clone());
        assert_eq!(other.decrypt(&ticket), None);
        for at in 0..ticket.len() {
            let mut damaged = ticket.clone();
            damaged[at] ^= 1;
            assert_eq!(after.decrypt(&damaged), None, "byte {at}");
            assert_eq!(after.decrypt(&ticket[..at]), None, "cut at {at}");
        }
        clock.advance(Duration::from_secs(13 * 3_600));
        assert_eq!(after.decrypt(&ticket), None);
    }
}
