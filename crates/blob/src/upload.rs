//! Writing: Put Blob, Put Block, Put Block List.

use axum::body::{Body, BodyDataStream};
use axum::http::Response;
use base64::Engine as _;
use futures_util::StreamExt as _;
use tokio::io::AsyncWriteExt as _;

use crate::checksum::{Announced, Sums};
use crate::conditions;
use crate::error::BlobError;
use crate::service::{BLOCK_BYTES_MAX, Call, PUT_BYTES_MAX, Reply, blocking, reply, set, written};
use crate::store::{Blob, Part};
use crate::structured::{self, Structured};
use crate::xml;

const FORM: &str = structured::HEADER;
const CONTENT_LENGTH: &str = structured::LENGTH_HEADER;

/// How much of a body that there is no room for is still taken: as much as clients send at once by default.
const DISCARDED_BYTES_MAX: usize = 64 << 20;

/// How the content lies in the body.
enum Frames {
    Plain { left: u64 },
    Structured(Structured),
}

impl Frames {
    /// The next piece of content.
    fn next<'b>(&mut self, bytes: &mut &'b [u8], length: u64) -> Result<Option<&'b [u8]>, BlobError> {
        match self {
            Frames::Structured(structured) => structured.next(bytes),
            Frames::Plain { left } => {
                let piece = std::mem::take(bytes);
                *left = left
                    .checked_sub(piece.len() as u64)
                    .ok_or_else(|| BlobError::too_large(length))?;
                Ok((!piece.is_empty()).then_some(piece))
            }
        }
    }

    fn is_done(&mut self) -> Result<bool, BlobError> {
        match self {
            Frames::Plain { left } => Ok(*left == 0),
            Frames::Structured(structured) => {
                // Stages that need no bytes.
                structured.next(&mut &[][..])?;
                Ok(structured.is_done())
            }
        }
    }
}

/// A part that has come whole, and checksums for the answer.
struct Received {
    part: Part,
    sums: Vec<(&'static str, String)>,
}

fn incomplete() -> BlobError {
    BlobError::new(400, "IncompleteBody", "The body ended before its Content-Length.")
}

impl Call {
    /// Content length and frames of the body.
    fn frames(&self, limit: u64) -> Result<(u64, Frames), BlobError> {
        let Some(form) = self.header(FORM) else {
            let length = self.length(limit)?;
            return Ok((length, Frames::Plain { left: length }));
        };
        if !form.eq_ignore_ascii_case(structured::FORM) {
            return Err(BlobError::header(FORM));
        }
        let content: u64 = self
            .header(CONTENT_LENGTH)
            .and_then(|length| length.parse().ok())
            .ok_or_else(|| BlobError::header(CONTENT_LENGTH))?;
        if content > limit {
            return Err(BlobError::too_large(limit));
        }
        let length = self.length(content + structured::OVERHEAD_BYTES_MAX)?;
        Ok((content, Frames::Structured(Structured::new(length, content))))
    }

