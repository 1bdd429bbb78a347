//! Clients with certificates, and devices that are told their hub.

use holdfast_upstream::port::ClientCertificate;
use holdfast_upstream::provisioning::{Attestation, ProvisioningClient, ProvisioningConfig};

use super::*;

/// A certificate of its own authority, and its SHA-256 thumbprint.
fn certificate(name: &str) -> (ClientCertificate, String) {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let key = rcgen::KeyPair::generate().unwrap();
    let made = params.self_signed(&key).unwrap();
    let digest = ring::digest::digest(&ring::digest::SHA256, made.der());
    let thumbprint = digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    let certificate = ClientCertificate {
        chain: Arc::from([Bytes::copy_from_slice(made.der())]),
        private_key: Arc::from(key.serialize_der()),
    };
    (certificate, thumbprint)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Arc::new(start(dir.path()));
    let (good, thumbprint) = certificate("d1");
    let (foreign, _) = certificate("d1");
    command(
        &hub,
        &["device", "create", "d1", "--primary-thumbprint", &thumbprint],
    )
    .await;
    command(&hub, &["device", "create", "d2"]).await;
    let account = |certificate: &ClientCertificate| Account {
        identity: Identity::parse("d1").unwrap(),
        proof: Proof::Certificate(certificate.clone()),
        product_info: "EdgeHub/test".to_owned(),
        model_id: None,
    };
    for protocol in PROTOCOLS {
        let upstream = upstream(config(&hub, protocol));
        let client = upstream.client(account(&good));
        client.want(ALL);
        connected(&client).await;
        client.send(&[message("x")]).await.unwrap();
        client.twin().await.unwrap();
        // Beside a client with a key.
        upstream
            .client(super::account(&hub, "d2"))
            .send(&[message("x")])
            .await
            .unwrap();
        drop(client);
        let failure = upstream
            .client(account(&foreign))
            .send(&[message("x")])
            .await
            .unwrap_err();
        assert!(
            matches!(failure.cause, CloudError::Unauthorized(_)),
            "{protocol:?}: {failure}"
        );
    }
    let registry = upstream(config(&hub, UpstreamProtocol::Mqtt)).registry(account(&good));
    assert!(registry.modules().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_are_told_their_hub() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Arc::new(start(dir.path()));
    let login = holdfast_server::cli::profile::Wanted {
        data_dir: Some(hub.data_dir.clone()),
        no_profile: true,
        ..Default::default()
    };
    let id_scope = holdfast_server::cli::profile::id_scope(&login).unwrap().unwrap();
    let flags = ["--allocation", "static", "--hub", "localhost"];
    command(
        &hub,
        &[&["dps", "group", "create", "line-4"], &flags[..]].concat(),
    )
    .await;
    let derived = [
        "dps",
        "compute-device-key",
        "--group",
        "line-4",
        "--registration-id",
        "press-4",
    ];
    let derived = command(&hub, &derived).await;
    let key = SymmetricKey::parse(derived["symmetricKey"].as_str().unwrap()).unwrap();

    let mut config = ProvisioningConfig::new("localhost", id_scope);
    config.port = hub.https_port();
    config.trust = super::config(&hub, UpstreamProtocol::Mqtt).trust;
    let client = ProvisioningClient::new(config.clone(), Arc::new(SystemClock::new())).unwrap();
    let by_key = |key: SymmetricKey| Attestation::Key(Arc::new(KeySigner::new(key)));
    let assigned = client
        .register("press-4", &by_key(key.clone()), None)
        .await
        .unwrap();
    assert_eq!(
        (assigned.hub_host.as_str(), assigned.device_id.as_str()),
        ("localhost", "press-4")
    );
    // It is let in with the same key.
    let upstream = upstream(super::config(&hub, UpstreamProtocol::Amqp));
    let account = Account {
        identity: Identity::parse("press-4").unwrap(),
        proof: Proof::Key(Arc::new(KeySigner::new(key))),
        product_info: String::new(),
        model_id: None,
    };
    upstream.client(account).send(&[message("x")]).await.unwrap();
    let refused = client
        .register("press-5", &by_key(SymmetricKey::generate()), None)
        .await
        .unwrap_err();
    assert!(matches!(refused, CloudError::Unauthorized(_)), "{refused}");
    config.port = 1;
    let nowhere = ProvisioningClient::new(config, Arc::new(SystemClock::new())).unwrap();
    let unreachable = nowhere
        .register("press-4", &by_key(SymmetricKey::generate()), None)
        .await
        .unwrap_err();
    assert!(matches!(unreachable, CloudError::Unreachable(_)), "{unreachable}");
}
