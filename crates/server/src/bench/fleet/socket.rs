//! Non-blocking sockets, plain or with TLS, that hold no buffer while nothing is under way.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

/// Connections from one source address before the next one is taken. A port range of Linux holds 28,232 by default, and
/// those of connections that ended lately are not free yet.
const CONNECTIONS_PER_SOURCE: usize = 10_000;

/// Where and how to connect.
#[derive(Clone)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    pub(crate) tls: Option<TlsClient>,
}

/// The TLS side of an [`Endpoint`].
#[derive(Clone)]
pub(crate) struct TlsClient {
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) name: ServerName<'static>,
}

/// One connection.
pub(crate) enum Socket {
    Plain(TcpStream),
    // Boxed: a connection without TLS must not pay for the state of one with it.
    Tls(Box<TlsSocket>),
}

pub(crate) struct TlsSocket {
    stream: TcpStream,
    tls: ClientConnection,
}

impl Socket {
    /// Begins to connect; it is done when the socket becomes writable. `number` chooses the source address on loopback.
    pub(crate) fn connect(endpoint: &Endpoint, number: usize) -> io::Result<Socket> {
        let stream = begin_connect(endpoint.address, number)?;
        let Some(client) = &endpoint.tls else {
            return Ok(Socket::Plain(stream));
        };
        let mut tls = ClientConnection::new(Arc::clone(&client.config), client.name.clone())
            .map_err(io::Error::other)?;
        // Everything handed over is taken at once; what the socket does not take waits inside.
        tls.set_buffer_limit(None);
        Ok(Socket::Tls(Box::new(TlsSocket { stream, tls })))
    }

    fn stream(&self) -> &TcpStream {
        match self {
            Socket::Plain(stream) => stream,
            Socket::Tls(socket) => &socket.stream,
        }
    }

    /// Why connecting failed, once the socket is writable.
    pub(crate) fn connect_error(&self) -> io::Result<()> {
        match self.stream().take_error() {
            Ok(None) => Ok(()),
            Ok(Some(error)) | Err(error) => Err(error),
        }
    }

    /// Reads decrypted bytes; 0 at the end, `WouldBlock` when there are none now.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Plain(stream) => stream.read(buffer),
            Socket::Tls(socket) => socket.read(buffer),
        }
    }

    /// Whether one short read says that the socket is empty.
    pub(crate) const fn short_read_is_empty(&self) -> bool {
        matches!(self, Socket::Plain(_))
    }

    /// Writes what the socket takes and returns how much that was.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Plain(stream) => match stream.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
                result => result,
            },
            Socket::Tls(socket) => {
                socket.tls.writer().write_all(bytes)?;
                socket.flush()?;
                Ok(bytes.len())
            }
        }
    }

    /// Goes on with what TLS still has to write; true when nothing is left.
    pub(crate) fn flush(&mut self) -> io::Result<bool> {
        match self {
            Socket::Plain(_) => Ok(true),
            Socket::Tls(socket) => socket.flush(),
        }
    }

    /// Whether the TLS session was resumed; `None` before that is known, and without TLS.
    pub(crate) fn resumed(&self) -> Option<bool> {
        match self {
            Socket::Plain(_) => None,
            Socket::Tls(socket) => {
                let kind = socket.tls.handshake_kind()?;
                Some(kind == rustls::HandshakeKind::Resumed)
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream().as_fd()
    }
}

impl TlsSocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.tls.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // A peer that closes without close_notify closes all the same.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                result => return result,
            }
            if self.tls.read_tls(&mut self.stream)? == 0 {
                return Ok(0);
            }
            self.tls
                .process_new_packets()
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            // The handshake goes on by writing.
            self.flush()?;
        }
    }

    fn flush(&mut self) -> io::Result<bool> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.stream) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

fn begin_connect(address: SocketAddr, number: usize) -> io::Result<TcpStream> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    if let Some(source) = loopback_source(address, number) {
        rustix::net::bind(&socket, &SocketAddr::new(source.into(), 0))?;
    }
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(TcpStream::from(socket)),
        Err(error) => Err(error.into()),
    }
}

/// All of 127/8 is this machine, so that ports never run out.
fn loopback_source(address: SocketAddr, number: usize) -> Option<Ipv4Addr> {
    let IpAddr::V4(ip) = address.ip() else {
        return None;
    };
    let block = u8::try_from(number / CONNECTIONS_PER_SOURCE % 250).unwrap_or(0);
    (ip.is_loopback() && block > 0).then(|| Ipv4Addr::new(127, 0, 0, block + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_change_with_the_number_on_loopback_only() {
        let local: SocketAddr = "127.0.0.1:1883".parse().unwrap();
        assert_eq!(loopback_source(local, 0), None);
        assert_eq!(loopback_source(local, 9_999), None);
        assert_eq!(loopback_source(local, 10_000), Some(Ipv4Addr::new(127, 0, 0, 2)));
        assert_eq!(loopback_source(local, 25_000), Some(Ipv4Addr::new(127, 0, 0, 3)));
        assert_eq!(loopback_source("10.0.0.1:1883".parse().unwrap(), 25_000), None);
        assert_eq!(loopback_source("[::1]:1883".parse().unwrap(), 25_000), None);
    }
}
