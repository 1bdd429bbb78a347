//! What the HTTPS port wraps around the bodies of requests and answers.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use crate::lobby::{Guest, Stage};

/// A request is being served: from its whole head to the end of the answer. Meanwhile the connection keeps its place.
pub(super) struct Served {
    place: Arc<Guest>,
}

impl Served {
    pub(super) fn new(place: &Arc<Guest>) -> Self {
        // If the place is lost already, the connection is about to end, and the request with it.
        place.keep();
        Served {
            place: Arc::clone(place),
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.place.wait_as(Stage::Idle);
    }
}

/// The body of an answer, which may be long in coming.
pub(super) struct ServedBody {
    body: Body,
    _served: Served,
}

impl ServedBody {
    pub(super) fn new(body: Body, served: Served) -> Self {
        ServedBody {
            body,
            _served: served,
        }
    }
}

impl HttpBody for ServedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
