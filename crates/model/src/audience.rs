//! Which resource a shared access signature of a device or module is for: the same rules for a hub and an edge hub.

use percent_encoding::percent_decode_str;

use crate::Identity;
use crate::credential::SasToken;

/// Path of an identity as tokens name it.
#[must_use]
pub fn path_of(identity: &Identity) -> String {
    match identity.module_id() {
        None => format!("devices/{}", identity.device_id()),
        Some(module_id) => format!("devices/{}/modules/{module_id}", identity.device_id()),
    }
}

/// Whether the token's resource is exactly `identity` on one of `hosts`. A token signed with the key of an identity
/// names that identity; wider and narrower resources are for policies.
///
/// Case is ignored, since Java and identityd lower-case the whole URI (rest.md 2.1), and an id may be encoded once more
/// inside the resource, as .NET does (`…%2Fmodules%2F%2524edgeHub`). Neither lets anybody in: the signature is checked
/// with the keys of exactly the identity that asks.
#[must_use]
pub fn names(token: &SasToken<'_>, hosts: &[String], identity: &Identity) -> bool {
    let mut segments = token.resource().trim_end_matches('/').split('/');
    let host = segments.next().unwrap_or_default();
    if !hosts.iter().any(|known| known.eq_ignore_ascii_case(host)) {
        return false;
    }
    let path = path_of(identity);
    let mut wanted = path.split('/');
    loop {
        match (segments.next(), wanted.next()) {
            (None, None) => return true,
            (Some(given), Some(wanted)) if segment_matches(given, wanted) => {}
            _ => return false,
        }
    }
}

fn segment_matches(given: &str, wanted: &str) -> bool {
    // Ids and the literal segments are ASCII.
    given.eq_ignore_ascii_case(wanted)
        || percent_decode_str(given)
            .decode_utf8()
            .is_ok_and(|decoded| decoded.eq_ignore_ascii_case(wanted))
}

/// The path below the host that a token names, decoded, without scheme, port and slashes at its ends; `None` for another
/// host. Tokens of AMQP clients carry a scheme (`sb://host/hub`, `amqps://host:5671/…`, `https://host`).
#[must_use]
pub fn path_on<'a>(token: &'a SasToken<'_>, hosts: &[String]) -> Option<&'a str> {
    let resource = token.resource();
    let resource = resource.split_once("://").map_or(resource, |(_, rest)| rest);
    let (host, path) = resource.split_once('/').unwrap_or((resource, ""));
    let name = host.rsplit_once(':').map_or(host, |(name, port)| {
        if port.bytes().all(|byte| byte.is_ascii_digit()) {
            name
        } else {
            host
        }
    });
    hosts
        .iter()
        .any(|known| known.eq_ignore_ascii_case(name))
        .then(|| path.trim_matches('/'))
}

/// The identity that a path `devices/{d}[/modules/{m}]` names. An id may be encoded once more, as .NET does.
#[must_use]
pub fn identity_of(path: &str) -> Option<Identity> {
    let segments: Vec<&str> = path.split('/').collect();
    let decode = |id: &str| {
        percent_decode_str(id)
            .decode_utf8()
            .ok()
            .map(std::borrow::Cow::into_owned)
    };
    let is = |given: &str, literal: &str| given.eq_ignore_ascii_case(literal);
    match segments[..] {
        [devices, device] if is(devices, "devices") => Identity::device(&decode(device)?).ok(),
        [devices, device, modules, module] if is(devices, "devices") && is(modules, "modules") => {
            Identity::module(&decode(device)?, &decode(module)?).ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Timestamp;
    use crate::credential::{SymmetricKey, sign_sas};

    #[test]
    fn a_token_names_exactly_one_identity() {
        let hosts = ["hub.test".to_owned()];
        let check = |resource: &str, identity: &str| {
            let token = sign_sas(resource, &SymmetricKey::generate(), Timestamp::MAX, None);
            let token = SasToken::parse(&token).expect("a token");
            names(&token, &hosts, &Identity::parse(identity).expect("an identity"))
        };
        assert!(check("hub.test/devices/d1", "d1"));
        assert!(check("HUB.test/devices/D1/", "d1"));
        assert!(check("hub.test/devices/e/modules/$edgeHub", "e/$edgeHub"));
        assert!(check("hub.test/devices/e/modules/%24edgeHub", "e/$edgeHub"));
        assert!(check("hub.test/devices/a%41", "a%41"));
        for (resource, identity) in [
            ("hub.test", "d1"),
            ("hub.test/devices", "d1"),
            ("hub.test/devices/d2", "d1"),
            ("hub.test/devices/d1", "d1/m1"),
            ("hub.test/devices/d1/modules/m1", "d1"),
            ("hub.test/devices/d1/messages/events", "d1"),
            ("other.test/devices/d1", "d1"),
            ("hub.test.evil/devices/d1", "d1"),
        ] {
            assert!(!check(resource, identity), "{resource} for {identity}");
        }
    }
}
