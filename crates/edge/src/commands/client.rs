//! Client of the daemon's management API.

use std::path::{Path, PathBuf};
use std::pin::Pin;

use bytes::Bytes;
use holdfast_program::failure::{Failure, Kind};
use http::{Method, Request, StatusCode};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use crate::config::Settings;
use crate::http::Body;

/// Newest version of the API.
const API_VERSION: &str = "2022-08-03";
/// Where daemons listen by default, ours and the original.
const DEFAULT_SOCKETS: [&str; 2] = ["/run/holdfast-edge/mgmt.sock", "/var/run/iotedge/mgmt.sock"];
/// Largest answer that is held in memory.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The socket of the configuration, or one that exists.
pub(super) fn find_socket(settings: Option<&Settings>) -> PathBuf {
    if let Some(settings) = settings {
        return settings.sockets.management.clone();
    }
    let found = DEFAULT_SOCKETS.iter().map(Path::new).find(|path| path.exists());
    found.unwrap_or(Path::new(DEFAULT_SOCKETS[0])).to_owned()
}

/// Talks to one daemon.
pub(super) struct Client {
    socket: PathBuf,
    runtime: Runtime,
}

impl Client {
    pub(super) fn new(socket: PathBuf) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::new(Kind::Failed, format!("cannot start: {error}")))?;
        Ok(Client { socket, runtime })
    }

    /// GET of a JSON document.
    pub(super) fn get(&self, path: &str) -> Result<Value, Failure> {
        let body = self.runtime.block_on(async {
            let mut answer = self.ask(Method::GET, path).await?;
            let mut whole = Vec::new();
            while let Some(piece) = self.piece(&mut answer).await? {
                if whole.len() + piece.len() > ANSWER_BYTES_MAX {
                    return Err(self.broken(&"the answer is too long"));
                }
                whole.extend_from_slice(&piece);
            }
            Ok(whole)
        })?;
        serde_json::from_slice(&body).map_err(|error| self.broken(&error))
    }

    /// POST without a body.
    pub(super) fn post(&self, path: &str) -> Result<(), Failure> {
        self.runtime
            .block_on(async { self.ask(Method::POST, path).await.map(drop) })
    }

    /// GET of something that is handed over piece by piece.
    pub(super) fn stream(
        &self,
        path: &str,
        mut take: impl FnMut(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.runtime.block_on(async {
            let mut answer = self.ask(Method::GET, path).await?;
            while let Some(piece) = self.piece(&mut answer).await? {
                take(&piece)?;
            }
            Ok(())
        })
    }

    async fn ask(&self, method: Method, path: &str) -> Result<Incoming, Failure> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| self.unreachable(&error))?;
        let (mut sender, connection) = http1::handshake::<_, Body>(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(&error))?;
        tokio::spawn(connection);
        let separator = if path.contains('?') { '&' } else { '?' };
        let request = Request::builder()
            .method(method)
            .uri(format!("{path}{separator}api-version={API_VERSION}"))
            .header(http::header::HOST, "localhost")
            .body(Body::Whole(Bytes::new()))
            .map_err(|error| self.broken(&error))?;
        let answer = sender
            .send_request(request)
            .await
            .map_err(|error| self.broken(&error))?;
        let status = answer.status();
        let mut body = answer.into_body();
        if status.is_success() {
            return Ok(body);
        }
        let mut text = Vec::new();
        while text.len() < 64 * 1024 {
            let Ok(Some(piece)) = self.piece(&mut body).await else {
                break;
            };
            text.extend_from_slice(&piece);
        }
        Err(refused(status, &text))
    }

    async fn piece(&self, body: &mut Incoming) -> Result<Option<Bytes>, Failure> {
        loop {
            let frame = std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(self.broken(&error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    fn unreachable(&self, error: &std::io::Error) -> Failure {
        let failure = Failure::new(
            if error.kind() == std::io::ErrorKind::PermissionDenied {
                Kind::Unauthorized
            } else {
                Kind::Unavailable
            },
            format!("cannot talk to the daemon at {}: {error}", self.socket.display()),
        );
        match error.kind() {
            std::io::ErrorKind::PermissionDenied => {
                failure.hint("run the command as root, or join the group of the socket")
            }
            _ => failure.hint(
                "start it (systemctl start holdfast-edge), or name its socket with --host unix:///path",
            ),
        }
    }

    fn broken(&self, error: &dyn std::fmt::Display) -> Failure {
        Failure::new(
            Kind::Unavailable,
            format!(
                "the daemon at {} gave no proper answer: {error}",
                self.socket.display()
            ),
        )
        .hint("its log says more (journalctl -u holdfast-edge)")
    }
}

fn refused(status: StatusCode, body: &[u8]) -> Failure {
    let message = serde_json::from_slice::<Value>(body)
        .ok()
        .and_then(|value| Some(value.get("message")?.as_str()?.to_owned()))
        .unwrap_or_else(|| format!("the daemon answered {status}"));
    let kind = match status.as_u16() {
        403 => Kind::Unauthorized,
        404 => Kind::NotFound,
        409 => Kind::Conflict,
        400 | 415 | 422 => Kind::Usage,
        503 => Kind::Unavailable,
        _ => Kind::Failed,
    };
    Failure::new(kind, message)
}
