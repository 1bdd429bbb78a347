//! What every event log does. Each check gets a fresh log of at least two partitions.
//!
//! Nothing here depends on how long an append takes to become durable, or on who else is in the process.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::join_all;
use holdfast_model::event::{AuthMethod, EndpointSet, EventBlock, EventSource, Origin, Records};
use holdfast_model::message::SystemProperty;
use holdfast_model::{Identity, Timestamp};

use crate::event_log::{EventLog, LogError, durable};

/// How long anything may take before the suite gives up.
const DEADLINE: Duration = Duration::from_secs(30);
const ENOUGH: usize = 1 << 20;

/// Runs all checks; `make` gives a fresh log each time.
///
/// # Panics
/// When the log does not behave.
pub async fn all<L: EventLog>(make: impl AsyncFn() -> Arc<L>) {
    numbers_without_gaps(make().await.as_ref()).await;
    events_come_back_as_they_were(make().await.as_ref()).await;
    runs_keep_their_endpoints(make().await.as_ref()).await;
    enqueued_times_never_go_back(make().await.as_ref()).await;
    reads_start_and_end_where_asked(make().await.as_ref()).await;
    events_are_found_by_time(make().await.as_ref()).await;
    unknown_partitions_are_refused(make().await.as_ref()).await;
    readers_are_woken(make().await).await;
    many_tickets_may_be_awaited_at_once(make().await.as_ref()).await;
    senders_keep_their_order(make().await).await;
}

fn origin(identity: &str) -> Origin {
    Origin {
        source: EventSource::Telemetry,
        identity: Identity::parse(identity).expect("a valid identity"),
        generation_id: 42,
        auth: AuthMethod::IdentityKey,
    }
}

fn records(bodies: &[&[u8]]) -> Records {
    let mut records = Records::new();
    for body in bodies {
        let _ = records.record().finish(body);
    }
    records
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_seconds(seconds)
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} takes longer than {DEADLINE:?}"),
    }
}

/// Appends and waits until it is durable; returns the end.
async fn put(log: &dyn EventLog, partition: u16, bodies: &[&[u8]], time: Timestamp) -> u64 {
    let ticket = log
        .append(partition, &origin("d1"), &records(bodies), time)
        .expect("append");
    assert_eq!(ticket.partition, partition);
    within("an append", durable(log, ticket)).await.expect("durable");
    ticket.end
}

async fn read(log: &dyn EventLog, partition: u16, from: u64, max_bytes: usize) -> Vec<EventBlock> {
    within("a read", log.read(partition, from, max_bytes))
        .await
        .expect("read")
}

/// All blocks that hold events from `from` on, over as many reads as it takes.
async fn read_all(log: &dyn EventLog, partition: u16, mut from: u64) -> Vec<EventBlock> {
    let mut all: Vec<EventBlock> = Vec::new();
    loop {
        let blocks = read(log, partition, from, ENOUGH).await;
        let Some(last) = blocks.last() else {
            return all;
        };
        from = last.end_sequence_number();
        all.extend(blocks);
    }
}

fn bodies(blocks: &[EventBlock]) -> Vec<Vec<u8>> {
    let events = blocks.iter().flat_map(EventBlock::events);
    events
        .map(|event| event.expect("well formed").body.to_vec())
        .collect()
}

async fn numbers_without_gaps(log: &dyn EventLog) {
    let empty = log.info(0).expect("info");
    assert_eq!((empty.first, empty.next), (0, 0));
    assert_eq!(empty.last_enqueued_at, Timestamp::NEVER);
    assert!(read(log, 0, 0, ENOUGH).await.is_empty());
    assert_eq!(put(log, 0, &[b"a"], at(1)).await, 1);
    assert_eq!(put(log, 0, &[b"b", b"c"], at(2)).await, 3);
    assert_eq!(
        put(log, 1, &[b"x"], at(3)).await,
        1,
        "each partition counts by itself"
    );
    let info = log.info(0).expect("info");
    assert_eq!((info.first, info.next, info.last_enqueued_at), (0, 3, at(2)));
    let numbers: Vec<u64> = read_all(log, 0, 0)
        .await
        .iter()
        .flat_map(EventBlock::events)
        .map(|event| event.expect("well formed").sequence_number)
        .collect();
    assert_eq!(numbers, [0, 1, 2]);
}

