//! One HTTPS connection, kept alive and used by one thread: as little as a service client can do, so that a round trip is
//! the hub's and not the client library's.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::fleet::{Trust, client_config};
use super::target::{host_and_port, resolve};
use crate::cli::profile::Login;

/// A hub that is silent for so long has failed.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Longest head of an answer.
const HEAD_MAX: usize = 16 << 10;

pub(crate) struct HttpsConnection {
    stream: StreamOwned<ClientConnection, TcpStream>,
    host: String,
    /// Request as written, answer as read; kept for the next ones.
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl HttpsConnection {
    pub(crate) fn open(login: &Login) -> anyhow::Result<Self> {
        let trust = login.ca.as_deref().map_or(Trust::System, Trust::Ca);
        Self::open_with(login, client_config(trust, false)?)
    }

    /// As [`HttpsConnection::open`], with a TLS configuration of the caller's.
    pub(crate) fn open_with(login: &Login, config: Arc<ClientConfig>) -> anyhow::Result<Self> {
        let address = resolve(&host_and_port(&login.host, login.https_port))?;
        let socket = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        let name = ServerName::try_from(login.host.clone()).context("the hub's host name is unusable")?;
        let tls = ClientConnection::new(config, name)?;
        Ok(HttpsConnection {
            stream: StreamOwned::new(tls, socket),
            host: login.host.clone(),
            request: Vec::new(),
            answer: Vec::new(),
        })
    }

    /// POSTs JSON and returns status and body.
    pub(crate) fn post(&mut self, path: &str, token: &str, body: &[u8]) -> anyhow::Result<(u16, &[u8])> {
        self.request("POST", path, token, body)
    }

    /// Sends JSON and returns status and body; without authorization when the token is empty.
    pub(crate) fn request(
        &mut self,
        method: &str,
        path: &str,
        token: &str,
        body: &[u8],
    ) -> anyhow::Result<(u16, &[u8])> {
        self.request.clear();
        write!(
            self.request,
            "{method} {path} HTTP/1.1\r\nhost: {}\r\n",
            self.host
        )?;
        if !token.is_empty() {
            write!(self.request, "authorization: {token}\r\n")?;
        }
        write!(
            self.request,
            "content-type: application/json; charset=utf-8\r\ncontent-length: {}\r\n\r\n",
            body.len()
        )?;
        self.request.extend_from_slice(body);
        self.stream
            .write_all(&self.request)
            .context("the request was not sent")?;
        self.answer.clear();
        let (status, start, end) = self.read_answer()?;
        Ok((status, &self.answer[start..end]))
    }

    fn read_answer(&mut self) -> anyhow::Result<(u16, usize, usize)> {
        loop {
            if let Some(head) = Head::parse(&self.answer)? {
                while self.answer.len() < head.length + head.content_length {
                    self.read_more()?;
                }
                return Ok((head.status, head.length, head.length + head.content_length));
            }
            anyhow::ensure!(self.answer.len() < HEAD_MAX, "the head of the answer is too long");
            self.read_more()?;
        }
    }

    fn read_more(&mut self) -> anyhow::Result<()> {
        let mut chunk = [0u8; 4_096];
        let read = self.stream.read(&mut chunk).context("the answer broke off")?;
        anyhow::ensure!(read > 0, "the hub closed the connection");
        self.answer.extend_from_slice(&chunk[..read]);
        Ok(())
    }
}

/// What matters of the head of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Head {
    status: u16,
    /// Bytes of the head with the empty line.
    length: usize,
    content_length: usize,
}

impl Head {
    /// `None` while the head is not complete.
    fn parse(bytes: &[u8]) -> anyhow::Result<Option<Head>> {
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            return Ok(None);
        };
        let text = std::str::from_utf8(&bytes[..end]).context("the head of the answer is no text")?;
        let mut lines = text.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let status = status.context("the answer is not HTTP")?;
        let mut content_length = None;
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            if name.eq_ignore_ascii_case("content-length") {
                content_length = Some(value.trim().parse().context("the answer has a strange length")?);
            }
        }
        let content_length = match (content_length, status) {
            (Some(length), _) => length,
            (None, 204) => 0,
            (None, _) => anyhow::bail!("the answer (HTTP {status}) does not tell its length"),
        };
        Ok(Some(Head {
            status,
            length: end + 4,
            content_length,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_as_they_come() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-type: x\r\nContent-Length: 5\r\n\r\nhello";
        for cut in 0..answer.len() - 5 {
            assert_eq!(Head::parse(&answer[..cut]).unwrap(), None, "{cut}");
        }
        let head = Head::parse(answer).unwrap().unwrap();
        assert_eq!(
            (head.status, head.content_length, &answer[head.length..]),
            (200, 5, &b"hello"[..])
        );
        assert_eq!(
            Head::parse(b"HTTP/1.1 204 No Content\r\n\r\n")
                .unwrap()
                .unwrap()
                .content_length,
            0
        );
        assert!(Head::parse(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
        assert!(Head::parse(b"nonsense\r\n\r\n").is_err());
    }
}
