//! The upgrade of an HTTPS connection to a WebSocket that carries MQTT or AMQP.

use std::net::SocketAddr;

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, RETRY_AFTER, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};

use crate::amqp::AmqpHead;
use crate::lobby::Guest;
use crate::mqtt::MqttHead;
use crate::transport::Socket;

/// RFC 6455 section 1.3.
const KEY_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Length of a decoded `Sec-WebSocket-Key`.
const KEY_LEN: usize = 16;
const VERSION: HeaderValue = HeaderValue::from_static("13");
/// A protocol that a WebSocket can carry: where its clients ask for it, and by which names.
struct Carried {
    paths: &'static [&'static str],
    names: &'static [&'static str],
}

/// Paths: hub and provisioning; paho's default for Java; a URI without path for C# (mqtt.md section 1).
const MQTT: Carried = Carried {
    paths: &["/$iothub/websocket", "/mqtt", "/"],
    names: &["mqtt"],
};

/// Paths: hub; Event Hubs clients, uamqp with a trailing slash; C# for provisioning (amqp.md section 1.3). Names: that of
/// the SDKs, and the registered one.
const AMQP: Carried = Carried {
    paths: &["/$iothub/websocket", "/$servicebus/websocket", "/"],
    names: &["AMQPWSB10", "amqp"],
};

/// The heads that take the byte streams of WebSockets.
#[derive(Clone, Default)]
pub(crate) struct Carriers {
    pub(crate) mqtt: Option<MqttHead>,
    pub(crate) amqp: Option<AmqpHead>,
}

/// The head that a WebSocket is for.
#[derive(Clone)]
enum Carrier {
    Mqtt(MqttHead),
    Amqp(AmqpHead),
}

/// An upgrade that one of the heads takes.
pub(crate) struct Wanted {
    /// The sub-protocol as the client spells it.
    protocol: HeaderValue,
    carrier: Carrier,
}

impl Carried {
    /// The sub-protocol that the request offers for this, as the client spells it.
    fn offered(&self, request: &Request<Incoming>) -> Option<HeaderValue> {
        let path = request.uri().path();
        let trimmed = match path.trim_end_matches('/') {
            "" => "/",
            trimmed => trimmed,
        };
        if !self.paths.iter().any(|known| known.eq_ignore_ascii_case(trimmed)) {
            return None;
        }
        tokens(request.headers(), &SEC_WEBSOCKET_PROTOCOL)
            .find(|offered| self.names.iter().any(|name| name.eq_ignore_ascii_case(offered)))
            .and_then(|offered| HeaderValue::from_str(offered).ok())
    }
}

impl Carriers {
    /// Which head a request asks for; `None` for every request that is no upgrade for one of them.
    pub(crate) fn wanted(&self, request: &Request<Incoming>) -> Option<Wanted> {
        if request.method() != Method::GET || !has_token(request.headers(), &UPGRADE, "websocket") {
            return None;
        }
        if let Some(mqtt) = &self.mqtt
            && let Some(protocol) = MQTT.offered(request)
        {
            let carrier = Carrier::Mqtt(mqtt.clone());
            return Some(Wanted { protocol, carrier });
        }
        let amqp = self.amqp.as_ref()?;
        let protocol = AMQP.offered(request)?;
        let carrier = Carrier::Amqp(amqp.clone());
        Some(Wanted { protocol, carrier })
    }
}

/// Answers the upgrade; after the answer is sent, the head has the connection. Extensions are declined by silence.
pub(crate) fn answer(request: &mut Request<Incoming>, wanted: Wanted, peer: SocketAddr) -> Response<Body> {
    let Some(accept) = accept_key(request.headers()) else {
        return bad_request();
    };
    let Wanted { protocol, carrier } = wanted;
    let place = match &carrier {
        Carrier::Mqtt(head) => head.reserve_websocket(),
        Carrier::Amqp(head) => head.reserve_websocket(),
    };
    let Some(place) = place else {
        return unavailable();
    };
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => hand_over(upgraded, &carrier, peer, place),
            Err(error) => holdfast_observe::tracing::debug!(%peer, %error, "WebSocket upgrade failed"),
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    headers.insert(SEC_WEBSOCKET_PROTOCOL, protocol);
    response
}

fn hand_over(upgraded: Upgraded, carrier: &Carrier, peer: SocketAddr, place: Guest) {
    // Out of its wrappers, so that neither they nor hyper's buffers stay for the life of the session.
    match upgraded.downcast::<TokioIo<Socket>>() {
        Ok(parts) => {
            let socket = parts.io.into_inner();
            match carrier {
                Carrier::Mqtt(head) => head.accept_websocket(socket, &parts.read_buf, peer, place),
                Carrier::Amqp(head) => head.accept_websocket(socket, &parts.read_buf, peer, place),
            }
        }
        Err(_) => holdfast_observe::tracing::error!("an upgraded connection is not one of this listener"),
    }
}

/// `Sec-WebSocket-Accept`; `None` when the request is not a whole upgrade of version 13.
fn accept_key(headers: &HeaderMap) -> Option<HeaderValue> {
    if headers.get(SEC_WEBSOCKET_VERSION) != Some(&VERSION) || !has_token(headers, &CONNECTION, "upgrade") {
        return None;
    }
    let key = headers.get(SEC_WEBSOCKET_KEY)?.as_bytes();
    if STANDARD.decode(key).ok()?.len() != KEY_LEN {
        return None;
    }
    // SHA-1 is what the protocol says; nothing rests on its strength.
    let mut digest = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    digest.update(key);
    digest.update(KEY_SUFFIX);
    HeaderValue::from_str(&STANDARD.encode(digest.finish())).ok()
}

fn bad_request() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::BAD_REQUEST;
    // Tells a client of another version which one is spoken (RFC 6455 section 4.4).
    response.headers_mut().insert(SEC_WEBSOCKET_VERSION, VERSION);
    response
}

/// Says so before the upgrade: an HTTP status reaches clients that a closed WebSocket would leave guessing.
fn unavailable() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from_static("5"));
    response
}

/// The elements of a comma-separated header.
fn tokens<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|present| present.eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_the_key_of_the_specification() {
        let mut headers = HeaderMap::new();
        headers.insert(SEC_WEBSOCKET_VERSION, VERSION);
        headers.insert(CONNECTION, HeaderValue::from_static("keep-alive, Upgrade"));
        assert_eq!(accept_key(&headers), None);
        headers.insert(
            SEC_WEBSOCKET_KEY,
            HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="),
        );
        let expected = HeaderValue::from_static("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(accept_key(&headers), Some(expected));
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("8"));
        assert_eq!(accept_key(&headers), None);
    }
}
