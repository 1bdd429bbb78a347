//! A cable that is cut: nothing goes through any more, and nobody is told.

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::*;

/// A cut is noticed within this time, by the times that the test sets; without a question it would take the keep-alive.
const NOTICED: Duration = Duration::from_secs(8);

/// Carries connections to a port. After a cut those that were there stay silent for ever, as when a router forgets them,
/// and new ones hang until it is mended, as TCP asks again.
struct Cable {
    port: u16,
    cut: watch::Sender<bool>,
}

impl Cable {
    async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let (cut, is_cut) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((mut inner, _)) = listener.accept().await {
                let mut is_cut = is_cut.clone();
                tokio::spawn(async move {
                    let outer = TcpStream::connect(("127.0.0.1", port)).await;
                    let mut outer = outer.unwrap();
                    if is_cut.wait_for(|cut| !*cut).await.is_err() {
                        return;
                    }
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut inner, &mut outer) => return,
                        _ = is_cut.wait_for(|cut| *cut) => {}
                    }
                    // Both ends stay open, and hear nothing, as long as the test runs.
                    while is_cut.changed().await.is_ok() {}
                });
            }
        });
        Cable { port: own, cut }
    }
}

fn hasty(hub: &Hub, protocol: UpstreamProtocol) -> UpstreamConfig {
    let mut config = config(hub, protocol);
    config.tuning.silence_before_ping = Duration::from_millis(300);
    config.tuning.silence_after_ping = Duration::from_millis(700);
    // An attempt into the void hangs for longer than this test waits.
    config.tuning.connect_timeout = NOTICED * 2;
    config.tuning.request_timeout = Duration::from_secs(2);
    config.tuning.retry_first = Duration::from_millis(50);
    config.tuning.retry_max = Duration::from_millis(200);
    assert!(config.tuning.keep_alive > NOTICED * 2);
    config
}

async fn is_noticed_and_overcome(hub: Arc<Hub>, protocol: UpstreamProtocol, device: String) {
    command(&hub, &["device", "create", &device]).await;
    let mut config = hasty(&hub, protocol);
    let port = match protocol {
        UpstreamProtocol::Mqtt => &mut config.ports.mqtt,
        UpstreamProtocol::Amqp => &mut config.ports.amqp,
        UpstreamProtocol::MqttWs | UpstreamProtocol::AmqpWs => &mut config.ports.https,
    };
    let cable = Cable::to(*port).await;
    *port = cable.port;
    let upstream = upstream(config);
    let account = {
        let (hub, device) = (Arc::clone(&hub), device.clone());
        tokio::task::spawn_blocking(move || account(&hub, &device))
    };
    let client = upstream.client(account.await.unwrap());
    client.want(ALL);
    let sent = client.send(&[message("before")]).await;
    sent.unwrap_or_else(|failure| panic!("{protocol:?}: {failure}"));
    cable.cut.send_replace(true);
    let failure = timeout(NOTICED, client.send(&[message("meanwhile")])).await;
    let failure = failure.unwrap_or_else(|_| panic!("{protocol:?}: not noticed within {NOTICED:?}"));
    let failure = failure.expect_err("nobody took it");
    assert!(
        matches!(failure.cause, CloudError::Unreachable(_)),
        "{protocol:?}: {failure}"
    );
    assert!(matches!(*upstream.reach().borrow(), Reach::Offline { .. }));
    cable.cut.send_replace(false);
    let mended_at = Instant::now();
    while let Err(failure) = client.send(&[message("after")]).await {
        assert!(mended_at.elapsed() < NOTICED, "{protocol:?}: {failure}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cable_that_is_cut_is_noticed_while_something_waits() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Arc::new(start(dir.path()));
    let runs = PROTOCOLS.into_iter().enumerate().map(|(number, protocol)| {
        tokio::spawn(is_noticed_and_overcome(
            Arc::clone(&hub),
            protocol,
            format!("d{number}"),
        ))
    });
    for run in runs.collect::<Vec<_>>() {
        run.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_the_registry_come_back_when_the_cable_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Arc::new(start(dir.path()));
    command(&hub, &["edge", "create", "edge"]).await;
    let mut config = hasty(&hub, UpstreamProtocol::Amqp);
    let cable = Cable::to(config.ports.https).await;
    config.ports.https = cable.port;
    let account = {
        let hub = Arc::clone(&hub);
        tokio::task::spawn_blocking(move || account(&hub, "edge"))
    };
    let registry = upstream(config).registry(account.await.unwrap());
    registry.modules().await.unwrap();
    for is_cut in [true, false, true] {
        cable.cut.send_replace(is_cut);
        // Twice the time of a request, and the pause between. With a connection that is kept, and with a new one.
        let answer = timeout(NOTICED, registry.modules()).await.expect("in time");
        assert_eq!(answer.is_err(), is_cut, "{answer:?}");
    }
}
