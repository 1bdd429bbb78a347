//! HTTP exchanges before a connection turns into something else: a proxy's tunnel, a WebSocket.

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest head of an answer, in bytes.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// RFC 6455, 1.3.
const WEBSOCKET_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Asks a proxy for a tunnel to `authority` (`host:port`).
///
/// # Errors
/// What the proxy answered, or why it did not.
pub(super) async fn tunnel<S>(socket: &mut S, authority: &str, credentials: Option<&str>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n");
    if let Some(credentials) = credentials {
        request.push_str("Proxy-Authorization: Basic ");
        STANDARD.encode_string(credentials, &mut request);
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    socket.write_all(request.as_bytes()).await?;
    socket.flush().await?;
    let head = read_head(socket).await?;
    match status(&head) {
        Some(200..=299) => Ok(()),
        _ => Err(refused("the proxy", &head)),
    }
}

/// Turns a connection into a WebSocket.
///
/// # Errors
/// What the server answered, or why it did not.
pub(super) async fn upgrade<S>(socket: &mut S, host: &str, path: &str, protocol: &str) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut nonce = [0u8; 16];
    getrandom::fill(&mut nonce).map_err(|error| io::Error::other(error.to_string()))?;
    let key = STANDARD.encode(nonce);
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"
    );
    socket.write_all(request.as_bytes()).await?;
    socket.flush().await?;
    let head = read_head(socket).await?;
    let expected = accept(&key);
    let is =
        |name: &str, value: &str| header(&head, name).is_some_and(|found| found.eq_ignore_ascii_case(value));
    let accepted = header(&head, "sec-websocket-accept") == Some(expected.as_str());
    if status(&head) == Some(101)
        && accepted
        && is("upgrade", "websocket")
        && is("sec-websocket-protocol", protocol)
    {
        Ok(())
    } else {
        Err(refused("the server", &head))
    }
}

/// RFC 6455, 4.2.2: what the server must answer to `key`.
fn accept(key: &str) -> String {
    let mut digest = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
    digest.update(key.as_bytes());
    digest.update(WEBSOCKET_GUID);
    STANDARD.encode(digest.finish())
}

/// Reads up to and with the empty line, and nothing behind it: what follows belongs to another protocol.
async fn read_head<S: AsyncRead + Unpin>(socket: &mut S) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == HEAD_BYTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the answer's head is longer than {HEAD_BYTES_MAX} bytes"),
            ));
        }
        // Byte by byte costs nothing here: rustls has the bytes, and a proxy's answer is short.
        head.push(socket.read_u8().await?);
    }
    String::from_utf8(head)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the answer's head is no text"))
}

fn status(head: &str) -> Option<u16> {
    head.strip_prefix("HTTP/1.")?
        .split(' ')
        .nth(1)?
        .trim()
        .parse()
        .ok()
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

fn refused(who: &str, head: &str) -> io::Error {
    let line = head.lines().next().unwrap_or_default();
    io::Error::other(format!("{who} answered {line:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_key_has_the_documented_answer() {
        // RFC 6455, 1.3.
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[tokio::test]
    async fn a_tunnel_is_asked_for_and_what_follows_is_left() {
        let (mut ours, mut theirs) = tokio::io::duplex(4096);
        let proxy = tokio::spawn(async move {
            let asked = read_head(&mut theirs).await.expect("a request");
            theirs
                .write_all(b"HTTP/1.1 200 fine\r\nVia: x\r\n\r\nTLS")
                .await
                .expect("written");
            asked
        });
        tunnel(&mut ours, "hub.test:8883", Some("u:p"))
            .await
            .expect("a tunnel");
        let mut rest = [0; 3];
        ours.read_exact(&mut rest).await.expect("the rest");
        assert_eq!(&rest, b"TLS");
        let asked = proxy.await.expect("ended");
        assert!(asked.starts_with("CONNECT hub.test:8883 HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains("Proxy-Authorization: Basic dTpw\r\n"), "{asked}");
    }

    #[tokio::test]
    async fn a_refusing_and_a_babbling_proxy_fail() {
        let flood = vec![b'x'; HEAD_BYTES_MAX + 1];
        for (answer, text) in [
            (&b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"[..], "407"),
            (&flood[..], "longer"),
            (&b"HTTP/1.1 200"[..], "end of file"),
        ] {
            let (mut ours, mut theirs) = tokio::io::duplex(2 * HEAD_BYTES_MAX);
            theirs.write_all(answer).await.expect("written");
            theirs.shutdown().await.expect("shut");
            let error = tunnel(&mut ours, "h:1", None)
                .await
                .expect_err("refused")
                .to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}
