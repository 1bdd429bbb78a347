//! Answers and their bodies.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Response, StatusCode, header};
use hyper::body::{Frame, SizeHint};
use serde::Serialize;
use serde_json::json;
use tokio::sync::mpsc;

/// Pieces of a streamed body that may wait for the client.
pub(super) const PIECES_WAITING_MAX: usize = 4;

/// Body of an answer.
#[derive(Debug)]
pub enum Body {
    /// Known whole.
    Whole(Bytes),
    /// Comes piece by piece.
    Stream(mpsc::Receiver<Bytes>),
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// Body.
    pub body: Body,
}

impl Answer {
    /// JSON.
    #[must_use]
    pub fn json<T: Serialize + ?Sized>(status: u16, value: &T) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Answer {
                status,
                content_type: "application/json",
                body: Body::Whole(body.into()),
            },
            Err(error) => Self::error(500, &format!("the answer cannot be written: {error}")),
        }
    }

    /// Nothing.
    #[must_use]
    pub fn empty(status: u16) -> Self {
        Answer {
            status,
            content_type: "",
            body: Body::Whole(Bytes::new()),
        }
    }

    /// `{"message":"…"}`.
    #[must_use]
    pub fn error(status: u16, message: &str) -> Self {
        Answer {
            status,
            content_type: "application/json",
            body: Body::Whole(json!({ "message": message }).to_string().into()),
        }
    }

    /// A body that comes piece by piece; the sender's end is the body's.
    #[must_use]
    pub fn stream(content_type: &'static str, pieces: mpsc::Receiver<Bytes>) -> Self {
        Answer {
            status: 200,
            content_type,
            body: Body::Stream(pieces),
        }
    }

    pub(super) fn into_response(self) -> Response<Body> {
        let mut response = Response::new(self.body);
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if !self.content_type.is_empty() {
            let value = header::HeaderValue::from_static(self.content_type);
            response.headers_mut().insert(header::CONTENT_TYPE, value);
        }
        response
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Body::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Body::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Body::Stream(pieces) => pieces
                .poll_recv(context)
                .map(|piece| piece.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Body::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Body::Stream(_) => SizeHint::default(),
        }
    }
}
