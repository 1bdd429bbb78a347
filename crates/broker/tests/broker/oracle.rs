//! Everything at once: senders, an unreliable hub above, an unreliable process on an unreliable disk; nothing acknowledged is
//! lost, and each sender's messages come in order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::subscription::Channel;
use holdfast_store::log::sim::{Random, SimDisk};
use serde_json::json;

use crate::cloud::FakeCloud;
use crate::edge::{Client, Draft, Edge, above, manual, scope, settings};
use crate::rig::Process;

const SENDERS: [&str; 4] = ["edge/a", "edge/b", "leaf", "leaf2"];

/// What one sender did: numbers, and whether each was acknowledged.
#[derive(Default)]
struct Sent {
    next: u64,
    acknowledged: Vec<u64>,
}

/// All acknowledged ones are there, and the first time each comes it comes in order.
fn check(what: &str, sent: &Sent, got: &[u64]) {
    let mut firsts: Vec<u64> = Vec::new();
    for number in got {
        if !firsts.contains(number) {
            firsts.push(*number);
        }
    }
    assert!(firsts.is_sorted(), "{what}: out of order: {firsts:?}");
    for number in &sent.acknowledged {
        assert!(
            firsts.contains(number),
            "{what}: {number} was acknowledged and is lost; there are {firsts:?}"
        );
    }
}

async fn step(
    edge: &Edge,
    cloud: &FakeCloud,
    random: &mut Random,
    sent: &mut BTreeMap<&'static str, Sent>,
    input: &mut Vec<(String, u64)>,
) {
    match random.below(8) {
        0 => cloud.set_online(random.below(2) == 0),
        1 => {
            let broken = (random.below(30), random.below(5));
            cloud.state.lock().break_after = Some(broken);
        }
        2 => {
            // The module fetches some, settles some of them, and may vanish.
            let client = edge.client("edge/c").await;
            client.subscribe(&[Channel::Inputs]).await;
            for delivery in client.take(1 + random.below(40)).await {
                let body = String::from_utf8_lossy(&delivery.message.message.body)
                    .parse()
                    .unwrap();
                let sender = delivery
                    .message
                    .input
                    .as_ref()
                    .unwrap()
                    .sender
                    .as_str()
                    .to_owned();
                input.push((sender, body));
                if random.below(10) > 0 {
                    let _ = client
                        .settle(&delivery, holdfast_model::c2d::Settlement::Complete)
                        .await;
                }
            }
            client.leave();
        }
        _ => {
            let sender = SENDERS[random.below(SENDERS.len())];
            let client = edge.client(sender).await;
            let of_sender = sent.entry(sender).or_default();
            let numbers: Vec<u64> = (0..=random.below(20) as u64)
                .map(|step| of_sender.next + step)
                .collect();
            of_sender.next += numbers.len() as u64;
            let texts: Vec<String> = numbers.iter().map(u64::to_string).collect();
            let drafts: Vec<Draft<'_>> = texts
                .iter()
                .map(|text| Draft {
                    body: text,
                    ..Draft::default()
                })
                .collect();
            if client.send(&drafts).await.is_ok() {
                of_sender.acknowledged.extend(numbers);
            }
        }
    }
}

fn open(process: &Process, cloud: &Arc<FakeCloud>) -> Edge {
    let mut config = settings();
    config.queues.segment_bytes = 4 << 10;
    Edge::open(config, Arc::new(process.clone()), manual(), Some(above(cloud)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_whatever_happens() {
    let base: u64 = std::env::var("HOLDFAST_SEED").map_or_else(
        |_| std::process::id().into(),
        |seed| seed.parse().expect("a number"),
    );
    let rounds: u64 = std::env::var("HOLDFAST_ROUNDS").map_or(12, |rounds| rounds.parse().expect("a number"));
    println!("seeds from {base}");
    for seed in base..base + rounds {
        run(seed).await;
    }
}

async fn run(seed: u64) {
    let mut random = Random(seed);
    let disk = SimDisk::new();
    let cloud = FakeCloud::new(true);
    cloud.state.lock().scope = scope();
    let mut sent: BTreeMap<&'static str, Sent> = BTreeMap::new();
    let mut input: Vec<(String, u64)> = Vec::new();
    let routes = json!({
        "up": "FROM /messages/* INTO $upstream",
        "in": "FROM /messages/* INTO BrokeredEndpoint(\"/modules/c/inputs/in\")",
    });
    let mut process = Process::start(&disk);
    let mut edge = open(&process, &cloud);
    edge.broker.refresh_scope().await.expect("online at first");
    edge.route(routes.clone());
    for _ in 0..5 {
        for _ in 0..random.below(25) {
            step(&edge, &cloud, &mut random, &mut sent, &mut input).await;
        }
        match random.below(3) {
            0 => process.die(|disk| disk.cut_power(seed)),
            1 => process.die(SimDisk::kill),
            _ => {}
        }
        edge.broker.stop().await;
        process.die(SimDisk::kill);
        process = Process::start(&disk);
        edge = open(&process, &cloud);
        edge.route(routes.clone());
    }
    cloud.set_online(true);
    cloud.state.lock().break_after = None;
    drain(&edge, &mut input).await;
    edge.until("an empty store", || edge.broker.queue_bytes() == 0)
        .await;
    for (sender, of_sender) in &sent {
        let above: Vec<u64> = cloud
            .bodies(sender)
            .iter()
            .map(|body| body.parse().unwrap())
            .collect();
        check(&format!("seed {seed}, {sender} above"), of_sender, &above);
        let below: Vec<u64> = input
            .iter()
            .filter(|(from, _)| from == sender)
            .map(|(_, number)| *number)
            .collect();
        check(&format!("seed {seed}, {sender} at the input"), of_sender, &below);
    }
    edge.broker.stop().await;
}

async fn drain(edge: &Edge, input: &mut Vec<(String, u64)>) {
    let client: Client = edge.client("edge/c").await;
    client.subscribe(&[Channel::Inputs]).await;
    loop {
        let some = client.take(50).await;
        if some.is_empty() {
            let left = edge
                .broker
                .queue_lengths()
                .into_iter()
                .filter(|(key, _)| key.name.starts_with("input/"));
            if left.map(|(_, length)| length).sum::<u64>() == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        for delivery in some {
            let body = String::from_utf8_lossy(&delivery.message.message.body)
                .parse()
                .unwrap();
            let sender = delivery
                .message
                .input
                .as_ref()
                .unwrap()
                .sender
                .as_str()
                .to_owned();
            input.push((sender, body));
            client
                .settle(&delivery, holdfast_model::c2d::Settlement::Complete)
                .await
                .expect("locked");
        }
    }
}
