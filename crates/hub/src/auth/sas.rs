//! Which resource a shared access signature is for.

use holdfast_model::Identity;
use holdfast_model::credential::SasToken;
use percent_encoding::percent_decode_str;

/// Path of an identity as tokens name it.
pub(crate) fn path_of(identity: &Identity) -> String {
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
pub(crate) fn names(token: &SasToken<'_>, hosts: &[String], identity: &Identity) -> bool {
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

#[cfg(test)]
mod tests {
    use holdfast_model::Timestamp;
    use holdfast_model::credential::{SymmetricKey, sign_sas};

    use super::*;

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