async fn events_come_back_as_they_were(log: &dyn EventLog) {
    let mut sent = Records::new();
    let mut record = sent.record();
    record.system(SystemProperty::MessageId, "m-1");
    record.property("level", Some("high"));
    record.property("flag", None);
    let _ = record.finish(b"payload");
    let _ = sent.record().finish(b"");
    let origin = Origin {
        source: EventSource::TwinChange,
        auth: AuthMethod::CertificateAuthority,
        ..origin("d1/m1")
    };
    let ticket = log.append(1, &origin, &sent, at(7)).expect("append");
    within("an append", durable(log, ticket)).await.expect("durable");
    let blocks = read_all(log, 1, 0).await;
    let events: Vec<_> = blocks
        .iter()
        .flat_map(EventBlock::events)
        .collect::<Result<_, _>>()
        .expect("well formed");
    assert_eq!(events.len(), 2);
    assert_eq!((events[0].partition, events[0].enqueued_at), (1, at(7)));
    assert_eq!(events[0].identity, "d1/m1");
    assert_eq!(events[0].generation_id, 42);
    assert_eq!(events[0].source, EventSource::TwinChange);
    assert_eq!(events[0].auth, AuthMethod::CertificateAuthority);
    assert_eq!(events[0].system(SystemProperty::MessageId), Some("m-1"));
    assert_eq!(events[0].fields().count(), 3);
    assert_eq!(events[0].body, b"payload");
    assert_eq!((events[1].fields().count(), events[1].body), (0, &b""[..]));
}

async fn runs_keep_their_endpoints(log: &dyn EventLog) {
    let (first, second) = (records(&[b"a", b"b"]), records(&[b"c"]));
    let elsewhere = EndpointSet::of(3).union(EndpointSet::of(63));
    let runs = [first.run(EndpointSet::EVENTS), second.run(elsewhere)];
    let ticket = log.append_runs(0, &origin("d1"), &runs, at(1)).expect("append");
    assert_eq!(ticket.end, 3);
    within("an append", durable(log, ticket)).await.expect("durable");
    let blocks = read_all(log, 0, 0).await;
    let found: Vec<_> = blocks
        .iter()
        .flat_map(EventBlock::events)
        .map(|event| event.expect("well formed"))
        .map(|event| (event.sequence_number, event.body.to_vec(), event.endpoints))
        .collect();
    let events = EndpointSet::EVENTS;
    let expected = [(0, "a", events), (1, "b", events), (2, "c", elsewhere)];
    assert_eq!(
        found,
        expected.map(|(number, body, set)| (number, body.as_bytes().to_vec(), set))
    );
}

async fn enqueued_times_never_go_back(log: &dyn EventLog) {
    for seconds in [5, 3, 9, 1] {
        put(log, 0, &[b"a"], at(seconds)).await;
    }
    let times: Vec<_> = read_all(log, 0, 0)
        .await
        .iter()
        .map(|block| block.enqueued_at)
        .collect();
    assert_eq!(times, [at(5), at(5), at(9), at(9)]);
    assert_eq!(log.info(0).expect("info").last_enqueued_at, at(9));
}

async fn reads_start_and_end_where_asked(log: &dyn EventLog) {
    let large = vec![7; 10_000];
    for _ in 0..10 {
        put(log, 0, &[&large, b"small"], at(1)).await;
    }
    let blocks = read(log, 0, 0, 1).await;
    assert_eq!(blocks.len(), 1, "at least one block, however large");
    assert_eq!(bodies(&blocks), [&large[..], b"small"]);
    let blocks = read(log, 0, 0, 35_000).await;
    assert!((1..=5).contains(&blocks.len()), "{} blocks", blocks.len());
    for from in 0..20 {
        let blocks = read(log, 0, from, 1).await;
        assert_eq!(
            blocks[0].first_sequence_number,
            from / 2 * 2,
            "the block with {from}"
        );
    }
    assert_eq!(read_all(log, 0, 4).await.len(), 8);
    assert!(read(log, 0, 20, ENOUGH).await.is_empty());
    assert!(read(log, 0, u64::MAX, ENOUGH).await.is_empty());
}

