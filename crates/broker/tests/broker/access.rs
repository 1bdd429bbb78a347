use std::sync::Arc;
use std::time::Duration;

use holdfast_model::credential::{SymmetricKey, sign_sas};
use holdfast_model::subscription::Channel;
use holdfast_model::{ErrorCode, Timestamp};
use holdfast_ports::clock::ManualClock;
use holdfast_ports::gateway::{Credential, DeviceGateway, Persistence};
use holdfast_ports::service::ServiceGateway;
use holdfast_ports::session::CloseReason;
use holdfast_store::log::sim::SimDisk;
use holdfast_upstream::port::ScopeAuthentication;

use crate::cloud::FakeCloud;
use crate::edge::{EDGE_SCOPE, Edge, above, entry, key_of, scope, settings, token};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_right_key_lets_in_and_neighbours_go_on() {
    let edge = Edge::alone();
    let neighbour = edge.client("edge/b").await;
    let code = |outcome: Result<_, holdfast_model::Error>| {
        outcome
            .map(|_: holdfast_ports::gateway::Connected| ())
            .expect_err("refused")
            .code
    };
    assert!(edge.try_connect("edge/a", &key_of("edge/a")).await.is_ok());
    // A module may use its device's key.
    assert!(edge.try_connect("edge/a", &key_of("edge")).await.is_ok());
    for (identity, key) in [
        ("edge/a", SymmetricKey::generate()),
        ("edge/a", key_of("edge/b")),
        ("leaf", key_of("edge")),
        ("nobody", key_of("nobody")),
        ("edge/nobody", key_of("edge")),
        ("bad id", key_of("bad id")),
    ] {
        assert_eq!(
            code(edge.try_connect(identity, &key).await),
            ErrorCode::IotHubUnauthorizedAccess,
            "{identity}"
        );
    }
    for (resource, fits) in [
        ("hub.test/devices/leaf", true),
        ("GATEWAY.test/devices/LEAF", true),
        ("other.test/devices/leaf", false),
        ("hub.test/devices/leaf2", false),
        ("hub.test", false),
    ] {
        let expires = edge.clock.now().plus(Duration::from_secs(60));
        let token = sign_sas(resource, &key_of("leaf"), expires, None);
        let outcome = edge
            .connect_with("leaf", Credential::Sas(&token), Persistence::Untouched, None)
            .await;
        assert_eq!(outcome.is_ok(), fits, "{resource}");
    }
    let old = token(
        "leaf",
        &key_of("leaf"),
        edge.clock.now().minus(Duration::from_secs(400)),
    );
    for credential in [
        Credential::Sas(&old),
        Credential::Sas("rubbish"),
        Credential::None,
        Credential::Certificates(&[]),
    ] {
        assert!(
            edge.connect_with("leaf", credential, Persistence::Untouched, None)
                .await
                .is_err()
        );
    }
    assert!(!neighbour.session.is_ended());
    neighbour.say(None, &["still here"]).await;
    // Services are not served.
    assert!(edge.broker.verify_policy_key("service", "x").is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_leaf_devices() {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
    let params = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2030, 1, 1);
        params
    };
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = params("site authority");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_cert = ca.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let issued = |name: &str| {
        bytes::Bytes::from(
            params(name)
                .signed_by(&KeyPair::generate().unwrap(), &issuer)
                .unwrap()
                .der()
                .to_vec(),
        )
    };
    let own = bytes::Bytes::from(
        params("any")
            .self_signed(&KeyPair::generate().unwrap())
            .unwrap()
            .der()
            .to_vec(),
    );
    let thumbprint: String = ring::digest::digest(&ring::digest::SHA256, &own)
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();

    let mut config = settings();
    config.local_identities = scope();
    config.local_identities[5].authentication = ScopeAuthentication::Authority;
    config.local_identities[6].authentication = ScopeAuthentication::Thumbprints {
        primary: "00".repeat(32),
        secondary: thumbprint,
    };
    config.local_identities[2].authentication = ScopeAuthentication::Authority;
    let edge = Edge::open(config, Arc::new(SimDisk::new()), crate::edge::manual(), None);
    let connect = async |identity: &str, certificate: &bytes::Bytes| {
        let chain = [certificate.clone()];
        edge.connect_with(
            identity,
            Credential::Certificates(&chain),
            Persistence::Untouched,
            None,
        )
        .await
    };
    assert!(
        connect("leaf", &issued("leaf")).await.is_err(),
        "no authority is trusted yet"
    );
    edge.broker.set_trust(&[ca_cert.der().to_vec().into()]);
    let leaf = connect("leaf", &issued("leaf")).await.expect("issued");
    assert!(connect("leaf", &issued("leaf2")).await.is_err(), "another name");
    assert!(connect("leaf2", &own).await.is_ok(), "known by thumbprint");
    assert!(connect("leaf2", &issued("leaf2")).await.is_err());
    assert!(
        connect("edge/a", &issued("edge/a")).await.is_err(),
        "modules have no certificates"
    );
    // The authority goes, and with it who rests on it.
    edge.broker.set_trust(&[]);
    assert_eq!(leaf.session.close_reason(), Some(CloseReason::IdentityChanged));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_session_takes_over_and_a_token_ends() {
    let clock = crate::edge::manual();
    let mut config = settings();
    config.local_identities = scope();
    let edge = Edge::open(config, Arc::new(SimDisk::new()), clock.clone(), None);
    let first = edge.client("edge/a").await;
    let second = edge.client("edge/a").await;
    assert_eq!(first.session.close_reason(), Some(CloseReason::TakenOver));
    first.leave();
    assert!(!second.session.is_ended());
    assert_eq!(edge.broker.clients().len(), 1);
    let renewed = edge.client("edge/b").await;
    clock.advance(Duration::from_secs(3_000));
    edge.broker.renew(&renewed.session, Timestamp::MAX);
    clock.advance(Duration::from_secs(1_000));
    edge.until("the end of the token", || second.session.is_ended())
        .await;
    assert_eq!(second.session.close_reason(), Some(CloseReason::TokenExpired));
    assert!(!renewed.session.is_ended());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_bounded() {
    let mut config = settings();
    config.clients_max = 100;
    config.local_identities = (0..101).map(|number| entry(&format!("edge/m{number}"))).collect();
    let edge = Edge::open(config, Arc::new(SimDisk::new()), crate::edge::manual(), None);
    let mut clients = Vec::new();
    for number in 0..100 {
        clients.push(edge.client(&format!("edge/m{number}")).await);
    }
    let refused = edge.try_connect("edge/m100", &key_of("edge/m100")).await;
    assert_eq!(
        refused.expect_err("one too many").code,
        ErrorCode::ServiceUnavailable
    );
    // Who is there may come again.
    clients.push(edge.client("edge/m7").await);
    clients.remove(3).leave();
    edge.client("edge/m100").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_subscriptions_outlive_the_connection_and_the_process() {
    let disk = SimDisk::new();
    let open = || {
        let mut config = settings();
        config.local_identities = scope();
        Edge::open(config, Arc::new(disk.clone()), crate::edge::manual(), None)
    };
    let edge = open();
    let connect = async |edge: &Edge, persistence| {
        let token = edge.token("edge/a", &key_of("edge/a"));
        edge.connect_with("edge/a", Credential::Sas(&token), persistence, None)
            .await
            .expect("connects")
    };
    let connected = connect(&edge, Persistence::Stored).await;
    assert!(!connected.session_present);
    let client = crate::edge::Client {
        broker: Arc::clone(&edge.broker),
        session: connected.session,
    };
    client.subscribe(&[Channel::Inputs, Channel::Methods]).await;
    client.leave();
    edge.broker.stop().await;
    let edge = open();
    let again = connect(&edge, Persistence::Stored).await;
    assert!(again.session_present && again.session.subscribed(Channel::Inputs));
    let clean = connect(&edge, Persistence::Forgotten).await;
    assert!(!clean.session_present && !clean.session.subscribed(Channel::Inputs));
    assert!(!connect(&edge, Persistence::Stored).await.session_present);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_scope_is_kept_for_offline_starts_and_followed() {
    let cloud = FakeCloud::new(true);
    cloud.state.lock().scope = scope();
    let disk = SimDisk::new();
    let edge = Edge::below(&cloud, Arc::new(disk.clone())).await;
    edge.client("leaf").await;
    edge.broker.stop().await;

    // Nothing above, and the process is new.
    cloud.set_online(false);
    let edge = Edge::below(&cloud, Arc::new(disk.clone())).await;
    let leaf = edge.client("leaf").await;
    let module = edge.client("edge/a").await;
    assert!(
        edge.try_connect("new", &key_of("new")).await.is_err(),
        "never seen"
    );
    // A copy, since the edge hub goes on writing.
    let kept = disk.copy();
    for path in kept.paths() {
        let content = kept.content(&path);
        let key = key_of("leaf");
        let secret = key.reveal().as_bytes();
        assert!(
            !content.windows(secret.len()).any(|window| window == secret),
            "{}",
            path.display()
        );
    }

    // It is back: an identity that was made meanwhile is found, one that was disabled goes at once.
    cloud.set_online(true);
    cloud.state.lock().scope.push(entry("new"));
    edge.broker.refresh_scope().await.expect("online");
    edge.client("new").await;
    // The edge hub reads its scope by itself, too, when the hub is back: perhaps now, perhaps before or after.
    cloud.state.lock().scope.push(entry("newer"));
    edge.client("newer").await;
    assert!(cloud.reads_of("newer") <= 1);
    {
        let mut state = cloud.state.lock();
        state
            .scope
            .iter_mut()
            .for_each(|entry| entry.enabled &= entry.identity.as_str() != "leaf");
    }
    edge.broker.refresh_scope().await.expect("online");
    assert_eq!(leaf.session.close_reason(), Some(CloseReason::IdentityChanged));
    assert!(!module.session.is_ended());
    // A new key counts at once, and the session that rests on the old one ends.
    {
        let mut state = cloud.state.lock();
        let entry = state
            .scope
            .iter_mut()
            .find(|entry| entry.identity.as_str() == "edge/a")
            .expect("there");
        entry.authentication = ScopeAuthentication::Keys {
            primary: key_of("other"),
            secondary: key_of("another"),
        };
    }
    assert!(edge.try_connect("edge/a", &key_of("other")).await.is_ok());
    edge.until("the end of the old key", || module.session.is_ended())
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_edges_speak_for_what_is_below_them() {
    let mut identities = scope();
    let child_scope = "ms-azure-iot-edge://child-1";
    let mut child = entry("child");
    child.iot_edge = true;
    child.device_scope = Some(child_scope.to_owned());
    child.parent_scopes = vec![EDGE_SCOPE.to_owned()];
    let mut below = entry("below");
    below.device_scope = Some(child_scope.to_owned());
    below.parent_scopes = vec![child_scope.to_owned()];
    identities.extend([child, below, entry("child/$edgeHub"), entry("child/m")]);
    let cloud = FakeCloud::new(true);
    cloud.state.lock().scope = identities;
    let clock: Arc<ManualClock> = crate::edge::manual();
    let edge = Edge::open(settings(), Arc::new(SimDisk::new()), clock, Some(above(&cloud)));
    edge.broker.refresh_scope().await.expect("online");

    let actor = edge.token("child/$edgeHub", &key_of("child/$edgeHub"));
    let connect = async |identity: &str, chain: &str| {
        edge.connect_with(
            identity,
            Credential::Sas(&actor),
            Persistence::Untouched,
            Some(chain),
        )
        .await
    };
    assert!(connect("below", "below;child").await.is_ok());
    let module = connect("child/m", "child/m;child").await.expect("its module");
    for (identity, chain) in [
        ("leaf", "leaf;child"),
        ("below", "leaf;child"),
        ("below", "below;edge"),
        ("edge/a", "edge/a;child"),
        ("below", "below;child;edge"),
    ] {
        assert!(connect(identity, chain).await.is_err(), "{identity} by {chain}");
    }
    // The same by a token put on the connection before.
    let grant = edge.broker.verify_token(&actor).await.expect("a grant");
    let granted = edge
        .connect_with(
            "below",
            Credential::Granted(&grant),
            Persistence::Untouched,
            Some("below;child"),
        )
        .await;
    assert!(granted.is_ok());
    assert!(
        edge.connect_with(
            "leaf",
            Credential::Granted(&grant),
            Persistence::Untouched,
            Some("leaf;child")
        )
        .await
        .is_err()
    );
    // What it sends goes up on its behalf.
    let sender = crate::edge::Client {
        broker: Arc::clone(&edge.broker),
        session: module.session,
    };
    edge.route(serde_json::json!({ "up": "FROM /messages/* INTO $upstream" }));
    sender.say(None, &["x"]).await;
    edge.until("the message", || cloud.bodies("child/m") == ["x"])
        .await;
    assert_eq!(cloud.state.lock().chains["child/m"], "child/m;child;edge");
    // A disabled child lets nobody through.
    {
        let mut state = cloud.state.lock();
        state
            .scope
            .iter_mut()
            .for_each(|entry| entry.enabled &= entry.identity.as_str() != "child");
    }
    edge.broker.refresh_scope().await.expect("online");
    assert!(sender.session.is_ended());
    assert!(connect("below", "below;child").await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_new_below_a_child_is_asked_for_by_its_chain() {
    let mut child = entry("child");
    child.iot_edge = true;
    child.device_scope = Some("ms-azure-iot-edge://child-1".to_owned());
    child.parent_scopes = vec![EDGE_SCOPE.to_owned()];
    let mut new = entry("new");
    new.parent_scopes = vec!["ms-azure-iot-edge://child-1".to_owned()];
    let mut identities = scope();
    identities.extend([child, entry("child/$edgeHub")]);
    let cloud = FakeCloud::new(true);
    cloud.state.lock().scope = identities;
    let edge = Edge::below(&cloud, Arc::new(SimDisk::new())).await;
    let leaf = edge.client("leaf").await;
    {
        let mut state = cloud.state.lock();
        state.scope.push(new);
        let ways = [("new", "new;child;edge"), ("leaf", "leaf;edge")];
        state
            .ways
            .extend(ways.map(|(id, way)| (id.to_owned(), way.to_owned())));
    }
    let actor = edge.token("child/$edgeHub", &key_of("child/$edgeHub"));
    let stranger = edge.token("child/$edgeHub", &key_of("stranger"));
    let connect = async |token: &str, identity: &str, chain: &str| {
        let credential = Credential::Sas(token);
        edge.connect_with(identity, credential, Persistence::Untouched, Some(chain))
            .await
    };
    // A stranger does not use up the look-up, and a claim that is wrong harms nobody.
    assert!(connect(&stranger, "new", "new;child").await.is_err());
    assert!(connect(&actor, "leaf", "leaf;child").await.is_err());
    assert!(!leaf.session.is_ended());
    edge.client("leaf").await;
    assert!(connect(&actor, "new", "new;child").await.is_ok());
}
