//! The MQTT user name of a hub connection (MQTT contract, section 2.1).
//!
//! `{host}/{device}[/{module}]/?{key}={value}&…`, or the older form without the question mark. Ids are taken as they
//! are; values of the query are percent-decoded, and the first of two equal keys counts.

use std::borrow::Cow;

use holdfast_model::{Error, Identity};

use crate::{api_version, percent};

/// A parsed user name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UserName<'a> {
    /// Hub host name, or a gateway's for the C# SDK behind one; not checked here.
    pub host: &'a str,
    /// Device id as sent.
    pub device_id: &'a str,
    /// Module id as sent.
    pub module_id: Option<&'a str>,
    /// API version, date-shaped.
    pub api_version: Cow<'a, str>,
    /// `DeviceClientType`: SDK name and version, free text.
    pub client_type: Option<Cow<'a, str>>,
    /// `model-id`: DTDL model of the device.
    pub model_id: Option<Cow<'a, str>>,
    /// `auth-chain`: ids from the target to the edge device that makes the connection, joined by `;`.
    pub auth_chain: Option<Cow<'a, str>>,
}

/// Why a text is not a user name. Every case is CONNACK 5 on the hub (MQTT contract, section 2.7).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UserNameError {
    /// Neither `host/device/?…` nor `host/device/module/?…` nor the older forms.
    #[error("the user name is not of the form `host/device[/module]/?api-version=…`")]
    Form,
    /// The parameter is missing.
    #[error("the user name lacks `api-version`")]
    MissingApiVersion,
    /// The parameter is no date.
    #[error("the api-version `{0}` is not a date such as 2021-04-12")]
    ApiVersion(String),
}

/// Parses a user name.
///
/// # Errors
/// [`UserNameError`].
///
/// ```
/// let name = holdfast_wire::username::parse("hub.test/d1/m1/?api-version=2021-04-12&DeviceClientType=py%2F2")?;
/// assert_eq!((name.device_id, name.module_id), ("d1", Some("m1")));
/// assert_eq!(name.client_type.as_deref(), Some("py/2"));
/// # Ok::<(), holdfast_wire::username::UserNameError>(())
/// ```
pub fn parse(text: &str) -> Result<UserName<'_>, UserNameError> {
    let (names, query) = text.rsplit_once('/').ok_or(UserNameError::Form)?;
    let query = match query.strip_prefix('?') {
        Some(query) => query,
        None if query.contains("api-version=") => query,
        None => return Err(UserNameError::Form),
    };
    let mut segments = names.split('/');
    let (Some(host), Some(device_id), module_id, None) =
        (segments.next(), segments.next(), segments.next(), segments.next())
    else {
        return Err(UserNameError::Form);
    };
    if device_id.is_empty() || module_id.is_some_and(str::is_empty) {
        return Err(UserNameError::Form);
    }
    let [version, client_type, model_id, auth_chain] = parameters(query);
    let version = version.ok_or(UserNameError::MissingApiVersion)?;
    if !api_version::is_date_shaped(&version) {
        return Err(UserNameError::ApiVersion(version.into_owned()));
    }
    Ok(UserName {
        host,
        device_id,
        module_id,
        api_version: version,
        client_type,
        model_id,
        auth_chain,
    })
}

/// Values of the known parameters, in the order of `NAMES`.
fn parameters(query: &str) -> [Option<Cow<'_, str>>; 4] {
    const NAMES: [&str; 4] = [
        api_version::PARAMETER,
        "DeviceClientType",
        "model-id",
        "auth-chain",
    ];
    let mut values = [None, None, None, None];
    for pair in query.split('&') {
        let Some((key, value)) = pair.split_once('=') else {
            continue;
        };
        if let Some(index) = NAMES.iter().position(|name| *name == key) {
            values[index].get_or_insert_with(|| percent::decode(value));
        }
    }
    values
}

impl UserName<'_> {
    /// The identity named.
    ///
    /// # Errors
    /// When an id has characters that ids cannot have.
    pub fn identity(&self) -> Result<Identity, Error> {
        Identity::new(self.device_id, self.module_id)
    }

    /// Whether `client_id` is `{device}` or `{device}/{module}` of this user name, compared exactly.
    #[must_use]
    pub fn matches_client_id(&self, client_id: &str) -> bool {
        let Some(rest) = client_id.strip_prefix(self.device_id) else {
            return false;
        };
        match self.module_id {
            None => rest.is_empty(),
            Some(module_id) => rest.strip_prefix('/') == Some(module_id),
        }
    }

    /// The elements of `auth-chain`: target first, then its parents, the acting edge device last. None without the
    /// parameter.
    pub fn chain(&self) -> impl Iterator<Item = &str> {
        self.auth_chain
            .as_deref()
            .unwrap_or_default()
            .split(';')
            .filter(|element| !element.is_empty())
    }
}

