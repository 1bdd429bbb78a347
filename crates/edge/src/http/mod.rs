//! HTTP on unix sockets: the workload API, the management API, and what of the identity services others still call.
//!
//! Hand-routed on `hyper`, since a handful of routes for local callers needs no framework and must cost no memory while
//! idle. Errors are `{"message":"…"}`; an unknown path is 404, a wrong verb 400, a missing or unknown `api-version` 400, a
//! body that does not parse 422, a PUT that is not JSON 415, a body that does not come 408 (edge.md section 12).

mod answer;
pub mod callers;
pub mod hub;
pub mod identity;
pub mod management;
pub mod route;
pub mod server;
pub mod workload;

pub use answer::{Answer, Body};

use std::sync::Arc;

use bytes::Bytes;
use holdfast_ports::BoxFuture;
use http::Method;

/// Who is at the other end of a unix socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Process id as this process sees it; `None` when it is in a namespace that is not visible from here.
    pub pid: Option<u32>,
    /// User.
    pub uid: u32,
}

/// A request that is whole.
#[derive(Clone, Debug)]
pub struct Call {
    /// Verb.
    pub method: Method,
    /// Decoded segments of the path.
    pub path: Vec<String>,
    /// Decoded pairs of the query.
    pub query: Vec<(String, String)>,
    /// Whether `Content-Type` says JSON.
    pub json: bool,
    /// Body.
    pub body: Bytes,
    /// Caller.
    pub peer: Peer,
}

impl Call {
    /// A parameter of the query.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// 415 for a PUT that does not say JSON, 422 for what does not parse.
    pub fn parse<T: serde::de::DeserializeOwned>(&self) -> Result<T, Answer> {
        if self.method == Method::PUT && !self.json {
            return Err(Answer::error(415, "Content-Type must be application/json"));
        }
        serde_json::from_slice(&self.body)
            .map_err(|error| Answer::error(422, &format!("the body cannot be read: {error}")))
    }
}

/// Answers requests of one API.
pub trait Api: Send + Sync + 'static {
    /// Answers one; errors are answers, too.
    fn answer<'a>(&'a self, call: Call) -> BoxFuture<'a, Answer>;
}

impl<A: Api> Api for Arc<A> {
    fn answer<'a>(&'a self, call: Call) -> BoxFuture<'a, Answer> {
        (**self).answer(call)
    }
}

#[cfg(test)]
mod tests;
