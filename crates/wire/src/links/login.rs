//! User names of SASL PLAIN (AMQP contract, section 1.5).

use holdfast_model::Identity;

use super::UnknownAddress;
use crate::percent;

const POLICY_MARK: &str = "@sas.root.";
const DEVICE_MARK: &str = "@sas.";

/// Who logs in, and so what the password is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PlainUser {
    /// `{policy}@sas.root.{hub}`: the password is a token of the policy.
    Policy(String),
    /// `{device}[/modules/{module}]@sas.{hub}`, `{device}@{hub}`: the password is a token for the identity.
    Identity(Identity),
    /// `{policy}` alone: the password is the key itself.
    PolicyKey(String),
}

impl PlainUser {
    /// Parses a user name. The hub after the mark is not compared: the token names its host, and that one is signed.
    ///
    /// # Errors
    /// [`UnknownAddress`] for anything else, such as the registrations of a provisioning service.
    pub fn parse(text: &str) -> Result<Self, UnknownAddress> {
        if let Some((policy, _)) = text.rsplit_once(POLICY_MARK) {
            return named(policy).map(PlainUser::Policy);
        }
        if let Some((identity, _)) = text.rsplit_once(DEVICE_MARK) {
            return identity_of(identity).map(PlainUser::Identity);
        }
        match text.rsplit_once('@') {
            Some((identity, _)) => identity_of(identity).map(PlainUser::Identity),
            None if text.contains('/') => Err(UnknownAddress),
            None => named(text).map(PlainUser::PolicyKey),
        }
    }
}

fn named(policy: &str) -> Result<String, UnknownAddress> {
    match percent::decode(policy) {
        policy if policy.is_empty() => Err(UnknownAddress),
        policy => Ok(policy.into_owned()),
    }
}

fn identity_of(text: &str) -> Result<Identity, UnknownAddress> {
    let mut segments = text.split('/');
    let device_id = percent::decode(segments.next().unwrap_or_default());
    let module_id = match (segments.next(), segments.next(), segments.next()) {
        (None, ..) => None,
        (Some(modules), Some(module_id), None) if modules.eq_ignore_ascii_case("modules") => {
            Some(percent::decode(module_id))
        }
        _ => return Err(UnknownAddress),
    };
    Identity::new(&device_id, module_id.as_deref()).map_err(|_| UnknownAddress)
}
