//! Device provisioning over MQTT and AMQP: user names, topics, addresses and properties (MQTT contract, section 9; AMQP
//! contract, section 6); bodies of devices are in [`crate::dto::provisioning`].
//!
//! Over AMQP there is one address for a device's requests and their answers, `{idScope}/registrations/{registrationId}`,
//! which is its user name, too; what a request asks for is in its application properties. Over MQTT there are topics:
//!
//! | Topic | Direction |
//! |---|---|
//! | `$dps/registrations/PUT/iotdps-register/?$rid={r}` | from the device |
//! | `$dps/registrations/GET/iotdps-get-operationstatus/?$rid={r}&operationId={op}` | from the device |
//! | `$dps/registrations/res/{status}/?$rid={r}[&retry-after={s}]` | to the device |

use holdfast_model::{Error, ErrorCode};

use crate::{api_version, links, percent};

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

/// A registration as AMQP addresses and user names have it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resource {
    /// Id scope as sent.
    pub id_scope: String,
    /// Registration id as sent.
    pub registration_id: String,
}

impl Resource {
    /// Parses `{idScope}/registrations/{registrationId}`: a full URI, a path with a leading slash, or without; `None` for
    /// every other text.
    ///
    /// ```
    /// use holdfast_wire::provisioning::Resource;
    /// let address = Resource::parse("amqps://dps.test/0ne1/registrations/d%3A1").expect("an address");
    /// assert_eq!((&*address.id_scope, &*address.registration_id), ("0ne1", "d:1"));
    /// ```
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut segments = links::path_of(text).trim_matches('/').split('/');
        let (id_scope, literal, registration_id) = (segments.next()?, segments.next()?, segments.next()?);
        let fits = !id_scope.is_empty()
            && literal.eq_ignore_ascii_case("registrations")
            && !registration_id.is_empty()
            && segments.next().is_none();
        fits.then(|| Resource {
            id_scope: percent::decode(id_scope).into_owned(),
            registration_id: percent::decode(registration_id).into_owned(),
        })
    }
}

/// What a device asks for over AMQP.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AmqpRequest {
    /// `iotdps-operation-type` is `iotdps-register`; everything else is in the body.
    Register,
    /// `iotdps-operation-type` is `iotdps-get-operationstatus`.
    Status {
        /// `iotdps-operation-id`
        operation_id: String,
    },
}

/// Names of the property of an answer, and of the entry in an error's map, that say when to ask again: for Node.js, C
/// and Java, and for C#.
pub const RETRY_AFTER_NAMES: [&str; 2] = ["retry-after", "Retry-After"];

/// Reads application properties, which `property` gives.
///
/// # Errors
/// `InvalidOperation` for an unknown operation, `ArgumentInvalid` for a status request without an operation id.
pub fn amqp_request<'a>(property: impl Fn(&str) -> Option<&'a str>) -> Result<AmqpRequest, Error> {
    match property("iotdps-operation-type") {
        Some("iotdps-register") => Ok(AmqpRequest::Register),
        Some("iotdps-get-operationstatus") => match property("iotdps-operation-id") {
            Some(id) if !id.is_empty() => Ok(AmqpRequest::Status {
                operation_id: id.to_owned(),
            }),
            _ => Err(Error::new(
                ErrorCode::ArgumentInvalid,
                "a status request needs iotdps-operation-id",
            )),
        },
        _ => Err(Error::new(
            ErrorCode::InvalidOperation,
            "iotdps-operation-type must be iotdps-register or iotdps-get-operationstatus",
        )),
    }
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
    fn addresses_of_every_sdk() {
        for text in [
            "0ne1/registrations/d-1",
            "/0ne1/registrations/d-1",
            "amqps://dps.test/0ne1/registrations/d-1",
            "amqps://dps.test:5671/0ne1/Registrations/d%2D1/",
        ] {
            let found = Resource::parse(text).expect("an address");
            assert_eq!(
                (&*found.id_scope, &*found.registration_id),
                ("0ne1", "d-1"),
                "{text}"
            );
        }
        for text in [
            "",
            "0ne1/registrations",
            "0ne1/registrations/",
            "//registrations/d",
            "0ne1/x/d",
            "a/registrations/b/c",
        ] {
            assert_eq!(Resource::parse(text), None, "{text}");
        }
    }

    #[test]
    fn requests_over_amqp() {
        let read = |pairs: &'static [(&str, &str)]| {
            amqp_request(|name| {
                pairs
                    .iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| *value)
            })
        };
        assert_eq!(
            read(&[("iotdps-operation-type", "iotdps-register")]),
            Ok(AmqpRequest::Register)
        );
        let operation_id = "4.0.x".to_owned();
        assert_eq!(
            read(&[
                ("iotdps-operation-type", "iotdps-get-operationstatus"),
                ("iotdps-operation-id", "4.0.x")
            ]),
            Ok(AmqpRequest::Status { operation_id })
        );
        for (bad, code) in [
            (&[][..], ErrorCode::InvalidOperation),
            (
                &[("iotdps-operation-type", "iotdps-delete")],
                ErrorCode::InvalidOperation,
            ),
            (
                &[("iotdps-operation-type", "iotdps-get-operationstatus")],
                ErrorCode::ArgumentInvalid,
            ),
        ] {
            assert_eq!(read(bad).expect_err("refused").code, code);
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
