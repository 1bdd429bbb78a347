//! Listening sockets and the accept loop that all heads share.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use holdfast_observe::{Event as _, tracing};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::events::{AcceptFailed, AcceptResumed, Metrics};
use crate::lobby::{Guest, Lobby};
use crate::{Shutdown, stopped};

/// Connections the kernel may hold for us while we are busy; it caps the value by `net.core.somaxconn`. Large, because
/// after a restart a whole fleet comes back within seconds.
const BACKLOG: i32 = 8_192;
/// First pause after an accept that failed for want of resources; doubled up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Opens a listening socket: address reuse (a restart does not wait for old connections), a long queue, no delay. Port 0
/// picks a free port. Must be called inside the runtime.
///
/// # Errors
/// What the system says: address in use, no permission for ports below 1024, unknown address.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        // One socket for both families, whatever the system's default.
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// What bounds the connections of a listener.
pub(crate) trait Places {
    /// Held by one connection.
    type Place;

    /// Waits for a place. `None` when there will be none.
    fn take(&self) -> impl Future<Output = Option<Self::Place>> + Send;
}

impl Places for Arc<Semaphore> {
    type Place = OwnedSemaphorePermit;

    async fn take(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(self).acquire_owned().await.ok()
    }
}

impl Places for Arc<Lobby> {
    type Place = Guest;

    async fn take(&self) -> Option<Guest> {
        Some(self.enter().await)
    }
}

/// Accepts until the shutdown; hands each connection to `accepted` with one of the `places`. While there is none, one
/// connection waits here and the others in the kernel's queue.
pub(crate) async fn accept_loop<P: Places>(
    listener: TcpListener,
    mut shutdown: Shutdown,
    metrics: &Metrics,
    places: &P,
    mut accepted: impl FnMut(TcpStream, SocketAddr, P::Place),
) {
    let mut pause = Duration::ZERO;
    loop {
        let next = async {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            // First the connection: nobody yields his place to one that may never come.
            match listener.accept().await {
                Ok(connection) => (Ok(connection), places.take().await),
                Err(error) => (Err(error), None),
            }
        };
        let outcome = tokio::select! {
            biased;
            () = stopped(&mut shutdown) => return,
            outcome = next => outcome,
        };
        match outcome {
            (Ok(_), None) => return,
            (Ok((stream, peer)), Some(place)) => {
                if !pause.is_zero() {
                    AcceptResumed.emit(metrics);
                    pause = Duration::ZERO;
                }
                // Acknowledgements are small and must not wait for more data.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "the connection was gone before it was served");
                    continue;
                }
                accepted(stream, peer, place);
            }
            (Err(error), _) if is_about_one_connection(&error) => {}
            (Err(error), _) => {
                // Out of files or memory: the connection stays in the kernel's queue, so trying again at once would
                // spin. Live sessions go on, and ending ones free what is missing.
                if pause.is_zero() {
                    AcceptFailed { error: &error }.emit(metrics);
                }
                pause = (pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
            }
        }
    }
}

/// The client was gone before it was accepted.
fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}
