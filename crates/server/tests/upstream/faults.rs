//! A network between client and hub that cuts, stalls and splits: nothing acknowledged is lost, order is kept.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// A small generator of its own, so that a run can be repeated by its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Carries connections to `port`; the first `cuts` of them end after a random number of bytes, without warning.
async fn bad_network(port: u16, cuts: usize, seed: u64) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let random = Arc::new(Mutex::new(Random(seed)));
    tokio::spawn(async move {
        while let Ok((inner, _)) = listener.accept().await {
            let number = counted.fetch_add(1, Ordering::SeqCst);
            let life = {
                let mut random = random.lock().unwrap();
                // Some in the middle of the handshake, most in the middle of messages.
                if number >= cuts {
                    u64::MAX
                } else {
                    random.below(60_000)
                }
            };
            let random = Arc::clone(&random);
            tokio::spawn(async move {
                let outer = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let (mut from_client, mut to_client) = inner.into_split();
                let (mut from_hub, mut to_hub) = outer.into_split();
                let left = Arc::new(Mutex::new(life));
                let up = carry(&mut from_client, &mut to_hub, &left, &random);
                let down = carry(&mut from_hub, &mut to_client, &left, &random);
                // Both ends learn of it at once, as when a router forgets a connection.
                tokio::select! {
                    () = up => {}
                    () = down => {}
                }
            });
        }
    });
    (own, count)
}

async fn carry(
    from: &mut (impl tokio::io::AsyncRead + Unpin),
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
    left: &Mutex<u64>,
    random: &Mutex<Random>,
) {
    let mut buffer = [0; 4096];
    loop {
        // Pieces of any size, packets and frames cut anywhere.
        let (most, stall) = {
            let mut random = random.lock().unwrap();
            (1 + random.below(4096) as usize, random.below(200) == 0)
        };
        if stall {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let Ok(count) = from.read(&mut buffer[..most]).await else {
            return;
        };
        if count == 0 {
            return;
        }
        let taken = {
            let mut left = left.lock().unwrap();
            let taken = (count as u64).min(*left);
            *left -= taken;
            taken as usize
        };
        if to.write_all(&buffer[..taken]).await.is_err() || taken < count {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_network_costs_nothing_but_time() {
    const MESSAGES: u32 = 4_000;
    let seed = std::env::var("SEED").map_or_else(
        |_| u64::from(std::process::id()) * 7_919,
        |text| text.parse().unwrap(),
    );
    println!("SEED={seed}");
    let dir = tempfile::tempdir().unwrap();
    let hub = Arc::new(start(dir.path()));
    for (number, protocol) in PROTOCOLS.into_iter().enumerate() {
        let device = format!("d{number}");
        command(&hub, &["device", "create", &device]).await;
        let mut config = config(&hub, protocol);
        let port = match protocol {
            UpstreamProtocol::Mqtt => &mut config.ports.mqtt,
            UpstreamProtocol::Amqp => &mut config.ports.amqp,
            UpstreamProtocol::MqttWs | UpstreamProtocol::AmqpWs => &mut config.ports.https,
        };
        let (through, connections) = bad_network(*port, 7, seed + number as u64).await;
        *port = through;
        config.tuning.retry_first = Duration::from_millis(5);
        config.tuning.retry_max = Duration::from_millis(50);
        let upstream = upstream(config);
        let client = upstream.client(account(&hub, &device));
        client.want(ALL);
        let mut next = 0;
        let deadline = Instant::now() + PATIENCE;
        while next < MESSAGES {
            let batch: Vec<Message> = (next..(next + 250).min(MESSAGES))
                .map(|n| message(&n.to_string()))
                .collect();
            match client.send(&batch).await {
                Ok(()) => next += batch.len() as u32,
                Err(failure) => {
                    assert!(
                        matches!(failure.cause, CloudError::Unreachable(_)),
                        "{protocol:?}: {failure}"
                    );
                    next += failure.accepted as u32;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            assert!(Instant::now() < deadline, "{protocol:?}: {next} messages in time");
        }
        assert!(connections.load(Ordering::SeqCst) > 3, "{protocol:?}: it was cut");
        let hub = Arc::clone(&hub);
        let read = move || {
            let flags = [
                "--from",
                "earliest",
                "--json",
                "--source",
                "telemetry",
                "--timeout",
                "3s",
            ];
            hub.run(&[&["monitor", "--device", &device], &flags[..]].concat())
        };
        let output = tokio::task::spawn_blocking(read).await.unwrap();
        let text = support::text(&output.stdout);
        let mut first = std::collections::BTreeSet::new();
        let numbers = text.lines().filter_map(|line| {
            let event: Value = serde_json::from_str(line).ok()?;
            event["body"].as_u64()
        });
        let order: Vec<u64> = numbers.filter(|number| first.insert(*number)).collect();
        let missing: Vec<u64> = (0..u64::from(MESSAGES))
            .filter(|number| !first.contains(number))
            .collect();
        assert!(missing.is_empty(), "{protocol:?}: lost {missing:?}");
        let early = order.windows(2).find(|pair| pair[0] > pair[1]);
        assert!(early.is_none(), "{protocol:?}: out of order {early:?}");
    }
}
