//! What carries a head's bytes: TCP, TLS, or the binary frames of a WebSocket over either.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::tls::TlsStream;
use crate::websocket::FrameStream;

/// A plain or encrypted connection.
///
/// TLS is boxed so that the task of a plain connection stays small; the enum itself costs no more than its TCP stream.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    Tls(Box<TlsStream>),
}

impl Socket {
    /// The client's certificate chain, leaf first; empty without one.
    pub(crate) fn peer_certificates(&self) -> Vec<Bytes> {
        match self {
            Socket::Tcp(_) => Vec::new(),
            Socket::Tls(tls) => tls.peer_certificates(),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(tcp) => Pin::new(tcp).poll_read(context, buffer),
            Socket::Tls(tls) => Pin::new(&mut **tls).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Tcp(tcp) => Pin::new(tcp).poll_write(context, data),
            Socket::Tls(tls) => Pin::new(&mut **tls).poll_write(context, data),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(tcp) => Pin::new(tcp).poll_flush(context),
            Socket::Tls(tls) => Pin::new(&mut **tls).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(tcp) => Pin::new(tcp).poll_shutdown(context),
            Socket::Tls(tls) => Pin::new(&mut **tls).poll_shutdown(context),
        }
    }
}

/// A byte stream of MQTT packets.
#[derive(Debug)]
pub(crate) enum Transport {
    Tcp(TcpStream),
    Tls(Box<TlsStream>),
    WebSocket(Box<FrameStream<Socket>>),
}

impl From<Socket> for Transport {
    fn from(socket: Socket) -> Self {
        match socket {
            Socket::Tcp(tcp) => Transport::Tcp(tcp),
            Socket::Tls(tls) => Transport::Tls(tls),
        }
    }
}

impl Transport {
    /// Reads into `buffer`; nothing filled means the end of the stream.
    pub(crate) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self {
            Transport::Tcp(tcp) => Pin::new(tcp).poll_read(context, buffer),
            Transport::Tls(tls) => Pin::new(&mut **tls).poll_read(context, buffer),
            Transport::WebSocket(frames) => Pin::new(&mut **frames).poll_read(context, buffer),
        }
    }

    /// Takes some of `data`. What a layer above TCP has taken but not sent leaves with later writes or
    /// [`Transport::poll_flush`].
    pub(crate) fn poll_write(&mut self, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Transport::Tcp(tcp) => Pin::new(tcp).poll_write(context, data),
            Transport::Tls(tls) => Pin::new(&mut **tls).poll_write(context, data),
            Transport::WebSocket(frames) => Pin::new(&mut **frames).poll_write(context, data),
        }
    }

    pub(crate) fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Transport::Tcp(_) => Poll::Ready(Ok(())),
            Transport::Tls(tls) => Pin::new(&mut **tls).poll_flush(context),
            Transport::WebSocket(frames) => Pin::new(&mut **frames).poll_flush(context),
        }
    }

    pub(crate) fn poll_shutdown(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Transport::Tcp(tcp) => Pin::new(tcp).poll_shutdown(context),
            Transport::Tls(tls) => Pin::new(&mut **tls).poll_shutdown(context),
            Transport::WebSocket(frames) => Pin::new(&mut **frames).poll_shutdown(context),
        }
    }
}
