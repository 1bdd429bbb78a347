//! Which requests are a device's.

use std::borrow::Cow;

use http::Method;
use percent_encoding::percent_decode_str;

/// A request of a device or module.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::https) struct Operation {
    /// Decoded, not checked.
    pub(super) device_id: String,
    pub(super) module_id: Option<String>,
    pub(super) action: Action,
}

/// What it wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Action {
    /// `POST …/messages/events`
    Send,
    /// `GET …/messages/deviceBound`
    Receive,
    /// `DELETE …/messages/deviceBound/{token}`; with `reject` in the query it is a refusal.
    Complete {
        /// As sent.
        lock: String,
    },
    /// `POST …/messages/deviceBound/{token}/abandon`
    Abandon {
        /// As sent.
        lock: String,
    },
    /// `POST …/files`
    BeginUpload,
    /// `POST …/files/notifications` and `POST …/files/notifications/{correlationId}`
    EndUpload {
        /// Of the path, decoded.
        correlation_id: Option<String>,
    },
}

impl Operation {
    /// The operation behind method and path; `None` when they belong to somebody else.
    ///
    /// Literal segments are compared without case, one trailing slash is allowed, ids are decoded after splitting, and
    /// `+` is a plus sign (rest.md section 0).
    pub(in crate::https) fn of(method: &Method, path: &str) -> Option<Self> {
        let path = path.strip_prefix('/')?;
        let path = path.strip_suffix('/').unwrap_or(path);
        let mut segments = path.split('/');
        if !segments.next()?.eq_ignore_ascii_case("devices") {
            return None;
        }
        let device_id = decode(segments.next()?)?;
        let mut rest: Vec<&str> = segments.collect();
        let mut module_id = None;
        if let [modules, module, _, ..] = rest[..]
            && modules.eq_ignore_ascii_case("modules")
        {
            module_id = Some(decode(module)?);
            rest.drain(..2);
        }
        Some(Operation {
            device_id,
            module_id,
            action: action(method, &rest)?,
        })
    }
}

fn action(method: &Method, rest: &[&str]) -> Option<Action> {
    let is = |segment: &str, literal: &str| segment.eq_ignore_ascii_case(literal);
    match (method.as_str(), rest) {
        ("POST", [messages, events]) if is(messages, "messages") && is(events, "events") => {
            Some(Action::Send)
        }
        ("POST", [files]) if is(files, "files") => Some(Action::BeginUpload),
        ("POST", [files, notifications, rest @ ..])
            if is(files, "files") && is(notifications, "notifications") =>
        {
            let correlation_id = match rest {
                [] => None,
                [id] => Some(decode(id)?),
                _ => return None,
            };
            Some(Action::EndUpload { correlation_id })
        }
        (_, [messages, bound, rest @ ..]) if is(messages, "messages") && is(bound, "deviceBound") => {
            match (method.as_str(), rest) {
                ("GET", []) => Some(Action::Receive),
                ("DELETE", [lock]) => Some(Action::Complete { lock: decode(lock)? }),
                ("POST", [lock, abandon]) if is(abandon, "abandon") => {
                    Some(Action::Abandon { lock: decode(lock)? })
                }
                _ => None,
            }
        }
        _ => None,
    }
}

fn decode(segment: &str) -> Option<String> {
    let decoded = percent_decode_str(segment).decode_utf8().ok()?;
    (!decoded.is_empty()).then(|| decoded.into_owned())
}

/// A parameter of a query: `None` when it is missing, `Some(None)` when it has no value.
pub(super) fn query_parameter<'q>(query: Option<&'q str>, name: &str) -> Option<Option<Cow<'q, str>>> {
    query?.split('&').find_map(|pair| {
        let (key, value) = match pair.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (pair, None),
        };
        key.eq_ignore_ascii_case(name).then(|| {
            value
                .filter(|value| !value.is_empty())
                .map(|value| percent_decode_str(value).decode_utf8_lossy())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: &str, path: &str, expected: Option<(&str, Option<&str>, Action)>) {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let expected = expected.map(|(device_id, module_id, action)| Operation {
            device_id: device_id.into(),
            module_id: module_id.map(Into::into),
            action,
        });
        assert_eq!(Operation::of(&method, path), expected, "{method} {path}");
    }

    #[test]
    fn paths_of_every_sdk() {
        check(
            "POST",
            "/devices/d1/messages/events",
            Some(("d1", None, Action::Send)),
        );
        check(
            "POST",
            "/Devices/d%201+/Messages/EVENTS/",
            Some(("d 1+", None, Action::Send)),
        );
        check(
            "POST",
            "/devices/d/modules/m/messages/events",
            Some(("d", Some("m"), Action::Send)),
        );
        // A device may have any name.
        check(
            "POST",
            "/devices/modules/messages/events",
            Some(("modules", None, Action::Send)),
        );
        check(
            "GET",
            "/devices/d/messages/devicebound",
            Some(("d", None, Action::Receive)),
        );
        check(
            "GET",
            "/devices/d/messages/deviceBound/",
            Some(("d", None, Action::Receive)),
        );
        let lock = || "a-b".to_owned();
        check(
            "DELETE",
            "/devices/d/messages/deviceBound/a-b",
            Some(("d", None, Action::Complete { lock: lock() })),
        );
        check(
            "POST",
            "/devices/d/messages/deviceBound/a-b/Abandon",
            Some(("d", None, Action::Abandon { lock: lock() })),
        );
        check("POST", "/devices/d/files", Some(("d", None, Action::BeginUpload)));
        check(
            "POST",
            "/devices/d/files/",
            Some(("d", None, Action::BeginUpload)),
        );
        let end = |id: Option<&str>| Action::EndUpload {
            correlation_id: id.map(Into::into),
        };
        check(
            "POST",
            "/devices/d/files/notifications/",
            Some(("d", None, end(None))),
        );
        check(
            "POST",
            "/devices/d/Files/Notifications/a%3D%2B",
            Some(("d", None, end(Some("a=+")))),
        );
    }

    #[test]
    fn what_is_not_a_devices() {
        for (method, path) in [
            ("GET", "/devices/d1"),
            ("GET", "/devices"),
            ("PUT", "/devices/d1/modules/m1"),
            ("GET", "/devices/d1/messages/events"),
            ("GET", "/devices/d1/files"),
            ("POST", "/devices/d1/files/notifications/a/b"),
            ("POST", "/devices/d1/files/other"),
            ("POST", "/devices/d1/messages/deviceBound"),
            ("DELETE", "/devices/d1/commands"),
            ("POST", "/devices//messages/events"),
            ("GET", "/"),
            ("GET", ""),
            ("POST", "/devices/%ff/messages/events"),
        ] {
            check(method, path, None);
        }
    }

    #[test]
    fn query_parameters() {
        let query = Some("api-version=2020-09-30&reject&x=");
        assert_eq!(
            query_parameter(query, "api-version"),
            Some(Some("2020-09-30".into()))
        );
        assert_eq!(query_parameter(query, "reject"), Some(None));
        assert_eq!(query_parameter(query, "x"), Some(None));
        assert_eq!(query_parameter(query, "y"), None);
        assert_eq!(query_parameter(None, "y"), None);
    }
}
