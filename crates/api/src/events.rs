//! `GET /holdfast/v1/events`: events of the log as server-sent events.
//!
//! Each event is `id: {partition}:{sequence number}` and `data: {json}` in the form of `holdfast_wire::event_json`. The
//! stream follows the log until the client goes away. It reads a block run at a time and only as fast as the client
//! takes it, so a slow reader costs one run of memory per partition.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{HeaderValue, header};
use axum::response::IntoResponse;
use futures_util::stream::{self, Stream, StreamExt};
use holdfast_model::event::EventView;
use holdfast_model::{Error, ErrorCode, Timestamp};
use holdfast_ports::event_log::{EventLog, LogError};
use holdfast_ports::settings::DEFAULT_CONSUMER_GROUP;
use holdfast_wire::event_json::EventJson;
use serde::Deserialize;
use tokio::time::{MissedTickBehavior, interval};

use crate::Api;
use crate::consumer_groups::{check_group, unavailable};
use crate::reply::{Failure, Reply};

/// About how many bytes of the log are read at once, per partition.
const READ_BYTES: usize = 256 * 1024;
/// How often a silent stream sends a comment, so that proxies and clients see that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What the client wants to see.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(rename_all = "camelCase", default)]
#[into_params(parameter_in = Query)]
pub(crate) struct EventQuery {
    /// Consumer group whose checkpoints are used; default `$Default`.
    consumer_group: Option<String>,
    /// Only this partition; default all.
    partition: Option<u16>,
    /// `latest` (default), `earliest`, `sequence:N`, `time:{ISO 8601}`, or `checkpoint`: where the consumer group's
    /// reader saved that it had come to, and the oldest event where it saved nothing.
    from: Option<String>,
    /// Only events of this device and its modules.
    device: Option<String>,
    /// Only events of this module.
    module: Option<String>,
    /// Only events of this source, e.g. `Telemetry`.
    source: Option<String>,
}

/// Which events pass.
#[derive(Debug)]
struct Filter {
    device: Option<String>,
    module: Option<String>,
    source: Option<String>,
}

impl Filter {
    fn passes(&self, event: &EventView<'_>) -> bool {
        self.device
            .as_deref()
            .is_none_or(|device| event.source.concerns_identity() && device == event.device_id())
            && self
                .module
                .as_deref()
                .is_none_or(|module| Some(module) == event.module_id())
            && self
                .source
                .as_deref()
                .is_none_or(|source| source.eq_ignore_ascii_case(event.source.as_str()))
    }
}

/// Where to start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Start {
    Latest,
    Earliest,
    Sequence(u64),
    Time(Timestamp),
    Checkpoint,
}

impl Start {
    fn parse(text: Option<&str>) -> Result<Self, Error> {
        let bad = || {
            Error::new(
                ErrorCode::ArgumentInvalid,
                "from must be latest, earliest, checkpoint, sequence:N, or time: followed by an ISO 8601 time",
            )
        };
        match text {
            None | Some("latest") => Ok(Start::Latest),
            Some("earliest") => Ok(Start::Earliest),
            Some("checkpoint") => Ok(Start::Checkpoint),
            Some(text) => match text.split_once(':') {
                Some(("sequence", number)) => number.parse().map(Start::Sequence).map_err(|_| bad()),
                // A plus sign in a query means a space to most encoders; in a time it can only be an offset.
                Some(("time", time)) => Timestamp::parse(&time.replace(' ', "+"))
                    .map(Start::Time)
                    .ok_or_else(bad),
                _ => Err(bad()),
            },
        }
    }

    async fn resolve(self, api: &Api, group: &str, partition: u16) -> Result<u64, Failure> {
        let first = || api.log.info(partition).map(|info| info.first);
        let position = match self {
            Start::Latest => api.log.info(partition).map(|info| info.next),
            Start::Earliest => first(),
            Start::Sequence(number) => Ok(number),
            Start::Time(time) => api.log.find(partition, time).await,
            Start::Checkpoint => match api.checkpoints.checkpoint(group, partition).await {
                Ok(Some(next)) => Ok(next),
                Ok(None) => first(),
                Err(error) => return Err(unavailable(&error)),
            },
        };
        position.map_err(log_failure)
    }
}

/// Streams events. Right: ServiceConnect.
#[utoipa::path(get, path = "/holdfast/v1/events", tag = "Events", params(EventQuery),
    responses((status = 200, description = "server-sent events", content_type = "text/event-stream")))]