async fn events_are_found_by_time(log: &dyn EventLog) {
    assert_eq!(within("find", log.find(0, at(0))).await, Ok(0));
    for seconds in [10, 20, 20, 40] {
        put(log, 0, &[b"a", b"b"], at(seconds)).await;
    }
    for (time, number) in [(0, 0), (10, 0), (11, 2), (20, 2), (21, 6), (40, 6), (41, 8)] {
        let found = within("find", log.find(0, at(time))).await;
        assert_eq!(found, Ok(number), "enqueued at or after {time}");
    }
    assert_eq!(within("find", log.find(0, Timestamp::NEVER)).await, Ok(0));
    assert_eq!(within("find", log.find(0, Timestamp::MAX)).await, Ok(8));
}

async fn unknown_partitions_are_refused(log: &dyn EventLog) {
    let none = log.partitions();
    assert!(none >= 2, "the suite needs two partitions");
    let missing = LogError::NoSuchPartition(none);
    assert_eq!(
        log.append(none, &origin("d1"), &records(&[b"a"]), at(1)),
        Err(missing.clone())
    );
    assert_eq!(log.info(none), Err(missing.clone()));
    assert_eq!(log.read(none, 0, 1).await.expect_err("refused"), missing);
    assert_eq!(log.find(none, at(1)).await, Err(missing.clone()));
    let readable = poll_fn(|context| log.poll_readable(none, 0, context)).await;
    assert_eq!(readable, Err(missing));
}

async fn readers_are_woken<L: EventLog>(log: Arc<L>) {
    let waiting = Arc::clone(&log);
    let mut reader = Box::pin(poll_fn(move |context| waiting.poll_readable(0, 0, context)));
    poll_fn(|context| {
        assert!(
            reader.as_mut().poll(context).is_pending(),
            "there is nothing to read"
        );
        Poll::Ready(())
    })
    .await;
    let (result, _) = tokio::join!(
        within("waking a reader", reader),
        put(log.as_ref(), 0, &[b"a"], at(1))
    );
    assert_eq!(result, Ok(()));
    let readable = within(
        "asking again",
        poll_fn(|context| log.poll_readable(0, 0, context)),
    );
    assert_eq!(readable.await, Ok(()));
    assert_eq!(read(log.as_ref(), 0, 0, ENOUGH).await.len(), 1);
}

async fn many_tickets_may_be_awaited_at_once(log: &dyn EventLog) {
    let tickets: Vec<_> = (0..500)
        .map(|index| log.append(index % 2, &origin("d1"), &records(&[b"a"]), at(1)))
        .collect::<Result<_, _>>()
        .expect("append");
    let all = join_all(tickets.iter().rev().map(|ticket| durable(log, *ticket)));
    let results = within("all tickets", all).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    // One task may ask for one ticket again and again.
    for ticket in tickets {
        within("a durable ticket", durable(log, ticket))
            .await
            .expect("durable");
    }
}

async fn senders_keep_their_order<L: EventLog>(log: Arc<L>) {
    const SENDERS: u64 = 8;
    const MESSAGES: u64 = 200;
    let senders = (0..SENDERS).map(|sender| {
        let log = Arc::clone(&log);
        tokio::spawn(async move {
            for message in 0..MESSAGES {
                let body = [sender.to_le_bytes(), message.to_le_bytes()].concat();
                let ticket = loop {
                    let appended = log.append(0, &origin("d1"), &records(&[&body]), at(1));
                    match appended {
                        Ok(ticket) => break ticket,
                        Err(LogError::Busy) => tokio::task::yield_now().await,
                        Err(error) => panic!("{error}"),
                    }
                };
                if message % 10 == 9 {
                    durable(log.as_ref(), ticket).await.expect("durable");
                }
            }
        })
    });
    for sender in within("sending", join_all(senders)).await {
        sender.expect("a sender");
    }
    let blocks = read_all(log.as_ref(), 0, 0).await;
    let mut expected = [0; SENDERS as usize];
    for body in bodies(&blocks) {
        let number = |at| u64::from_le_bytes(body[at..at + 8].try_into().expect("eight bytes"));
        let next = &mut expected[number(0) as usize];
        assert_eq!(number(8), *next, "sender {}", number(0));
        *next += 1;
    }
    assert_eq!(expected, [MESSAGES; SENDERS as usize]);
    let ends: Vec<_> = blocks.iter().map(EventBlock::end_sequence_number).collect();
    let starts: Vec<_> = blocks.iter().map(|block| block.first_sequence_number).collect();
    assert_eq!(starts[1..], ends[..ends.len() - 1], "no gaps");
}
