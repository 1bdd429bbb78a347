//! TLS: client certificates, resumption, reload, choice of certificate (clients.md section 3).

use std::sync::Arc;

use holdfast_heads::mqtt::{MqttConfig, MqttHead};
use holdfast_heads::tls::{ServerCertificate, TicketSecret, TlsSettings};
use holdfast_ports::clock::SystemClock;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientSessionMemoryCache, Resumption};
use rustls::{ClientConfig, DigitallySignedStruct, HandshakeKind, SignatureScheme, SupportedProtocolVersion};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::client::{Client, Got, connect_packet, metrics, publish_packet, until};
use crate::gateway::FakeGateway;
use crate::https_device::{Port, ask};

pub(crate) fn certificate(name: &str) -> ServerCertificate {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
    make(name, &key)
}

fn make(name: &str, key: &KeyPair) -> ServerCertificate {
    let mut params = CertificateParams::new(vec!["hub.test".into()]).expect("a name");
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let certificate = params.self_signed(key).expect("signed");
    ServerCertificate {
        chain: vec![certificate.der().clone()],
        key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
    }
}

pub(crate) fn settings(certificates: Vec<ServerCertificate>) -> Arc<TlsSettings> {
    TlsSettings::new(
        certificates,
        &TicketSecret::new([1; 32]),
        Arc::new(SystemClock::new()),
    )
    .expect("usable")
}

/// Those of a port whose certificate does not matter.
pub(crate) fn any_settings() -> Arc<TlsSettings> {
    let key = KeyPair::generate().expect("a key");
    settings(vec![make("any", &key)])
}

/// Takes any certificate: trust is the client's business and not tested here.
#[derive(Debug)]
struct TakeAny(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for TakeAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

pub(crate) fn client_config(
    version: &'static SupportedProtocolVersion,
    identity: Option<ServerCertificate>,
) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[version])
        .expect("known")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TakeAny(provider)));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => builder
            .with_client_auth_cert(identity.chain, identity.key)
            .expect("usable"),
    };
    config.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(8)));
    Arc::new(config)
}

struct TlsHub {
    gateway: Arc<FakeGateway>,
    head: MqttHead,
    address: std::net::SocketAddr,
    _stop: watch::Sender<bool>,
}

impl TlsHub {
    fn start(tls: Arc<TlsSettings>) -> Self {
        let gateway = FakeGateway::new();
        let head = MqttHead::new(
            MqttConfig::default(),
            gateway.clone(),
            Arc::new(SystemClock::new()),
            metrics(),
        );
        let listener =
            holdfast_heads::listener::bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (stop, shutdown) = watch::channel(false);
        tokio::spawn({
            let head = head.clone();
            async move { head.serve(listener, Some(tls), shutdown).await }
        });
        TlsHub {
            gateway,
            head,
            address,
            _stop: stop,
        }
    }

    async fn dial(&self, config: &Arc<ClientConfig>, name: &str) -> Client<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(self.address).await.expect("the hub listens");
        Client::new(connect(tcp, config, name).await)
    }
}

pub(crate) async fn connect(tcp: TcpStream, config: &Arc<ClientConfig>, name: &str) -> TlsStream<TcpStream> {
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    TlsConnector::from(Arc::clone(config))
        .connect(name, tcp)
        .await
        .expect("a handshake")
}

const VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

#[tokio::test]
async fn both_versions_carry_any_amount() {
    let hub = TlsHub::start(settings(vec![certificate("hub")]));
    for version in VERSIONS {
        let config = client_config(version, None);
        for name in ["hub.test", "unknown.test", "127.0.0.1"] {
            let mut client = hub.dial(&config, name).await;
            client.connect("d1").await;
            let before = hub.gateway.received().len();
            for (id, size) in [(1, 0), (2, 100), (3, 16_384), (4, 100_000), (5, 262_144)] {
                client
                    .publish("devices/d1/messages/events/", &vec![b'x'; size], id)
                    .await;
                assert_eq!(client.next().await, Got::PubAck(id), "{version:?} {size}");
            }
            // Many small records in one write, and a session that goes on after it.
            let many: Vec<u8> = (10..1_000)
                .flat_map(|id| publish_packet("devices/d1/messages/events/", b"small", id))
                .collect();
            client.send(&many).await;
            for id in 10..1_000 {
                assert_eq!(client.next().await, Got::PubAck(id));
            }
            client.expect_silence().await;
            assert_eq!(hub.gateway.received().len(), before + 5 + 990);
        }
    }
}

