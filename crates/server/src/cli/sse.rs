//! Reader of server-sent events (the `text/event-stream` format of the HTML standard).

use std::io::{BufRead, BufReader, Read};

/// Longest line taken; an event of the hub is one line and at most 256 KiB of payload, escaped.
const LINE_MAX: u64 = 8 << 20;

/// One event.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct SseEvent {
    /// `id`
    pub(crate) id: String,
    /// `event`; empty means message.
    pub(crate) name: String,
    /// `data`, its lines joined.
    pub(crate) data: String,
}

/// Reads events one by one.
pub(crate) struct SseReader<R> {
    input: BufReader<R>,
    line: Vec<u8>,
}

impl<R: Read> SseReader<R> {
    pub(crate) fn new(input: R) -> Self {
        SseReader {
            input: BufReader::with_capacity(64 << 10, input),
            line: Vec::new(),
        }
    }

    /// Whether the next event has not arrived yet, at least not from its start.
    pub(crate) fn is_drained(&self) -> bool {
        self.input.buffer().is_empty()
    }

    /// The next event; `None` at the end of the stream. Comments, which keep the connection alive, are skipped.
    pub(crate) fn next(&mut self) -> std::io::Result<Option<SseEvent>> {
        let mut event = SseEvent::default();
        let mut any_data = false;
        loop {
            self.line.clear();
            let limit = &mut self.input;
            let read = limit.take(LINE_MAX).read_until(b'\n', &mut self.line)?;
            if read == 0 {
                return Ok(None);
            }
            let line = String::from_utf8_lossy(&self.line);
            let line = line.trim_end_matches(['\n', '\r']);
            if line.is_empty() {
                if any_data {
                    return Ok(Some(event));
                }
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "id" => event.id = value.to_owned(),
                "event" => event.name = value.to_owned(),
                "data" => {
                    if any_data {
                        event.data.push('\n');
                    }
                    any_data = true;
                    event.data.push_str(value);
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_events_and_skips_comments() {
        let text = ": hello\n\nid: 0:7\ndata: {\"a\":1}\n\ndata: x\r\ndata: y\r\n\r\nevent: error\ndata: z\n\ndata: cut";
        let mut reader = SseReader::new(text.as_bytes());
        let first = reader.next().unwrap().unwrap();
        assert_eq!((first.id.as_str(), first.data.as_str()), ("0:7", "{\"a\":1}"));
        assert_eq!(reader.next().unwrap().unwrap().data, "x\ny");
        assert_eq!(reader.next().unwrap().unwrap().name, "error");
        assert_eq!(reader.next().unwrap(), None);
    }
}