pub(crate) async fn stream_events(State(api): State<Api>, Query(query): Query<EventQuery>) -> Reply {
    let group = query
        .consumer_group
        .clone()
        .unwrap_or_else(|| DEFAULT_CONSUMER_GROUP.to_owned());
    check_group(&api, &group).await?;
    let start = Start::parse(query.from.as_deref())?;
    let partitions: Vec<u16> = match query.partition {
        Some(partition) => vec![partition],
        None => (0..api.log.partitions()).collect(),
    };
    let filter = Arc::new(Filter {
        device: query.device,
        module: query.module,
        source: query.source,
    });
    let mut followers = Vec::with_capacity(partitions.len());
    for partition in partitions {
        let next = start.resolve(&api, &group, partition).await?;
        let follower = Follower {
            log: Arc::clone(&api.log),
            filter: Arc::clone(&filter),
            partition,
            next,
        };
        followers.push(Box::pin(stream::unfold(follower, Follower::advance)));
    }
    let events = stream::select(stream::select_all(followers), keep_alive());
    let closing = api.closing.clone();
    let events = events.take_until(async move { closing.wait().await });
    let mut response = Body::from_stream(events.map(Ok::<_, std::convert::Infallible>)).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

fn keep_alive() -> impl Stream<Item = Bytes> {
    let mut ticks = interval(KEEP_ALIVE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick comes at once: the client gets its headers and knows that the stream stands.
    stream::unfold(ticks, |mut ticks| async move {
        ticks.tick().await;
        Some((Bytes::from_static(b": alive\n\n"), ticks))
    })
}

/// Follows one partition.
struct Follower {
    log: Arc<dyn EventLog>,
    filter: Arc<Filter>,
    partition: u16,
    next: u64,
}

impl Follower {
    /// The next run of events as text, and the follower to go on with; `None` ends the stream.
    async fn advance(mut self) -> Option<(Bytes, Follower)> {
        loop {
            let blocks = match self.log.read(self.partition, self.next, READ_BYTES).await {
                Ok(blocks) => blocks,
                Err(error) => return self.end_with(&error),
            };
            if blocks.is_empty() {
                self.wait().await;
                continue;
            }
            let mut out = Vec::new();
            for block in &blocks {
                let events = block.events().map_while(Result::ok);
                // Events that were routed elsewhere are not the built-in endpoint's.
                for event in events.take_while(|event| event.endpoints.has_events()) {
                    if event.sequence_number >= self.next && self.filter.passes(&event) {
                        write_event(&mut out, &event);
                    }
                }
                self.next = self.next.max(block.end_sequence_number());
            }
            if !out.is_empty() {
                return Some((out.into(), self));
            }
        }
    }

    /// Waits for events behind those that were read.
    async fn wait(&mut self) {
        // What was kept at `next` may be gone, and nothing have come since.
        if let Ok(info) = self.log.info(self.partition) {
            self.next = self.next.max(info.first);
        }
        let readable =
            std::future::poll_fn(|context| self.log.poll_readable(self.partition, self.next, context));
        if let Err(error) = readable.await {
            // The log takes nothing more until the hub is started again, as it has said itself. Everything durable was
            // read; the stream stays, for the other partitions, and ends with the hub.
            tracing::debug!(partition = self.partition, %error, "an event stream has nothing more to wait for");
            std::future::pending::<()>().await;
        }
    }

    fn end_with(self, error: &LogError) -> Option<(Bytes, Follower)> {
        tracing::error!(partition = self.partition, next = self.next, %error, "events of a partition cannot be read, and a stream of them ends");
        None
    }
}

fn write_event(out: &mut Vec<u8>, event: &EventView<'_>) {
    use std::io::Write as _;
    // Writing to memory cannot fail.
    let _ = write!(out, "id: {}:{}\ndata: ", event.partition, event.sequence_number);
    let _ = serde_json::to_writer(&mut *out, &EventJson(event));
    out.extend_from_slice(b"\n\n");
}

fn log_failure(error: LogError) -> Failure {
    let code = match error {
        LogError::NoSuchPartition(_) => ErrorCode::ArgumentInvalid,
        _ => ErrorCode::ServiceUnavailable,
    };
    Error::new(code, error.to_string()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_positions() {
        assert_eq!(Start::parse(None), Ok(Start::Latest));
        assert_eq!(Start::parse(Some("earliest")), Ok(Start::Earliest));
        assert_eq!(Start::parse(Some("sequence:7")), Ok(Start::Sequence(7)));
        assert_eq!(
            Start::parse(Some("time:1970-01-01T00:00:01Z")),
            Ok(Start::Time(Timestamp::from_seconds(1)))
        );
        assert_eq!(
            Start::parse(Some("time:1970-01-01T01:00:01 01:00")),
            Ok(Start::Time(Timestamp::from_seconds(1)))
        );
        for bad in ["", "sequence:x", "time:soon", "tomorrow"] {
            assert!(Start::parse(Some(bad)).is_err(), "{bad}");
        }
    }
}
