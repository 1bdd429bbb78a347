//! Device provisioning over MQTT: user names and topics (MQTT contract, section 9); bodies of devices are in
//! [`crate::dto::provisioning`].
//!
//! | Topic | Direction |
//! |---|---|
//! | `$dps/registrations/PUT/iotdps-register/?$rid={r}` | from the device |
//! | `$dps/registrations/GET/iotdps-get-operationstatus/?$rid={r}&operationId={op}` | from the device |
//! | `$dps/registrations/res/{status}/?$rid={r}[&retry-after={s}]` | to the device |

use crate::{api_version, percent};

/// The one filter that devices subscribe to.
pub const FILTER: &str = "$dps/registrations/res/#";

/// A parsed user name: `{scope}/registrations/{id}/api-version=…&ClientVersion=…`, no question mark.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UserName<'a> {
    /// Id scope as sent.
    pub id_scope: &'a str,
    /// Registration id as sent.
    pub registration_id: &'a str,
}

/// Parses a user name; `None` for every text that is none of a provisioning client.
///
/// ```
/// let text = "0ne1/registrations/d1/api-version=2019-03-31&ClientVersion=py";
/// let name = holdfast_wire::provisioning::parse_user_name(text).expect("a user name");
/// assert_eq!((name.id_scope, name.registration_id), ("0ne1", "d1"));
/// ```
#[must_use]
pub fn parse_user_name(text: &str) -> Option<UserName<'_>> {
    let mut segments = text.splitn(4, '/');
    let (id_scope, literal, registration_id, query) = (
        segments.next()?,
        segments.next()?,
        segments.next()?,
        segments.next()?,
    );
    let version = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == api_version::PARAMETER)
        .map(|(_, value)| value)?;
    let fits = !id_scope.is_empty()
        && literal.eq_ignore_ascii_case("registrations")
        && !registration_id.is_empty()
        && api_version::is_date_shaped(version);
    fits.then_some(UserName {
        id_scope,
        registration_id,
    })
}

/// What a device publishes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DeviceRequest {
    /// It wants to register.
    Register {
        /// Request id, to be echoed.
        rid: String,
    },
    /// It asks for an operation.
    Status {
        /// Request id, to be echoed.
        rid: String,
        /// Of the operation.
        operation_id: String,
    },
}

/// Parses the topic of a publish; `None` for a topic that devices have no business with.
#[must_use]
pub fn parse_publish(topic: &str) -> Option<DeviceRequest> {
    let rest = topic.strip_prefix("$dps/registrations/")?;
    let (path, query) = rest.split_once("/?")?;
    let parameter = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs
            .find(|(key, _)| *key == name)
            .map(|(_, value)| percent::decode(value).into_owned())
    };
    let rid = parameter("$rid")?;
    // Another `$`, `#`, `+` or separator would break the topic of the answer for some SDK.
    let fits = rid
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'$' | b'#' | b'+' | b'/' | b'?' | b'&'));
    if rid.is_empty() || !fits {
        return None;
    }
    match path {
        "PUT/iotdps-register" => Some(DeviceRequest::Register { rid }),
        "GET/iotdps-get-operationstatus" => Some(DeviceRequest::Status {
            rid,
            operation_id: parameter("operationId")?,
        }),
        _ => None,
    }
}

/// The topic of an answer: nothing before `$rid`, `retry-after` a parameter of its own (C# and Java match it so).
#[must_use]
pub fn response_topic(status: u16, rid: &str, retry_after: Option<u64>) -> String {
    let mut topic = format!("$dps/registrations/res/{status:03}/?$rid={rid}");
    if let Some(seconds) = retry_after {
        topic.push_str(&format!("&retry-after={seconds}"));
    }
    topic
}

/// Makes the user name of a client.
#[must_use]
pub fn format_user_name(id_scope: &str, registration_id: &str, client: &str) -> String {
    let mut name =
        format!("{id_scope}/registrations/{registration_id}/api-version=2019-03-31&ClientVersion=");
    percent::encode_into(&mut name, client);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_names_of_every_sdk() {
        for text in [
            "0ne1/registrations/d-1/api-version=2019-03-31&ClientVersion=azure-iot-device-provisioning-py%2F2.14",
            "0ne1/registrations/d-1/api-version=2021-06-01&ClientVersion=azure-iot-provisioning/1.13",
            "0ne1/registrations/d-1/ClientVersion=x&api-version=2019-03-31",
            &format_user_name("0ne1", "d-1", "holdfast/1 (x)"),
        ] {
            let name = parse_user_name(text).expect("a user name");
            assert_eq!((name.id_scope, name.registration_id), ("0ne1", "d-1"), "{text}");
        }
        for text in [
            "",
            "hub.test/d1/?api-version=2021-04-12",
            "hub.test/d1/m1/?api-version=2021-04-12",
            "hub.test/registrations/m1/?api-version=2021-04-12",
            "0ne1/registrations/d1",
            "0ne1/registrations//api-version=2019-03-31",
            "/registrations/d/api-version=2019-03-31",
            "0ne1/registrations/d/api-version=new",
        ] {
            assert_eq!(parse_user_name(text), None, "{text}");
        }
    }

    #[test]
    fn topics_of_every_sdk() {
        let register = |rid: &str| Some(DeviceRequest::Register { rid: rid.into() });
        assert_eq!(
            parse_publish("$dps/registrations/PUT/iotdps-register/?$rid=1"),
            register("1")
        );
        assert_eq!(
            parse_publish("$dps/registrations/GET/iotdps-get-operationstatus/?$rid=a-b&operationId=4.0.c-d"),
            Some(DeviceRequest::Status {
                rid: "a-b".into(),
                operation_id: "4.0.c-d".into()
            })
        );
        for bad in [
            "",
            "$dps/registrations/PUT/iotdps-register/",
            "$dps/registrations/PUT/iotdps-register/?$rid=",
            "$dps/registrations/PUT/iotdps-register/?$rid=a$b",
            "$dps/registrations/PUT/iotdps-register/?$rid=a%24b",
            "$dps/registrations/PUT/iotdps-register/?$rid=a%00b",
            "$dps/registrations/DELETE/iotdps-register/?$rid=1",
            "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=1",
            "devices/d/messages/events/",
        ] {
            assert_eq!(parse_publish(bad), None, "{bad}");
        }
        assert_eq!(
            response_topic(202, "7", Some(3)),
            "$dps/registrations/res/202/?$rid=7&retry-after=3"
        );
        assert_eq!(
            response_topic(200, "7", None),
            "$dps/registrations/res/200/?$rid=7"
        );
    }
}