    /// Writes the content of the body to a new part, checks it and syncs it. `md5`: tell its MD5 in any case.
    async fn receive(&self, body: Body, limit: u64, md5: bool) -> Result<Received, BlobError> {
        let mut sums = Sums::new(Announced::read(&self.head.headers)?, md5);
        let (length, mut frames) = self.frames(limit)?;
        let begun = blocking(&self.service.store, move |store| store.begin(length)).await;
        let (mut part, file) = match begun {
            Ok(begun) => begun,
            Err(error) => {
                discard(body).await;
                return Err(error);
            }
        };
        let mut file = tokio::fs::File::from_std(file);
        let mut stream: BodyDataStream = body.into_data_stream();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|_| incomplete())?;
            let mut rest = &chunk[..];
            while let Some(piece) = frames.next(&mut rest, length)? {
                sums.update(piece);
                file.write_all(piece).await?;
            }
        }
        if !frames.is_done()? {
            return Err(incomplete());
        }
        let mut sums = sums.finish()?;
        if let Frames::Structured(_) = frames {
            sums.push((FORM, structured::FORM.to_owned()));
        }
        file.flush().await?;
        let file = file.into_std().await;
        let part = blocking(&self.service.store, move |store| {
            store.seal(&mut part, &file, length)?;
            Ok(part)
        });
        Ok(Received {
            part: part.await?,
            sums,
        })
    }

    fn need_write(&self) -> Result<(), BlobError> {
        self.access.need("wc")
    }

    /// Conditions, and that a signature which only creates does not replace.
    fn check_write(&self, old: Option<&Blob>) -> Result<(), BlobError> {
        if old.is_some() {
            self.access.need("w")?;
        }
        conditions::check(&self.head.headers, old, false)
    }

    pub(crate) async fn put_blob(self, body: Body) -> Reply {
        self.need_write()?;
        if self.header("x-ms-copy-source").is_some() || self.header("x-ms-blob-type") != Some("BlockBlob") {
            let message = "Only block blobs can be written (x-ms-blob-type: BlockBlob), and not copied.";
            return Err(BlobError::new(400, "InvalidHeaderValue", message));
        }
        let (mut properties, metadata) = (self.properties(true), self.metadata()?);
        // Before the body is read: nobody uploads into a container that is not there.
        let container = self.container.clone();
        blocking(&self.service.store, move |store| store.container(&container)).await?;
        let Received { part, sums } = self.receive(body, PUT_BYTES_MAX, true).await?;
        let told = properties.iter().any(|(name, _)| name == "Content-MD5");
        if let Some((_, md5)) = sums.iter().find(|(name, _)| *name == "content-md5" && !told) {
            properties.push(("Content-MD5".to_owned(), md5.clone()));
        }
        let store = self.service.store.clone();
        let blob = blocking(&store, move |store| {
            let check = |old: Option<&Blob>| self.check_write(old);
            store.put(self.target(), part, (&properties, &metadata), check)
        })
        .await?;
        Ok(with_sums(written(201, &blob), sums))
    }

    pub(crate) async fn put_block(self, body: Body) -> Reply {
        self.need_write()?;
        let id = self.parameter("blockid").to_owned();
        let decoded = base64::engine::general_purpose::STANDARD.decode(&id);
        if !decoded.is_ok_and(|bytes| (1..=64).contains(&bytes.len())) {
            return Err(BlobError::query("blockid"));
        }
        let container = self.container.clone();
        blocking(&self.service.store, move |store| store.container(&container)).await?;
        let Received { part, sums } = self.receive(body, BLOCK_BYTES_MAX, false).await?;
        let store = self.service.store.clone();
        blocking(&store, move |store| store.stage(self.target(), &id, part)).await?;
        Ok(with_sums(
            reply(201, &[("x-ms-request-server-encrypted", "false")]),
            sums,
        ))
    }

    pub(crate) async fn put_block_list(self, body: Body) -> Reply {
        self.need_write()?;
        let (properties, metadata) = (self.properties(false), self.metadata()?);
        let mut sums = Sums::new(Announced::read(&self.head.headers)?, false);
        if self.header(FORM).is_some() {
            return Err(BlobError::header(FORM));
        }
        let length = self.length(xml::BLOCK_LIST_BYTES_MAX)?;
        let limit = usize::try_from(length).unwrap_or(usize::MAX);
        let text = axum::body::to_bytes(body, limit)
            .await
            .map_err(|_| BlobError::new(400, "IncompleteBody", "The body could not be read."))?;
        sums.update(&text);
        let sums = sums.finish()?;
        let text = std::str::from_utf8(&text)
            .map_err(|_| BlobError::new(400, "InvalidXmlDocument", "The body is not UTF-8."))?;
        let list = xml::parse_block_list(text)?;
        let store = self.service.store.clone();
        let blob = blocking(&store, move |store| {
            let check = |old: Option<&Blob>| self.check_write(old);
            store.commit(self.target(), &list, (&properties, &metadata), check)
        })
        .await?;
        Ok(with_sums(written(201, &blob), sums))
    }
}

/// Takes a body that there is no room for off the connection: most clients listen only when they have sent everything,
/// and would not learn why otherwise.
async fn discard(body: Body) {
    let mut stream: BodyDataStream = body.into_data_stream();
    let mut received = 0;
    while let Some(Ok(chunk)) = stream.next().await {
        received += chunk.len();
        if received > DISCARDED_BYTES_MAX {
            return;
        }
    }
}

/// Adds checksums of the body to an answer.
fn with_sums(mut response: Response<Body>, sums: Vec<(&'static str, String)>) -> Response<Body> {
    for (name, sum) in sums {
        set(response.headers_mut(), name, &sum);
    }
    response
}
