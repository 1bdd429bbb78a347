//! Uploads to a blob container by its SAS address: logs and support bundles (edge.md section 5).
//!
//! Text goes to an append blob as it is read, in parts of at most 100 lines or 10 s, each its own gzip member if compressed;
//! where the store has no append blobs, the parts are blocks. JSON and files go to a block blob. Memory is bounded by one part.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use holdfast_model::Timestamp;

use super::logs::{Joiner, Reader, Source};
use super::request::{Filter, Form};
use super::{BLOCK_BYTES_MAX, MethodError, Place};
use crate::host::{Host, Put, UploadError};

/// Lines of a part.
const LINES_MAX: usize = 100;
/// Age of a part.
const PART_AGE: Duration = Duration::from_secs(10);
/// Bytes of a part before compression; two lines of the longest kind fit into a block besides.
const PART_BYTES_MAX: usize = BLOCK_BYTES_MAX / 2;
/// Attempts after the first.
const RETRIES: u32 = 2;
const RETRY_PAUSE: Duration = Duration::from_secs(5);
const STORAGE_VERSION: &str = "2019-12-12";

/// Where blobs go.
#[derive(Clone)]
pub(super) struct Target {
    /// Address of the container, without query.
    container: String,
    /// The SAS.
    query: String,
    prefix: String,
    stamp: String,
}

impl Target {
    /// Takes a container's SAS address apart; `$upstream:<port>` may stand for the parent.
    pub(super) fn read(url: &str, place: &Place, now: Timestamp) -> Result<Self, MethodError> {
        let bad = |problem: &str| MethodError::argument(format!("sasUrl {problem}"));
        let (address, query) = url
            .split_once('?')
            .filter(|(_, query)| !query.is_empty())
            .ok_or_else(|| bad("has no shared access signature"))?;
        let (scheme, rest) = address
            .split_once("://")
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("https") || scheme.eq_ignore_ascii_case("http"))
            .ok_or_else(|| bad("is not an https address"))?;
        let rest = match (rest.strip_prefix("$upstream"), &place.parent) {
            (Some(rest), Some(parent)) => format!("{parent}{rest}"),
            (Some(_), None) => return Err(bad("says $upstream, but this device has no parent")),
            (None, _) => rest.to_owned(),
        };
        let rest = rest.trim_end_matches('/');
        if !rest.contains('/') || rest.contains(char::is_whitespace) {
            return Err(bad("does not name a container"));
        }
        Ok(Target {
            container: format!("{scheme}://{rest}"),
            query: query.to_owned(),
            prefix: format!("{}/{}", place.hub, place.device),
            stamp: stamp(now),
        })
    }

    fn blob(&self, name: &str, suffix: &str) -> Blob {
        Blob {
            url: format!("{}/{}/{name}-{}{suffix}", self.container, self.prefix, self.stamp),
            query: self.query.clone(),
        }
    }
}

/// `yyyy-MM-dd--HH-mm-ss`.
fn stamp(now: Timestamp) -> String {
    let text = Timestamp::from_seconds(now.as_seconds()).to_string();
    text.trim_end_matches('Z').replace('T', "--").replace(':', "-")
}

/// A blob that is being written.
struct Blob {
    url: String,
    query: String,
}

