//! Twin requests and subscriptions of a client: worked off one by one, in the order they came.

use std::sync::Arc;
use std::task::{Context, Poll};

use holdfast_model::Error;
use holdfast_model::subscription::Channel;
use holdfast_mqtt::QoS;
use holdfast_mqtt::codec::{SubAckCode, Subscribe, Unsubscribe, encode_suback, encode_unsuback};
use holdfast_ports::BoxFuture;
use holdfast_wire::error::{self, Info, TrackingId};
use holdfast_wire::topics;

use super::active::{Reply, Request};
use super::connection::Connection;
use super::end::End;
use super::scratch::Scratch;
use crate::tracking;

impl Connection {
    pub(super) fn take_subscribe(&mut self, subscribe: &Subscribe<'_>) -> Result<(), End> {
        let identity = self.session.identity();
        let filters = subscribe
            .filters()
            .map(|(filter, qos)| (topics::parse_filter(filter, identity), qos != QoS::AtMostOnce))
            .collect();
        let request = Request::Subscribe {
            packet_id: subscribe.packet_id,
            filters,
        };
        self.active().requests.push(0, request);
        Ok(())
    }

    pub(super) fn take_unsubscribe(&mut self, unsubscribe: &Unsubscribe<'_>) -> Result<(), End> {
        let identity = self.session.identity();
        let channels = unsubscribe
            .filters()
            .filter_map(|filter| topics::parse_filter(filter, identity))
            .collect();
        let request = Request::Unsubscribe {
            packet_id: unsubscribe.packet_id,
            channels,
        };
        self.active().requests.push(0, request);
        Ok(())
    }

    /// Works off requests until one has to wait.
    pub(super) fn work_requests(
        &mut self,
        scratch: &mut Scratch,
        context: &mut Context<'_>,
    ) -> Result<(), End> {
        loop {
            let crowded = self.is_crowded(scratch);
            let Some(active) = &mut self.active else {
                return Ok(());
            };
            if active.requests.is_empty() {
                return Ok(());
            }
            if let Some((after, reply)) = active.requests.done.take() {
                if !active.acks.has_acknowledged(after) {
                    // The PUBACK of a request comes before its answer (mqtt.md section 11, item 6).
                    active.requests.done = Some((after, reply));
                    return Ok(());
                }
                self.reply(reply, scratch)?;
                continue;
            }
            if let Some((after, future)) = &mut active.requests.running {
                let Poll::Ready(reply) = future.as_mut().poll(context) else {
                    return Ok(());
                };
                active.requests.done = Some((*after, reply));
                active.requests.running = None;
                continue;
            }
            if crowded {
                return Ok(());
            }
            if let Some((after, request)) = active.requests.pop()
                && let Some(future) = self.begin(request)
            {
                self.active().requests.running = Some((after, future));
            }
        }
    }

    /// Begins a request; `None` when there is nothing to do and nothing to answer.
    fn begin(&self, request: Request) -> Option<BoxFuture<'static, Reply>> {
        let gateway = Arc::clone(&self.shared.gateway);
        let session = Arc::clone(&self.session);
        Some(match request {
            // Python asks before it subscribes to the answers; then there is none (mqtt.md section 8.1).
            Request::TwinGet { .. } if !session.subscribed(Channel::TwinResponses) => return None,
            Request::TwinGet { rid } => Box::pin(async move {
                let twin = gateway.device_twin(session.identity()).await;
                Reply::Twin { rid, twin }
            }),
            Request::TwinPatch { rid, version, patch } => Box::pin(async move {
                let version = gateway.patch_reported(session.identity(), &patch, version).await;
                Reply::Patched { rid, version }
            }),
            Request::Subscribe { packet_id, filters } => {
                let mut subscriptions = session.subscriptions();
                let before = subscriptions;
                let tolerant = self.shared.config.tolerant;
                let granted = |at_least_once| match at_least_once {
                    true => SubAckCode::GrantedAtLeastOnce,
                    false => SubAckCode::GrantedAtMostOnce,
                };
                let codes = filters
                    .into_iter()
                    .map(|(channel, at_least_once)| match channel {
                        None if tolerant => granted(at_least_once),
                        None => SubAckCode::Failure,
                        Some(channel) => {
                            subscriptions.insert(channel, at_least_once);
                            granted(at_least_once)
                        }
                    })
                    .collect();
                Box::pin(async move {
                    // Clients subscribe anew on every connect; what is stored already is not stored again.
                    let outcome = match subscriptions == before {
                        true => Ok(()),
                        false => gateway.subscribe(&session, subscriptions).await,
                    };
                    Reply::Subscribed {
                        packet_id,
                        codes,
                        outcome,
                    }
                })
            }
            Request::Unsubscribe { packet_id, channels } => {
                let mut subscriptions = session.subscriptions();
                let before = subscriptions;
                channels
                    .into_iter()
                    .for_each(|channel| subscriptions.remove(channel));
                Box::pin(async move {
                    let outcome = match subscriptions == before {
                        true => Ok(()),
                        false => gateway.subscribe(&session, subscriptions).await,
                    };
                    Reply::Unsubscribed { packet_id, outcome }
                })
            }
        })
    }

    fn reply(&mut self, reply: Reply, scratch: &mut Scratch) -> Result<(), End> {
        match reply {
            Reply::Twin { rid, twin: Ok(twin) } => self.reply_twin(200, &rid, None, &twin, scratch),
            Reply::Patched {
                rid,
                version: Ok(version),
            } => self.reply_twin(204, &rid, Some(version), b"", scratch),
            Reply::Twin {
                rid,
                twin: Err(error),
            }
            | Reply::Patched {
                rid,
                version: Err(error),
            } => self.reply_twin_error(&rid, &error, scratch),
            Reply::Subscribed {
                packet_id,
                codes,
                outcome,
            } => {
                // No SDK looks at failure codes; a closed connection is tried again (mqtt.md section 4.1).
                outcome.map_err(|error| End::storage(error.message))?;
                encode_suback(&mut scratch.output, packet_id, &codes)
                    .map_err(|error| End::protocol(error.to_string()))
            }
            Reply::Unsubscribed { packet_id, outcome } => {
                outcome.map_err(|error| End::storage(error.message))?;
                encode_unsuback(&mut scratch.output, packet_id);
                Ok(())
            }
        }
    }

    fn reply_twin_error(&mut self, rid: &str, error: &Error, scratch: &mut Scratch) -> Result<(), End> {
        let tracking = TrackingId {
            id: tracking::random(),
            node: 0,
            at: self.shared.clock.now(),
        };
        let body = error::flat_body(error, tracking, Info::Empty);
        let status = error::row(error.code).http_status;
        holdfast_observe::tracing::debug!(
            identity = self.session.identity().as_str(),
            tracking = %tracking,
            %error,
            "twin request failed"
        );
        self.reply_twin(status, rid, None, body.as_bytes(), scratch)
    }

    fn reply_twin(
        &mut self,
        status: u16,
        rid: &str,
        version: Option<u64>,
        body: &[u8],
        scratch: &mut Scratch,
    ) -> Result<(), End> {
        let mut topic = std::mem::take(&mut scratch.topic);
        topic.clear();
        topics::twin_response(&mut topic, status, rid, version);
        let outcome = self.deliver(Channel::TwinResponses, &topic, body, scratch);
        scratch.topic = topic;
        outcome
    }
}
