//! Log streams as lines, and what a line says of itself.

use holdfast_model::Timestamp;
use serde_json::{Value, json};

use crate::runtime::{LogChunk, LogStream, RuntimeError};

/// Bytes of a line; what is longer is cut into several.
pub(super) const LINE_BYTES_MAX: usize = 64 * 1024;
/// Level of a line that names none: informational.
const LEVEL_DEFAULT: u8 = 6;

/// A line without its end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Line {
    pub(super) stderr: bool,
    pub(super) bytes: Vec<u8>,
}

/// Makes lines of pieces; a line is of one stream, so the two are gathered apart.
#[derive(Default)]
pub(super) struct Lines {
    open: [Vec<u8>; 2],
    ready: std::collections::VecDeque<Line>,
    over: bool,
}

impl Lines {
    /// The next line; `None` at the end.
    pub(super) async fn next(&mut self, stream: &mut dyn LogStream) -> Result<Option<Line>, RuntimeError> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Ok(Some(line));
            }
            if self.over {
                return Ok(None);
            }
            match stream.next().await? {
                Some(chunk) => self.take(&chunk),
                None => self.finish(),
            }
        }
    }

    fn take(&mut self, chunk: &LogChunk) {
        let open = &mut self.open[usize::from(chunk.stderr)];
        for part in chunk.bytes.split_inclusive(|byte| *byte == b'\n') {
            let mut part = part;
            while open.len() + part.len() > LINE_BYTES_MAX {
                let (head, rest) = part.split_at(LINE_BYTES_MAX - open.len());
                open.extend_from_slice(head);
                self.ready.push_back(Line {
                    stderr: chunk.stderr,
                    bytes: std::mem::take(open),
                });
                part = rest;
            }
            open.extend_from_slice(part);
            if open.last() == Some(&b'\n') {
                open.pop();
                if open.last() == Some(&b'\r') {
                    open.pop();
                }
                self.ready.push_back(Line {
                    stderr: chunk.stderr,
                    bytes: std::mem::take(open),
                });
            }
        }
    }

    fn finish(&mut self) {
        self.over = true;
        for (stderr, open) in [(false, 0), (true, 1)] {
            let bytes = std::mem::take(&mut self.open[open]);
            if !bytes.is_empty() {
                self.ready.push_back(Line { stderr, bytes });
            }
        }
    }
}

/// What a line says of itself: an optional time of the engine, an optional `<N>` syslog level, an optional
/// `yyyy-MM-dd HH:mm:ss.fff ±hh:mm`, and text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Parsed<'a> {
    pub(super) time: Option<Timestamp>,
    pub(super) level: u8,
    pub(super) text: &'a str,
    /// The line without the engine's time.
    pub(super) whole: &'a str,
}

/// Takes a line apart. `stamped` says that the engine put its time in front.
pub(super) fn parse(line: &str, stamped: bool) -> Parsed<'_> {
    let mut time = None;
    let mut whole = line;
    if stamped && let Some((first, rest)) = line.split_once(' ') {
        time = engine_time(first);
        if time.is_some() {
            whole = rest;
        }
    }
    let mut text = whole;
    let mut level = LEVEL_DEFAULT;
    if let [b'<', digit @ b'0'..=b'7', b'>', ..] = text.as_bytes() {
        level = digit - b'0';
        text = text[3..].trim_start();
    }
    if let Some((own, rest)) = own_time(text) {
        time = time.or(Some(own));
        text = rest;
    }
    Parsed {
        time,
        level,
        text,
        whole,
    }
}

/// RFC 3339 with nanoseconds.
fn engine_time(text: &str) -> Option<Timestamp> {
    if text.len() < 20 || text.as_bytes().get(10) != Some(&b'T') {
        return None;
    }
    Timestamp::parse(text)
}

/// `2026-11-21 10:00:00.123 +00:00`.
fn own_time(text: &str) -> Option<(Timestamp, &str)> {
    const LEN: usize = "2026-11-21 10:00:00.123 +00:00".len();
    let (head, rest) = (text.get(..LEN)?, text.get(LEN..)?);
    let bytes = head.as_bytes();
    if bytes[10] != b' ' || bytes[23] != b' ' || !matches!(bytes[24], b'+' | b'-') {
        return None;
    }
    let iso = format!("{}T{}{}", &head[..10], &head[11..23], &head[24..]);
    Some((Timestamp::parse(&iso)?, rest.trim_start()))
}

/// A record of the content type `json`.
pub(super) fn record(hub: &str, device: &str, module: &str, line: &Line, parsed: &Parsed<'_>) -> Value {
    json!({
        "iothub": hub,
        "device": device,
        "id": module,
        "stream": if line.stderr { "stderr" } else { "stdout" },
        "loglevel": parsed.level,
        "text": parsed.text,
        "timestamp": parsed.time.map(|time| time.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_time_and_level() {
        let at = |text| Timestamp::parse(text);
        let parsed = parse(
            "2026-11-21T10:00:00.123456789Z <4> 2026-11-21 11:00:00.123 +01:00 Something odd",
            true,
        );
        assert_eq!(parsed.time, at("2026-11-21T10:00:00.123456Z"));
        assert_eq!((parsed.level, parsed.text), (4, "Something odd"));
        assert_eq!(parsed.whole, "<4> 2026-11-21 11:00:00.123 +01:00 Something odd");
        let parsed = parse("<3> 2026-11-21 11:00:00.123 +01:00 [ERR] - x", false);
        assert_eq!(parsed.time, at("2026-11-21T10:00:00.123Z"));
        assert_eq!((parsed.level, parsed.text), (3, "[ERR] - x"));
        for plain in [
            "hello world",
            "<9> x",
            "<",
            "",
            "ä-11-21 11:00:00.123 +01:00 x",
            "2026-11-21T10:00:00Z x",
        ] {
            let parsed = parse(plain, false);
            assert_eq!(
                (parsed.level, parsed.text, parsed.time),
                (6, plain, None),
                "{plain:?}"
            );
        }
    }
}