impl Blob {
    async fn put(
        &self,
        host: &dyn Host,
        operation: &str,
        headers: Vec<(&'static str, String)>,
        body: Bytes,
    ) -> Result<(), String> {
        let put = self.try_put(host, operation, headers, body).await;
        put.map_err(|error| format!("{}: {}", self.url, error.message))
    }

    async fn try_put(
        &self,
        host: &dyn Host,
        operation: &str,
        headers: Vec<(&'static str, String)>,
        body: Bytes,
    ) -> Result<(), UploadError> {
        let mut headers = headers;
        headers.push(("x-ms-version", STORAGE_VERSION.to_owned()));
        let put = Put {
            url: format!("{}?{operation}{}", self.url, self.query),
            headers,
            body,
        };
        let mut attempt = 0;
        loop {
            match host.put(&put).await {
                Ok(()) => return Ok(()),
                Err(error) if error.transient && attempt < RETRIES => {
                    attempt += 1;
                    tokio::time::sleep(RETRY_PAUSE * attempt).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn content(form: Form) -> Vec<(&'static str, String)> {
    let kind = if form.json {
        "application/json"
    } else {
        "text/plain"
    };
    let mut headers = vec![("x-ms-blob-content-type", kind.to_owned())];
    if form.gzip {
        headers.push(("x-ms-blob-content-encoding", "gzip".to_owned()));
    }
    headers
}

/// Uploads the log of a module; nothing when the daemon keeps no log of its own.
pub(super) async fn logs(
    host: &dyn Host,
    source: &Source,
    filter: &Filter,
    form: Form,
    target: &Target,
) -> Result<(), String> {
    let suffix = match (form.json, form.gzip) {
        (false, false) => ".log",
        (true, false) => ".json",
        (false, true) => ".log.gz",
        (true, true) => ".json.gz",
    };
    let failed = |error| format!("the log of {} cannot be read: {error}", source.module);
    let Some(mut reader) = Reader::open(source, filter, form.json).await.map_err(failed)? else {
        return Ok(());
    };
    let blob = target.blob(&source.module, suffix);
    let mut writer = Writer::begin(host, &blob, form).await?;
    let mut joiner = Joiner::default();
    while let Some(line) = reader.next().await.map_err(failed)? {
        writer.write(joiner.before(form.json), &line).await?;
    }
    writer.finish(joiner.end(form.json)).await
}

/// Writes parts of a log.
struct Writer<'a> {
    host: &'a dyn Host,
    blob: &'a Blob,
    form: Form,
    /// An append blob is written; else a block blob.
    append: bool,
    part: Vec<u8>,
    lines: usize,
    since: tokio::time::Instant,
    blocks: Blocks,
}

impl<'a> Writer<'a> {
    async fn begin(host: &'a dyn Host, blob: &'a Blob, form: Form) -> Result<Self, String> {
        let mut append = !form.json;
        if append {
            let mut headers = content(form);
            headers.push(("x-ms-blob-type", "AppendBlob".to_owned()));
            match blob.try_put(host, "", headers, Bytes::new()).await {
                Ok(()) => {}
                // Stores that know only block blobs, as the hub's own, get one. Whatever else is wrong, the first block
                // is refused for it too.
                Err(error) if !error.transient => append = false,
                Err(error) => return Err(format!("{}: {}", blob.url, error.message)),
            }
        }
        Ok(Writer {
            host,
            blob,
            form,
            append,
            part: Vec::new(),
            lines: 0,
            since: tokio::time::Instant::now(),
            blocks: Blocks::default(),
        })
    }

    async fn write(&mut self, before: &[u8], line: &[u8]) -> Result<(), String> {
        if self.lines == 0 {
            self.since = tokio::time::Instant::now();
        }
        self.part.extend_from_slice(before);
        self.part.extend_from_slice(line);
        self.lines += 1;
        let full = self.part.len() >= PART_BYTES_MAX;
        let complete = self.lines >= LINES_MAX || self.since.elapsed() >= PART_AGE;
        if full || (complete && !self.form.json) {
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), String> {
        if self.part.is_empty() {
            return Ok(());
        }
        self.lines = 0;
        let part = std::mem::take(&mut self.part);
        let bytes = if self.form.gzip { compress(&part)? } else { part };
        if !self.append {
            return self.blocks.put(self.host, self.blob, bytes.into()).await;
        }
        self.blob
            .put(self.host, "comp=appendblock&", Vec::new(), bytes.into())
            .await
    }

    async fn finish(mut self, end: &[u8]) -> Result<(), String> {
        self.part.extend_from_slice(end);
        self.flush().await?;
        if !self.append {
            self.blocks
                .commit(self.host, self.blob, content(self.form))
                .await?;
        }
        Ok(())
    }
}

/// One gzip member; members one after the other are a gzip file.
fn compress(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder
        .write_all(bytes)
        .and_then(|()| encoder.finish())
        .map_err(|error| error.to_string())
}

/// Blocks of a block blob that wait to be committed.
#[derive(Default)]
struct Blocks {
    count: u32,
}

impl Blocks {
    fn id(number: u32) -> String {
        STANDARD.encode(format!("{number:08}"))
    }

    async fn put(&mut self, host: &dyn Host, blob: &Blob, bytes: Bytes) -> Result<(), String> {
        let id = Self::id(self.count)
            .replace('+', "%2B")
            .replace('/', "%2F")
            .replace('=', "%3D");
        self.count += 1;
        blob.put(host, &format!("comp=block&blockid={id}&"), Vec::new(), bytes)
            .await
    }

    async fn commit(
        &self,
        host: &dyn Host,
        blob: &Blob,
        mut headers: Vec<(&'static str, String)>,
    ) -> Result<(), String> {
        let mut list = String::from("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>");
        for number in 0..self.count {
            list.push_str("<Latest>");
            list.push_str(&Self::id(number));
            list.push_str("</Latest>");
        }
        list.push_str("</BlockList>");
        headers.push(("content-type", "application/xml".to_owned()));
        blob.put(host, "comp=blocklist&", headers, list.into()).await
    }
}

/// Uploads a support bundle.
pub(super) async fn file(host: &dyn Host, path: &Path, target: &Target) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("the support bundle cannot be read: {error}");
    let blob = target.blob("support-bundle", ".zip");
    let mut blocks = Blocks::default();
    let mut file = std::fs::File::open(path).map_err(failed)?;
    loop {
        let read = tokio::task::spawn_blocking(move || {
            let mut block = Vec::new();
            let result = (&mut file).take(BLOCK_BYTES_MAX as u64).read_to_end(&mut block);
            (file, result.map(|_| block))
        });
        let (back, block) = read.await.map_err(|error| error.to_string())?;
        file = back;
        let block = block.map_err(failed)?;
        if block.is_empty() {
            break;
        }
        blocks.put(host, &blob, block.into()).await?;
    }
    let headers = vec![("x-ms-blob-content-type", "application/zip".to_owned())];
    blocks.commit(host, &blob, headers).await
}
