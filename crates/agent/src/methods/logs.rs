//! Logs of modules, filtered and put into the form that was asked for.

use std::collections::VecDeque;
use std::io::Write as _;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::lines::{Line, Lines, parse, record};
use super::request::{Filter, Form};
use super::{MethodError, RESPONSE_BYTES_MAX};
use crate::host::Host;
use crate::runtime::{LogQuery, LogStream, ModuleRuntime, RuntimeError};

/// Bytes of lines that are held back because the last `tail` lines are wanted after filtering.
const HELD_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Where the log of a module comes from, and the names that its records carry.
pub(super) struct Source {
    pub(super) runtime: Arc<dyn ModuleRuntime>,
    pub(super) host: Arc<dyn Host>,
    pub(super) hub: String,
    pub(super) device: String,
    pub(super) module: String,
}

/// Lines of a log that pass a filter, one after the other.
pub(super) struct Reader<'a> {
    source: &'a Source,
    filter: &'a Filter,
    json: bool,
    stream: Box<dyn LogStream>,
    lines: Lines,
    /// Lines that passed, when only the last are wanted.
    held: Option<VecDeque<Vec<u8>>>,
}

impl<'a> Reader<'a> {
    /// `None`: the daemon keeps no log of its own.
    pub(super) async fn open(
        source: &'a Source,
        filter: &'a Filter,
        json: bool,
    ) -> Result<Option<Self>, RuntimeError> {
        let query = LogQuery {
            tail: filter.tail,
            since: filter.since,
            until: filter.until,
            follow: false,
            timestamps: json,
        };
        let stream = source.open(&query).await?;
        Ok(stream.map(|stream| Reader {
            source,
            filter,
            json,
            stream,
            lines: Lines::default(),
            held: None,
        }))
    }

    /// The next line in its form, with a line end for text; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>, RuntimeError> {
        let filters = self.filter.regex.is_some() || self.filter.loglevel.is_some();
        let Some(tail) = self.filter.tail.filter(|_| filters) else {
            return self.pass().await;
        };
        // The engine has given the last lines already; of those that pass there are no more than that.
        if self.held.is_none() {
            let mut held = VecDeque::new();
            let mut bytes = 0;
            while let Some(line) = self.pass().await? {
                bytes += line.len();
                held.push_back(line);
                while held.len() as u64 > tail || bytes > HELD_BYTES_MAX {
                    bytes -= held.pop_front().map_or(0, |line| line.len());
                }
            }
            self.held = Some(held);
        }
        Ok(self.held.as_mut().and_then(VecDeque::pop_front))
    }

    async fn pass(&mut self) -> Result<Option<Vec<u8>>, RuntimeError> {
        while let Some(line) = self.lines.next(&mut *self.stream).await? {
            if let Some(formed) = self.form(&line) {
                return Ok(Some(formed));
            }
        }
        Ok(None)
    }

    fn form(&self, line: &Line) -> Option<Vec<u8>> {
        let text = String::from_utf8_lossy(&line.bytes);
        let parsed = parse(&text, self.json);
        if self.filter.loglevel.is_some_and(|level| parsed.level > level) {
            return None;
        }
        if let Some(regex) = &self.filter.regex
            && !regex.is_match(parsed.whole)
        {
            return None;
        }
        Some(if self.json {
            let source = self.source;
            record(&source.hub, &source.device, &source.module, line, &parsed)
                .to_string()
                .into_bytes()
        } else {
            let mut bytes = parsed.whole.as_bytes().to_vec();
            bytes.push(b'\n');
            bytes
        })
    }
}

/// Joins records to an array, or lines to a text.
#[derive(Default)]
pub(super) struct Joiner {
    begun: bool,
}

impl Joiner {
    pub(super) fn before(&mut self, json: bool) -> &'static [u8] {
        match (json, std::mem::replace(&mut self.begun, true)) {
            (false, _) => b"",
            (true, false) => b"[",
            (true, true) => b",",
        }
    }

    pub(super) const fn end(&self, json: bool) -> &'static [u8] {
        match (json, self.begun) {
            (false, _) => b"",
            (true, false) => b"[]",
            (true, true) => b"]",
        }
    }
}

/// Bytes in memory, compressed or not, up to a bound.
enum Sink {
    Plain(Vec<u8>),
    Gzip(Box<GzEncoder<Vec<u8>>>),
}

impl Sink {
    fn write(&mut self, bytes: &[u8]) -> usize {
        match self {
            Sink::Plain(sink) => {
                sink.extend_from_slice(bytes);
                sink.len()
            }
            Sink::Gzip(sink) => {
                // Writing to memory does not fail.
                let _ = sink.write_all(bytes);
                sink.get_ref().len()
            }
        }
    }

    fn finish(self) -> Vec<u8> {
        match self {
            Sink::Plain(sink) => sink,
            Sink::Gzip(sink) => sink.finish().unwrap_or_default(),
        }
    }
}

/// The whole log of a module for a response; `None` when the daemon keeps no log of its own.
pub(super) async fn collect(
    source: &Source,
    filter: &Filter,
    form: Form,
    left: &mut usize,
) -> Result<Option<Vec<u8>>, MethodError> {
    let failed = |error: RuntimeError| {
        MethodError::failed(format!("the log of {} cannot be read: {error}", source.module))
    };
    let too_large = || {
        MethodError::argument(format!(
            "the logs are larger than {RESPONSE_BYTES_MAX} bytes; ask for less with tail, since or a regex, or use UploadModuleLogs"
        ))
    };
    let Some(mut reader) = Reader::open(source, filter, form.json).await.map_err(failed)? else {
        return Ok(None);
    };
    let mut sink = if form.gzip {
        Sink::Gzip(Box::new(GzEncoder::new(Vec::new(), Compression::default())))
    } else {
        Sink::Plain(Vec::new())
    };
    let mut joiner = Joiner::default();
    while let Some(line) = reader.next().await.map_err(failed)? {
        sink.write(joiner.before(form.json));
        if sink.write(&line) > *left {
            return Err(too_large());
        }
    }
    sink.write(joiner.end(form.json));
    let bytes = sink.finish();
    *left = left.checked_sub(bytes.len()).ok_or_else(too_large)?;
    Ok(Some(bytes))
}