#[tokio::test]
async fn a_large_answer_reaches_a_slow_client() {
    let hub = TlsHub::start(settings(vec![certificate("hub")]));
    for version in VERSIONS {
        let mut client = hub.dial(&client_config(version, None), "hub.test").await;
        client.connect("d1").await;
        client.subscribe(1, &[("$iothub/twin/res/#", 0)]).await;
        let requests = publish_packet("$iothub/twin/GET/?$rid=1", b"", 0).repeat(20_000);
        let (mut reader, mut writer) = tokio::io::split(client.stream);
        let written = tokio::spawn(async move {
            use tokio::io::AsyncWriteExt;
            writer.write_all(&requests).await.expect("taken in the end");
            writer
        });
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let mut seen = 0;
        let length = 2
            + 2
            + "$iothub/twin/res/200/?$rid=1".len()
            + r#"{"desired":{"$version":1},"reported":{"$version":1}}"#.len();
        let mut chunk = vec![0; 65_536];
        while seen < length * 20_000 {
            use tokio::io::AsyncReadExt;
            let read = tokio::time::timeout(crate::client::PATIENCE, reader.read(&mut chunk))
                .await
                .expect("goes on")
                .expect("no error");
            assert_ne!(read, 0);
            seen += read;
        }
        assert_eq!(seen, length * 20_000);
        written.await.expect("no panic");
    }
}

#[tokio::test]
async fn client_certificates_are_passed_on_and_optional() {
    let hub = TlsHub::start(settings(vec![certificate("hub")]));
    for version in VERSIONS {
        let mut with = hub
            .dial(&client_config(version, Some(certificate("d1"))), "hub.test")
            .await;
        with.send(&connect_packet("d1", None)).await;
        assert_eq!(with.next().await, Got::ConnAck(false, 0));
        let mut without = hub.dial(&client_config(version, None), "hub.test").await;
        without.send(&connect_packet("d2", None)).await;
        assert_eq!(without.next().await, Got::ConnAck(false, 5));
    }
}

#[tokio::test]
async fn a_certificate_of_somebody_else_is_not_proof() {
    let hub = TlsHub::start(settings(vec![certificate("hub")]));
    let stolen = ServerCertificate {
        chain: certificate("d1").chain,
        key: certificate("thief").key,
    };
    // The client library refuses to be used like this, so the pair is made behind its back.
    let provider = rustls::crypto::ring::default_provider();
    let key = provider.key_provider.load_private_key(stolen.key).expect("a key");
    let pair = Arc::new(rustls::sign::CertifiedKey::new(stolen.chain, key));
    for version in VERSIONS {
        let mut config = Arc::unwrap_or_clone(client_config(version, None));
        config.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(Arc::clone(&pair)));
        let tcp = TcpStream::connect(hub.address).await.expect("the hub listens");
        let name = ServerName::try_from("hub.test").expect("a name");
        let Ok(stream) = TlsConnector::from(Arc::new(config)).connect(name, tcp).await else {
            continue;
        };
        let mut client = Client::new(stream);
        use tokio::io::AsyncWriteExt;
        let _ = client.stream.write_all(&connect_packet("d1", None)).await;
        assert_eq!(client.try_next().await, None);
    }
    assert!(hub.gateway.connects().is_empty());
}

#[tokio::test]
async fn sessions_are_resumed_with_their_certificate_also_after_a_restart() {
    let (old, new) = (
        settings(vec![certificate("hub")]),
        settings(vec![certificate("hub")]),
    );
    for version in VERSIONS {
        let config = client_config(version, Some(certificate("d1")));
        for (round, tls) in [&old, &old, &new].into_iter().enumerate() {
            let hub = TlsHub::start(Arc::clone(tls));
            let mut client = hub.dial(&config, "hub.test").await;
            client.send(&connect_packet("d1", None)).await;
            assert_eq!(client.next().await, Got::ConnAck(false, 0));
            let expected = if round == 0 {
                HandshakeKind::Full
            } else {
                HandshakeKind::Resumed
            };
            let kind = client.stream.get_ref().1.handshake_kind();
            assert_eq!(kind, Some(expected), "{version:?} round {round}");
        }
    }
}