/// Makes the user name of a client connection (edge upstream, simulator, command line).
#[must_use]
pub fn format(host: &str, identity: &Identity, api_version: &str, client_type: &str) -> String {
    let mut name = format!("{host}/{identity}/?api-version={api_version}&DeviceClientType=");
    percent::encode_into(&mut name, client_type);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, device_id: &str, module_id: Option<&str>, version: &str) -> UserName<'static> {
        let text: &'static str = String::from(text).leak();
        let name = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(
            (name.device_id, name.module_id, &*name.api_version),
            (device_id, module_id, version),
            "{text}"
        );
        name
    }

    #[test]
    fn forms_of_every_sdk() {
        let python = check(
            "hub.test/d1/?api-version=2019-10-01&DeviceClientType=azure-iot-device-iothub-py%2F2.14.0%28x%29",
            "d1",
            None,
            "2019-10-01",
        );
        assert_eq!(python.host, "hub.test");
        assert_eq!(
            python.client_type.as_deref(),
            Some("azure-iot-device-iothub-py/2.14.0(x)")
        );
        let node = check(
            "hub.test/d1/?api-version=2021-04-12&model-id=dtmi:com:ex:Thermostat;1&DeviceClientType=azure-iot-device%2F1.18.4%20(node)",
            "d1",
            None,
            "2021-04-12",
        );
        assert_eq!(node.model_id.as_deref(), Some("dtmi:com:ex:Thermostat;1"));
        check(
            "hub.test/d1/m1/?api-version=2020-09-30&DeviceClientType=iothubclient%2f1.15.0",
            "d1",
            Some("m1"),
            "2020-09-30",
        );
        let edge = check(
            "gateway/e1/m1/?api-version=2020-09-30&DeviceClientType=x&auth-chain=e1%2Fm1%3Be2%3Be1&model-id=dtmi%3Aa%3B1",
            "e1",
            Some("m1"),
            "2020-09-30",
        );
        assert_eq!(edge.chain().collect::<Vec<_>>(), ["e1/m1", "e2", "e1"]);
        assert_eq!(edge.model_id.as_deref(), Some("dtmi:a;1"));
        check("h/d/api-version=2016-11-14", "d", None, "2016-11-14");
        check(
            "h/d/m/api-version=2016-11-14&DeviceClientType=x",
            "d",
            Some("m"),
            "2016-11-14",
        );
        check(
            "h/d/DeviceClientType=x&api-version=2016-11-14",
            "d",
            None,
            "2016-11-14",
        );
        check(
            "localhost:8883/d/?api-version=2018-06-30&api-version=junk",
            "d",
            None,
            "2018-06-30",
        );
        check(
            "h/e/$edgeHub/?api-version=2020-09-30",
            "e",
            Some("$edgeHub"),
            "2020-09-30",
        );
        check("h/a%2Fb/?api-version=2020-09-30", "a%2Fb", None, "2020-09-30");
    }

    #[test]
    fn faults_are_named() {
        for (text, error) in [
            ("", UserNameError::Form),
            ("h", UserNameError::Form),
            ("h/?api-version=2020-09-30", UserNameError::Form),
            ("h/d?api-version=2020-09-30", UserNameError::Form),
            ("h/d/m", UserNameError::Form),
            ("h/d/m/x/?api-version=2020-09-30", UserNameError::Form),
            ("h//?api-version=2020-09-30", UserNameError::Form),
            ("h/d//?api-version=2020-09-30", UserNameError::Form),
            ("h/d/?", UserNameError::MissingApiVersion),
            ("h/d/?DeviceClientType=x", UserNameError::MissingApiVersion),
            ("h/d/?api-version", UserNameError::MissingApiVersion),
            ("h/d/?api-version=", UserNameError::ApiVersion(String::new())),
            ("h/d/?api-version=new", UserNameError::ApiVersion("new".into())),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn client_id_is_compared_exactly() {
        let device = parse("h/d/?api-version=2020-09-30").expect("a user name");
        assert!(device.matches_client_id("d"));
        for bad in ["D", "d/", "d/m", "dd", ""] {
            assert!(!device.matches_client_id(bad), "{bad}");
        }
        let module = parse("h/d/m/?api-version=2020-09-30").expect("a user name");
        assert!(module.matches_client_id("d/m"));
        assert!(!module.matches_client_id("d"));
        assert_eq!(module.identity().expect("an identity").as_str(), "d/m");
    }

    #[test]
    fn formatted_names_parse() {
        let identity = Identity::module("d", "m").expect("an identity");
        let text = format("hub.test", &identity, "2021-04-12", "holdfast/1 (a&b=c)");
        let name = parse(&text).expect("a user name");
        assert_eq!(name.client_type.as_deref(), Some("holdfast/1 (a&b=c)"));
        assert_eq!(name.module_id, Some("m"));
    }
}
