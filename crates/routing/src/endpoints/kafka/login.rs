//! Logging in by SASL: PLAIN (RFC 4616) and SCRAM (RFC 5802, RFC 7677).

use std::num::NonZeroU32;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::{digest, hmac, pbkdf2};

use super::config::Mechanism;
use crate::endpoints::socket::told;

/// Most rounds that a server may ask for.
const ROUNDS_MAX: u32 = 1_000_000;

/// The name of a mechanism.
pub(super) fn name(mechanism: Mechanism) -> &'static str {
    match mechanism {
        Mechanism::Plain => "PLAIN",
        Mechanism::ScramSha256 => "SCRAM-SHA-256",
        Mechanism::ScramSha512 => "SCRAM-SHA-512",
    }
}

/// The only message of PLAIN.
pub(super) fn plain(username: &str, password: &str) -> Vec<u8> {
    format!("\0{username}\0{password}").into_bytes()
}

/// A log-in by SCRAM under way. Passwords are used as they are: those outside of ASCII must be normalised already.
pub(super) struct Scram {
    wide: bool,
    nonce: String,
    first: String,
}

impl Scram {
    pub(super) fn new(mechanism: Mechanism, username: &str, nonce: String) -> Self {
        let username = username.replace('=', "=3D").replace(',', "=2C");
        Scram {
            wide: mechanism == Mechanism::ScramSha512,
            first: format!("n={username},r={nonce}"),
            nonce,
        }
    }

    /// The first message.
    pub(super) fn first(&self) -> Vec<u8> {
        format!("n,,{}", self.first).into_bytes()
    }

    /// The second message, and what the server must answer to it.
    ///
    /// # Errors
    /// What is wrong with the server's message.
    pub(super) fn second(&self, password: &str, challenge: &[u8]) -> Result<(Vec<u8>, String), String> {
        let wrong = |what: &str| format!("login: the server's challenge {what}");
        let challenge = std::str::from_utf8(challenge).map_err(|_| wrong("is no text"))?;
        let field = |name: &str| {
            let mut fields = challenge.split(',');
            fields.find_map(|field| field.strip_prefix(name))
        };
        refusal(challenge)?;
        let nonce = field("r=").filter(|nonce| nonce.starts_with(&self.nonce) && *nonce != self.nonce);
        let nonce = nonce.ok_or_else(|| wrong("does not go on with our nonce"))?;
        let salt = field("s=").and_then(|salt| STANDARD.decode(salt).ok());
        let salt = salt.ok_or_else(|| wrong("has no salt"))?;
        let rounds = field("i=").and_then(|rounds| rounds.parse::<u32>().ok());
        let rounds = rounds
            .filter(|rounds| *rounds <= ROUNDS_MAX)
            .and_then(NonZeroU32::new);
        let rounds = rounds.ok_or_else(|| wrong("has no acceptable number of rounds"))?;
        let salted = self.salted(password, &salt, rounds);
        let without_proof = format!("c=biws,r={nonce}");
        let message = format!("{},{challenge},{without_proof}", self.first);
        let client_key = self.keyed(&salted, b"Client Key");
        let stored = digest::digest(self.digest(), client_key.as_ref());
        let signature = self.keyed(stored.as_ref(), message.as_bytes());
        let mixed = client_key.as_ref().iter().zip(signature.as_ref());
        let proof: Vec<u8> = mixed.map(|(a, b)| a ^ b).collect();
        let server_key = self.keyed(&salted, b"Server Key");
        let server = self.keyed(server_key.as_ref(), message.as_bytes());
        Ok((
            format!("{without_proof},p={}", STANDARD.encode(proof)).into_bytes(),
            format!("v={}", STANDARD.encode(server.as_ref())),
        ))
    }

    fn digest(&self) -> &'static digest::Algorithm {
        if self.wide {
            &digest::SHA512
        } else {
            &digest::SHA256
        }
    }

    fn keyed(&self, key: &[u8], data: &[u8]) -> hmac::Tag {
        let algorithm = if self.wide {
            hmac::HMAC_SHA512
        } else {
            hmac::HMAC_SHA256
        };
        hmac::sign(&hmac::Key::new(algorithm, key), data)
    }

    fn salted(&self, password: &str, salt: &[u8], rounds: NonZeroU32) -> Vec<u8> {
        let algorithm = if self.wide {
            pbkdf2::PBKDF2_HMAC_SHA512
        } else {
            pbkdf2::PBKDF2_HMAC_SHA256
        };
        let mut out = vec![0; self.digest().output_len()];
        pbkdf2::derive(algorithm, rounds, salt, password.as_bytes(), &mut out);
        out
    }
}

/// What a server says instead of going on (RFC 5802, 7).
///
/// # Errors
/// That, if it did.
pub(super) fn refusal(message: &str) -> Result<(), String> {
    match message.strip_prefix("e=") {
        None => Ok(()),
        Some(error) => Err(format!("login: the broker refused it: {}", told(error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The exchange in RFC 7677, section 3.
    #[test]
    fn scram_as_in_its_rfc() {
        let scram = Scram::new(Mechanism::ScramSha256, "user", "rOprNGfwEbeRWgbNEkqO".to_owned());
        assert_eq!(scram.first(), b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let challenge =
            b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let (second, expected) = scram.second("pencil", challenge).unwrap();
        assert_eq!(
            String::from_utf8(second).unwrap(),
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert_eq!(expected, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        for bad in [
            "",
            "r=other,s=W22Z,i=1",
            "r=rOprNGfwEbeRWgbNEkqOx,s=W22Z,i=0",
            "r=rOprNGfwEbeRWgbNEkqOx,i=1",
        ] {
            assert!(scram.second("pencil", bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