#[tokio::test]
async fn reloaded_certificates_are_shown_to_new_connections() {
    let first = certificate("first");
    let second = certificate("second");
    let (first_der, second_der) = (first.chain[0].clone(), second.chain[0].clone());
    let tls = settings(vec![first]);
    let hub = TlsHub::start(Arc::clone(&tls));
    let config = client_config(&rustls::version::TLS13, None);
    let mut old = hub.dial(&config, "hub.test").await;
    old.connect("d1").await;
    assert_eq!(
        old.stream.get_ref().1.peer_certificates().expect("shown")[0],
        first_der
    );
    tls.reload(vec![second]).expect("usable");
    let config = client_config(&rustls::version::TLS13, None);
    let new = hub.dial(&config, "hub.test").await;
    assert_eq!(
        new.stream.get_ref().1.peer_certificates().expect("shown")[0],
        second_der
    );
    old.expect_silence().await;
    let mismatched = ServerCertificate {
        chain: vec![first_der],
        key: certificate("other").key,
    };
    assert!(tls.reload(vec![mismatched]).is_err());
    assert!(tls.reload(Vec::new()).is_err());
    let again = hub.dial(&config, "hub.test").await;
    drop(again);
}

#[tokio::test]
async fn the_certificate_fits_what_the_client_can_read() {
    // Two kinds that differ in the schemes they need, as P-256 and RSA do.
    let ed25519 = make("ed25519", &KeyPair::generate_for(&PKCS_ED25519).expect("a key"));
    let p256 = certificate("p256");
    let p256_der = p256.chain[0].clone();
    let hub = TlsHub::start(settings(vec![ed25519, p256]));
    let mut provider = rustls::crypto::ring::default_provider();
    let schemes: Vec<_> = provider
        .signature_verification_algorithms
        .mapping
        .iter()
        .copied()
        .filter(|(scheme, _)| *scheme == SignatureScheme::ECDSA_NISTP256_SHA256)
        .collect();
    provider.signature_verification_algorithms.mapping = Box::leak(schemes.into_boxed_slice());
    let provider = Arc::new(provider);
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("known")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TakeAny(provider)))
        .with_no_client_auth();
    let client = hub.dial(&Arc::new(config), "hub.test").await;
    assert_eq!(
        client.stream.get_ref().1.peer_certificates().expect("shown")[0],
        p256_der
    );
}

#[tokio::test]
async fn what_is_no_tls_is_closed() {
    let hub = TlsHub::start(settings(vec![certificate("hub")]));
    let mut client = Client::new(TcpStream::connect(hub.address).await.expect("the hub listens"));
    client.send(&connect_packet("d1", Some("good"))).await;
    use tokio::io::AsyncReadExt;
    let mut answer = Vec::new();
    let _ = client.stream.read_to_end(&mut answer).await;
    assert_ne!(answer.first(), Some(&0x20));
    assert_eq!(hub.head.sessions(), 0);
}

#[tokio::test]
async fn a_goodbye_of_tls_ends_the_session() {
    let hub = TlsHub::start(settings(vec![certificate("hub")]));
    for version in VERSIONS {
        let mut client = hub.dial(&client_config(version, None), "hub.test").await;
        client.connect("d1").await;
        until("the session lives", || hub.head.sessions() == 1).await;
        use tokio::io::AsyncWriteExt;
        client.stream.shutdown().await.expect("sent");
        until("the session ends", || hub.head.sessions() == 0).await;
    }
}

#[tokio::test]
async fn https_requests_carry_the_certificate() {
    let port = Port::start(Some(settings(vec![certificate("hub")])));
    for version in VERSIONS {
        let config = client_config(version, Some(certificate("d1")));
        let mut stream = connect(port.dial().await, &config, "hub.test").await;
        let request = "POST /devices/d1/messages/events?api-version=2020-09-30";
        for size in [1, 200_000] {
            assert_eq!(ask(&mut stream, request, "", &vec![b'x'; size]).await.status, 204);
        }
        let mut stream = connect(port.dial().await, &client_config(version, None), "hub.test").await;
        assert_eq!(ask(&mut stream, request, "", b"x").await.status, 401);
    }
}
