//! `/metrics` of both system modules on one port, plain HTTP (edge.md section 19).

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use holdfast_program::failure::Failure;
use http::{Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::http::Body;

/// Scrapes at once.
const CONNECTIONS_MAX: usize = 16;
/// For the head of a request, and between two.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Renders all metrics as text.
pub(super) type Render = Arc<dyn Fn() -> String + Send + Sync>;

/// Opens the port.
pub(super) fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    holdfast_heads::listener::bind(address).map_err(|error| {
        Failure::new(
            holdfast_program::failure::Kind::Failed,
            format!("cannot listen on {address} for metrics: {error}"),
        )
        .hint("set hub.metrics_listen to another address, or hub.metrics = false")
    })
}

/// Serves until dropped.
pub(super) async fn serve(listener: TcpListener, render: Render) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(500)).await;
                continue;
            }
        };
        let render = Arc::clone(&render);
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let response = answer(&request, &render);
                async move { Ok::<_, Infallible>(response) }
            });
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            drop(place);
        });
    }
}

fn answer(request: &Request<Incoming>, render: &Render) -> Response<Body> {
    if request.method() != Method::GET || request.uri().path().trim_end_matches('/') != "/metrics" {
        let mut response = Response::new(Body::Whole("metrics are at /metrics\n".into()));
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    }
    let mut response = Response::new(Body::Whole(render().into()));
    let value = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}
