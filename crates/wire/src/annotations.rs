//! Names and values of what the hub stamps on events and messages (AMQP contract, section 5.6).
//!
//! The AMQP heads use them as message annotations; [`crate::event_json`] and routing endpoints as system properties.

use holdfast_model::event::AuthMethod;
use holdfast_model::message::SystemProperty;

/// Device that sent the event; set from the connection, never from the message.
pub const CONNECTION_DEVICE_ID: &str = "iothub-connection-device-id";
/// Module that sent the event.
pub const CONNECTION_MODULE_ID: &str = "iothub-connection-module-id";
/// How the sender had authenticated; see [`auth_method_json`].
pub const CONNECTION_AUTH_METHOD: &str = "iothub-connection-auth-method";
/// Generation of the sender's identity.
pub const CONNECTION_AUTH_GENERATION_ID: &str = "iothub-connection-auth-generation-id";
/// When the hub received the event.
pub const ENQUEUED_TIME: &str = "iothub-enqueuedtime";
/// Kind of event; see [`holdfast_model::event::EventSource::as_str`].
pub const MESSAGE_SOURCE: &str = "iothub-message-source";
/// Interface id of a security message.
pub const INTERFACE_ID: &str = "iothub-interface-id";
/// Component of a plug-and-play device.
pub const SUBJECT: &str = "dt-subject";
/// Model id that the device announced at connect.
pub const DATA_SCHEMA: &str = "dt-dataschema";
/// Delivery count of a cloud-to-device message.
pub const DELIVERY_COUNT: &str = "iothub-deliverycount";
/// Place of an event in its partition.
pub const SEQUENCE_NUMBER: &str = "x-opt-sequence-number";
/// Offset of an event, as text.
pub const OFFSET: &str = "x-opt-offset";
/// When the stream stored the event.
pub const STREAM_ENQUEUED_TIME: &str = "x-opt-enqueued-time";
/// Partition key of a producer.
pub const PARTITION_KEY: &str = "x-opt-partition-key";
/// Lock token of a delivery.
pub const LOCK_TOKEN: &str = "x-opt-lock-token";
/// Input of a module that a message is for.
pub const INPUT_NAME: &str = "x-opt-input-name";

/// Value of [`CONNECTION_AUTH_METHOD`], a JSON text; `None` for events that the hub itself made.
///
/// The scope is `hub` for a shared access policy, else `module` or `device`. Certificates are `x509Certificate` of
/// the issuer `external`, as seen on events of the original service.
#[must_use]
pub const fn auth_method_json(auth: AuthMethod, is_module: bool) -> Option<&'static str> {
    Some(match (auth, is_module) {
        (AuthMethod::IdentityKey, false) => {
            r#"{"scope":"device","type":"sas","issuer":"iothub","acceptingIpFilterRule":null}"#
        }
        (AuthMethod::IdentityKey, true) => {
            r#"{"scope":"module","type":"sas","issuer":"iothub","acceptingIpFilterRule":null}"#
        }
        (AuthMethod::PolicyKey, _) => {
            r#"{"scope":"hub","type":"sas","issuer":"iothub","acceptingIpFilterRule":null}"#
        }
        (AuthMethod::Thumbprint | AuthMethod::CertificateAuthority, false) => {
            r#"{"scope":"device","type":"x509Certificate","issuer":"external","acceptingIpFilterRule":null}"#
        }
        (AuthMethod::Thumbprint | AuthMethod::CertificateAuthority, true) => {
            r#"{"scope":"module","type":"x509Certificate","issuer":"external","acceptingIpFilterRule":null}"#
        }
        (AuthMethod::Hub, _) => return None,
    })
}

/// Name of a system property in JSON forms of events: the names that routing conditions know (`contentType`,
/// `messageId`, …), the annotation names for those that conditions do not know.
#[must_use]
pub const fn system_property_name(property: SystemProperty) -> &'static str {
    match property {
        SystemProperty::MessageId => "messageId",
        SystemProperty::CorrelationId => "correlationId",
        SystemProperty::UserId => "userId",
        SystemProperty::To => "to",
        SystemProperty::ContentType => "contentType",
        SystemProperty::ContentEncoding => "contentEncoding",
        SystemProperty::ExpiryTimeUtc => "expiryTimeUtc",
        SystemProperty::CreationTimeUtc => "creationTimeUtc",
        SystemProperty::OutputName => "outputName",
        SystemProperty::Subject => SUBJECT,
        SystemProperty::InterfaceId => INTERFACE_ID,
        SystemProperty::MessageSchema => "messageSchema",
        SystemProperty::DiagnosticId => "diagnosticId",
        SystemProperty::DiagnosticContext => "correlationContext",
        SystemProperty::Ack => "ack",
        SystemProperty::Operation => "operation",
        SystemProperty::DataSchema => DATA_SCHEMA,
        SystemProperty::PartitionKey => PARTITION_KEY,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn auth_methods_are_json() {
        for auth in [
            AuthMethod::IdentityKey,
            AuthMethod::PolicyKey,
            AuthMethod::Thumbprint,
            AuthMethod::CertificateAuthority,
        ] {
            for is_module in [false, true] {
                let text = auth_method_json(auth, is_module).expect("a text");
                let value: serde_json::Value = serde_json::from_str(text).expect("JSON");
                assert!(value["acceptingIpFilterRule"].is_null());
                if auth != AuthMethod::PolicyKey {
                    assert_eq!(value["scope"], if is_module { "module" } else { "device" });
                }
            }
        }
        assert_eq!(auth_method_json(AuthMethod::Hub, false), None);
    }

    #[test]
    fn names_are_distinct() {
        let names: HashSet<_> = SystemProperty::ALL
            .iter()
            .map(|property| system_property_name(*property))
            .collect();
        assert_eq!(names.len(), SystemProperty::ALL.len());
    }
}
