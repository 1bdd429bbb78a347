//! The workload API on its unix socket: one request per connection.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use crate::settings::Settings;

const PATIENCE: Duration = Duration::from_secs(30);
const ANSWER_BYTES_MAX: u64 = 1 << 20;
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The certificates that the gateway's is checked against, PEM.
pub(crate) fn trust_bundle(settings: &Settings) -> Result<String> {
    let answer = request(settings, "GET", "/trust-bundle", None)?;
    let bundle = answer["certificate"]
        .as_str()
        .context("the trust bundle is not in the answer")?;
    Ok(bundle.to_owned())
}

/// A shared access signature that is good for `lifetime` from `now` (Unix seconds).
pub(crate) fn token(settings: &Settings, now: u64, lifetime: Duration) -> Result<String> {
    let (device, module) = (
        settings.identity.device_id(),
        settings.identity.module_id().unwrap_or_default(),
    );
    let resource = escape(&format!("{}/devices/{device}/modules/{module}", settings.hub));
    let expiry = now + lifetime.as_secs();
    let path = format!(
        "/modules/{}/genid/{}/sign",
        escape(module),
        escape(&settings.generation)
    );
    let text = format!("{resource}\n{expiry}");
    let body = json!({"keyId": "primary", "algo": "HMACSHA256", "data": STANDARD.encode(text)});
    let answer = request(settings, "POST", &path, Some(&body))?;
    let digest = answer["digest"]
        .as_str()
        .context("the signature is not in the answer")?;
    Ok(format!(
        "SharedAccessSignature sr={resource}&sig={}&se={expiry}",
        escape(digest)
    ))
}

fn escape(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}

fn request(settings: &Settings, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
    let what = format!("{method} {path} on {}", settings.workload);
    let mut stream = UnixStream::connect(&settings.workload).with_context(|| what.clone())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let request = format!(
        "{method} {path}?api-version={} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        settings.api_version,
        body.len()
    );
    stream
        .write_all(request.as_bytes())
        .with_context(|| what.clone())?;
    let mut answer = Vec::new();
    stream
        .take(ANSWER_BYTES_MAX)
        .read_to_end(&mut answer)
        .with_context(|| what.clone())?;
    parse(&answer).with_context(|| what)
}

/// Status line, header lines, then a body that is whole or in chunks.
fn parse(answer: &[u8]) -> Result<Value> {
    let text = std::str::from_utf8(answer).context("the answer is not text")?;
    let (head, body) = text
        .split_once("\r\n\r\n")
        .context("the answer has no end of its head")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    let chunked = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .any(|(name, value)| name.eq_ignore_ascii_case("transfer-encoding") && value.trim() == "chunked");
    let body = if chunked {
        join_chunks(body)?
    } else {
        body.to_owned()
    };
    if !status.starts_with('2') {
        bail!("status {status}: {}", body.trim());
    }
    serde_json::from_str(&body).context("the answer is not JSON")
}

fn join_chunks(mut rest: &str) -> Result<String> {
    let mut whole = String::new();
    loop {
        let (length, after) = rest.split_once("\r\n").context("a chunk has no length")?;
        let length = usize::from_str_radix(length.split(';').next().unwrap_or_default().trim(), 16)
            .context("a chunk's length is no number")?;
        if length == 0 {
            return Ok(whole);
        }
        let chunk = after.get(..length).context("a chunk is cut off")?;
        whole.push_str(chunk);
        rest = after.get(length + 2..).context("a chunk has no end")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_whole_and_in_chunks() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{\"digest\":1}";
        assert_eq!(parse(whole).unwrap()["digest"], 1);
        let chunks =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"a\":\r\n2;x\r\n2}\r\n0\r\n\r\n";
        assert_eq!(parse(chunks).unwrap()["a"], 2);
    }

    #[test]
    fn refusals_and_garbage() {
        let refused = b"HTTP/1.1 403 Forbidden\r\n\r\n{\"message\":\"forbidden\"}";
        assert!(parse(refused).unwrap_err().to_string().contains("403"));
        for wrong in [
            &b""[..],
            b"HTTP/1.1 200 OK\r\n\r\n<html>",
            b"\xff",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nabc",
        ] {
            assert!(parse(wrong).is_err());
        }
    }
}
