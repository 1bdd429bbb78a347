//! What the tests of all kinds need: events on their way, an environment, certificates.

use std::sync::Arc;

use holdfast_model::event::{AuthMethod, EndpointSet, EventBlock, EventSource, Origin, Records};
use holdfast_model::message::SystemProperty;
use holdfast_model::{Identity, Timestamp};
use holdfast_ports::clock::ManualClock;
use holdfast_ports::endpoint::Outbound;

use super::Environment;

/// Telemetry of a device or module, one event per body, as JSON in UTF-8 with the property `level`.
pub(crate) fn telemetry(identity: &str, bodies: &[&str]) -> EventBlock {
    events(EventSource::Telemetry, identity, bodies)
}

pub(crate) fn events(source: EventSource, identity: &str, bodies: &[&str]) -> EventBlock {
    let origin = Origin {
        source,
        identity: Identity::parse(identity).unwrap(),
        generation_id: 42,
        auth: AuthMethod::IdentityKey,
    };
    let mut records = Records::new();
    for body in bodies {
        let mut record = records.record();
        record.system(SystemProperty::MessageId, "m-1");
        record.system(SystemProperty::ContentType, "application/json");
        record.system(SystemProperty::ContentEncoding, "utf-8");
        record.property("level", Some("3"));
        let _ = record.finish(body.as_bytes());
    }
    let mut data = Vec::new();
    origin.encode(EndpointSet::of(1), &mut data);
    data.extend_from_slice(records.as_bytes());
    EventBlock {
        partition: 1,
        first_sequence_number: 7,
        count: records.count(),
        enqueued_at: Timestamp::from_seconds(1_000),
        data: data.into(),
    }
}

pub(crate) fn outbound(block: &EventBlock) -> Vec<Outbound<'_>> {
    let event = |event: Result<_, _>| Outbound {
        event: event.unwrap(),
        enrichments: vec![("hub", "hub1".to_owned())],
    };
    block.events().map(event).collect()
}

pub(crate) fn environment() -> Environment {
    Environment {
        hub_name: "hub1".to_owned(),
        data_dir: std::env::temp_dir(),
        clock: Arc::new(ManualClock::at(Timestamp::from_seconds(2_000))),
        actions: None,
    }
}

/// A certificate authority's PEM, and how a server with a certificate of it for `localhost` speaks TLS.
pub(crate) fn authority() -> (String, Arc<rustls::ServerConfig>) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = certificate.signed_by(&key, &issuer).unwrap();
    let private = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private)
        .unwrap();
    (pem, Arc::new(config))
}
