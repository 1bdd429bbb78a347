//! Listening on unix sockets, within bounds.
//!
//! A user has at most so many requests at once; a connection with one more is closed without an answer, as the original
//! does. Idle connections end after a while, heads and bodies have a bound in size and time, so a slow or hostile local
//! client costs a task and a few kilobytes.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use holdfast_observe::Repeats;
use holdfast_program::failure::Failure;
use holdfast_program::files;
use http::{Request, Response, header};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::{Answer, Api, Body, Call, Peer};

static NOT_ACCEPTED: Repeats = Repeats::new();

/// For the head of a request, and between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// For the body of a request.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest body: a ciphertext of 3 MiB in base64.
const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Largest head.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Connections of one user for each request that it may have at once.
const CONNECTIONS_PER_REQUEST: usize = 8;

/// Counts what users have under way.
#[derive(Clone)]
pub struct Throttle {
    requests_max: usize,
    users: Arc<Mutex<HashMap<u32, Use>>>,
}

#[derive(Default)]
struct Use {
    requests: usize,
    connections: usize,
}

impl Throttle {
    /// At most so many requests of a user at once, over all sockets that share this throttle.
    #[must_use]
    pub fn new(requests_max: usize) -> Self {
        Throttle {
            requests_max: requests_max.max(1),
            users: Arc::new(Mutex::new(HashMap::new())),
        }
    }

    fn enter(&self, uid: u32, kind: Kind) -> Option<Place> {
        let mut users = self.users.lock();
        let used = users.entry(uid).or_default();
        let (count, most) = match kind {
            Kind::Request => (&mut used.requests, self.requests_max),
            Kind::Connection => (&mut used.connections, self.requests_max * CONNECTIONS_PER_REQUEST),
        };
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Place {
            throttle: self.clone(),
            uid,
            kind,
        })
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Request,
    Connection,
}

/// Given back when dropped.
struct Place {
    throttle: Throttle,
    uid: u32,
    kind: Kind,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut users = self.throttle.users.lock();
        if let Some(used) = users.get_mut(&self.uid) {
            match self.kind {
                Kind::Request => used.requests -= 1,
                Kind::Connection => used.connections -= 1,
            }
            if used.requests == 0 && used.connections == 0 {
                users.remove(&self.uid);
            }
        }
    }
}

/// A socket that is served until this is dropped; its file is removed then. Calls under way end by themselves.
pub struct Served {
    path: PathBuf,
    accepting: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.accepting.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Listens on a path, replacing the socket of an earlier process. Must be called inside the runtime.
///
/// # Errors
/// When the folder cannot be made or the socket not be bound.
pub fn serve<A: Api>(path: &Path, mode: u32, api: A, throttle: Throttle) -> Result<Served, Failure> {
    if let Some(folder) = path.parent() {
        files::make_dir(folder, 0o755)?;
    }
    let listener = bind(path, mode).map_err(|error| {
        Failure::storage(format!("cannot listen on {}: {error}", path.display()))
            .hint("run as root, or choose another path ([api] in the configuration)")
    })?;
    let api = Arc::new(api);
    let accepting = tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => accepted(stream, &api, &throttle),
                Err(error) => {
                    // Out of files or memory: what is open goes on, and ends.
                    if let Some(times) = NOT_ACCEPTED.happened("") {
                        tracing::warn!(%error, times, "a local connection could not be accepted");
                    }
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }
        }
    });
    Ok(Served {
        path: path.to_owned(),
        accepting,
    })
}

fn bind(path: &Path, mode: u32) -> io::Result<UnixListener> {
    // Bound beside and renamed: there is never a moment without a socket for callers that come while we start anew.
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = path.with_file_name(&name);
    let _ = std::fs::remove_file(&beside);
    // By way of the open folder: addresses of sockets have 108 bytes, names of modules alone may have 128.
    let folder = std::fs::File::open(path.parent().unwrap_or(Path::new("/")))?;
    let address = Path::new("/proc/self/fd")
        .join(folder.as_raw_fd().to_string())
        .join(&name);
    let listener = UnixListener::bind(address)?;
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(mode))?;
    std::fs::rename(&beside, path)?;
    Ok(listener)
}

fn accepted<A: Api>(stream: UnixStream, api: &Arc<A>, throttle: &Throttle) {
    let Ok(credentials) = stream.peer_cred() else {
        return;
    };
    let peer = Peer {
        pid: credentials.pid().and_then(|pid| u32::try_from(pid).ok()),
        uid: credentials.uid(),
    };
    let Some(place) = throttle.enter(peer.uid, Kind::Connection) else {
        tracing::debug!(uid = peer.uid, "too many local connections of one user");
        return;
    };
    let dispatch = Dispatch {
        api: Arc::clone(api),
        throttle: throttle.clone(),
        peer,
    };
    tokio::spawn(async move {
        let _place = place;
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), dispatch);
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a local connection ended");
        }
    });
}

struct Dispatch<A> {
    api: Arc<A>,
    throttle: Throttle,
    peer: Peer,
}

/// Ends a connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("too many requests of user {0} at once")]
pub struct Throttled(u32);

impl<A: Api> Service<Request<Incoming>> for Dispatch<A> {
    type Response = Response<Body>;
    type Error = Throttled;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Throttled>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let place = self.throttle.enter(self.peer.uid, Kind::Request);
        let (api, peer) = (Arc::clone(&self.api), self.peer);
        Box::pin(async move {
            let Some(_place) = place else {
                return Err(Throttled(peer.uid));
            };
            let answer = match read(request, peer).await {
                Ok(call) => api.answer(call).await,
                Err(answer) => answer,
            };
            Ok(answer.into_response())
        })
    }
}

/// Reads a request whole.
async fn read(request: Request<Incoming>, peer: Peer) -> Result<Call, Answer> {
    let (parts, body) = request.into_parts();
    let undecodable = || Answer::error(400, "the path is not UTF-8");
    let decode = |text: &str| {
        let decoded = percent_decode_str(text).decode_utf8();
        decoded.map(|text| text.into_owned()).map_err(|_| undecodable())
    };
    let path = parts.uri.path().trim_start_matches('/').split('/');
    let path = path.map(decode).collect::<Result<Vec<_>, _>>()?;
    let mut query = Vec::new();
    for pair in parts
        .uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
    {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        query.push((decode(key)?, decode(&value.replace('+', " "))?));
    }
    let json = parts
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| {
            value
                .split(';')
                .next()
                .unwrap_or_default()
                .trim()
                .eq_ignore_ascii_case("application/json")
        });
    let body = tokio::time::timeout(BODY_TIMEOUT, gather(body))
        .await
        .map_err(|_| Answer::error(408, "the body did not come in time"))??;
    Ok(Call {
        method: parts.method,
        path,
        query,
        json,
        body,
        peer,
    })
}

async fn gather(mut body: Incoming) -> Result<Bytes, Answer> {
    let too_large = || Answer::error(413, "the body is larger than 4 MiB");
    if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
        return Err(too_large());
    }
    let mut gathered = BytesMut::new();
    loop {
        let frame = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
        match frame {
            None => return Ok(gathered.freeze()),
            Some(Err(_)) => return Err(Answer::error(400, "the body broke off")),
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else { continue };
                if gathered.len() + data.len() > BODY_BYTES_MAX {
                    return Err(too_large());
                }
                gathered.extend_from_slice(&data);
            }
        }
    }
}
