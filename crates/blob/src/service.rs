//! The REST API as a router.
//!
//! Bodies are streamed: a request holds one chunk of the connection at a time, except a block list, which is bounded.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use holdfast_model::Timestamp;
use percent_encoding::percent_decode_str;

use crate::checksum::md5_of;
use crate::conditions;
use crate::download::{parse_range, stream};
use crate::error::BlobError;
use crate::signature::{Access, Account, Signed, http_date, parameter, parse_query};
use crate::store::{Blob, BlobStore, Container, Entry, Headers, LIST_MAX, Target};
use crate::structured;
use crate::xml;

/// Largest body of Put Blob.
pub const PUT_BYTES_MAX: u64 = 5_000 << 20;
/// Largest body of Put Block.
pub const BLOCK_BYTES_MAX: u64 = 4_000 << 20;
/// Largest metadata, names and values together.
pub const METADATA_BYTES_MAX: usize = 8 * 1024;
/// Longest range whose MD5 a client may ask for.
pub const RANGE_MD5_BYTES_MAX: u64 = 4 << 20;
/// Version named in answers to requests that name none.
const DEFAULT_VERSION: &str = "2021-08-06";

pub(crate) type Reply = Result<Response<Body>, BlobError>;

/// What the service needs.
#[derive(Clone)]
pub struct BlobService {
    /// Where everything is kept.
    pub store: BlobStore,
    /// The account.
    pub account: Account,
    /// Time.
    pub now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// Whether the listener speaks TLS, for signatures with `spr=https`.
    pub tls: bool,
}

impl std::fmt::Debug for BlobService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobService")
            .field("account", &self.account)
            .finish_non_exhaustive()
    }
}

/// The REST API.
pub fn router(service: BlobService) -> Router {
    Router::new().fallback(answer).with_state(service)
}

/// A request that was proven.
pub(crate) struct Call {
    pub(crate) service: BlobService,
    pub(crate) head: Parts,
    query: Vec<(String, String)>,
    pub(crate) container: String,
    pub(crate) blob: String,
    pub(crate) access: Access,
    pub(crate) now: Timestamp,
}

async fn answer(State(service): State<BlobService>, request: Request) -> Response<Body> {
    let (head, body) = request.into_parts();
    let echoed: Vec<(&str, Option<HeaderValue>)> = ["x-ms-version", "x-ms-client-request-id"]
        .map(|name| (name, head.headers.get(name).cloned()))
        .into();
    let is_head = head.method == "HEAD";
    let mut response = match perform(service, head, body).await {
        Ok(response) => response,
        Err(error) => failure(&error, is_head),
    };
    let out = response.headers_mut();
    for (name, value) in echoed {
        let value = value.or((name == "x-ms-version").then(|| HeaderValue::from_static(DEFAULT_VERSION)));
        if let Some(value) = value {
            out.insert(HeaderName::from_static(name), value);
        }
    }
    let mut id = [0; 16];
    let _ = getrandom::fill(&mut id);
    set(
        out,
        "x-ms-request-id",
        &format!("{:032x}", u128::from_ne_bytes(id)),
    );
    response
}

fn failure(error: &BlobError, is_head: bool) -> Response<Body> {
    let mut text = xml::document();
    text.push_str("<Error>");
    xml::element("Code", error.code, &mut text);
    xml::element("Message", &error.message, &mut text);
    text.push_str("</Error>");
    let bare = is_head || error.status == 304;
    let mut response = Response::new(if bare { Body::empty() } else { Body::from(text) });
    *response.status_mut() = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    set(response.headers_mut(), "x-ms-error-code", error.code);
    if !bare {
        set(response.headers_mut(), "content-type", "application/xml");
    }
    response
}

/// Container and blob of a path, decoded.
fn resource(path: &str, account: &str) -> Result<(String, String), BlobError> {
    let bad = || BlobError::new(400, "InvalidUri", "The path is not UTF-8.");
    let mut rest = path.trim_start_matches('/');
    if let Some(inner) = rest.strip_prefix(account)
        && (inner.is_empty() || inner.starts_with('/'))
    {
        rest = inner.trim_start_matches('/');
    }
    let (container, blob) = rest.split_once('/').unwrap_or((rest, ""));
    let decode = |text| {
        percent_decode_str(text)
            .decode_utf8()
            .map(|text| text.into_owned())
            .map_err(|_| bad())
    };
    let (container, blob) = (decode(container)?, decode(blob)?);
    let dashes = container.starts_with('-') || container.ends_with('-') || container.contains("--");
    let plain = container
        .chars()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if !container.is_empty() && (!plain || dashes || !(3..=63).contains(&container.len())) {
        let message = "The specified resource name contains invalid characters or has a wrong length.";
        return Err(BlobError::new(400, "InvalidResourceName", message));
    }
    if blob.chars().count() > 1_024 || blob.contains('\0') {
        let message = "The name of a blob has at most 1,024 characters.";
        return Err(BlobError::new(400, "InvalidResourceName", message));
    }
    Ok((container, blob))
}

async fn perform(service: BlobService, head: Parts, body: Body) -> Reply {
    let now = (service.now)();
    let query = parse_query(head.uri.query().unwrap_or_default());
    let (container, blob) = resource(head.uri.path(), service.account.name())?;
    let signed = Signed {
        method: head.method.as_str(),
        path: head.uri.path(),
        query: &query,
        headers: &head.headers,
        container: &container,
        blob: &blob,
    };
    let access = service.account.check(&signed, service.tls, now)?;
    let call = Call {
        service,
        head,
        query,
        container,
        blob,
        access,
        now,
    };
    if let Access::Sas { id: Some(id), .. } = &call.access {
        let id = id.clone();
        if blocking(&call.service.store, move |store| store.is_revoked(&id)).await? {
            return Err(BlobError::signature_ended());
        }
    }
    let (comp, restype) = (
        call.parameter("comp").to_owned(),
        call.parameter("restype").to_owned(),
    );
    let method = call.head.method.as_str().to_owned();
    match (
        method.as_str(),
        call.container.is_empty(),
        call.blob.is_empty(),
        restype.as_str(),
        comp.as_str(),
    ) {
        ("GET", true, ..) if comp == "list" => call.list_containers().await,
        ("GET" | "HEAD", _, _, "account", "properties") => call.account_information(),
        ("PUT", false, true, "container", "") => call.create_container().await,
        ("GET" | "HEAD", false, true, "container", "" | "metadata") => call.container_properties().await,
        ("PUT", false, true, "container", "metadata") => call.set_container_metadata().await,
        ("DELETE", false, true, "container", "") => call.delete_container().await,
        ("GET", false, true, "container", "list") => call.list_blobs().await,
        ("PUT", false, false, _, "") => call.put_blob(body).await,
        ("PUT", false, false, _, "block") => call.put_block(body).await,
        ("PUT", false, false, _, "blocklist") => call.put_block_list(body).await,
        ("GET", false, false, _, "blocklist") => call.block_list().await,
        ("PUT", false, false, _, "metadata" | "properties") => call.describe(comp == "metadata").await,
        ("GET" | "HEAD", false, false, _, "" | "metadata") => {
            call.get(method == "HEAD" || comp == "metadata").await
        }
        ("DELETE", false, false, _, "") => call.delete_blob().await,
        _ => Err(BlobError::new(
            400,
            "UnsupportedOperation",
            "The blob store does not know this operation.",
        )),
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    store: &BlobStore,
    work: impl FnOnce(BlobStore) -> Result<T, BlobError> + Send + 'static,
) -> Result<T, BlobError> {
    let store = store.clone();
    match tokio::task::spawn_blocking(move || work(store)).await {
        Ok(outcome) => outcome,
        Err(error) => Err(std::io::Error::other(error).into()),
    }
}

pub(crate) fn set(headers: &mut HeaderMap, name: &str, value: &str) {
    if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
        headers.insert(name, value);
    }
}

pub(crate) fn reply(status: u16, headers: &[(&str, &str)]) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    for (name, value) in headers {
        set(response.headers_mut(), name, value);
    }
    response
}

fn document(text: String) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    set(response.headers_mut(), "content-type", "application/xml");
    response
}

pub(crate) fn written(status: u16, blob: &Blob) -> Response<Body> {
    reply(
        status,
        &[
            ("etag", &format!("\"{}\"", blob.etag)),
            ("last-modified", &http_date(blob.modified_at)),
            ("x-ms-request-server-encrypted", "false"),
        ],
    )
}

/// Properties that a client may set: header of the request, header of the answer.
const PROPERTIES: [(&str, &str); 6] = [
    ("x-ms-blob-content-type", "Content-Type"),
    ("x-ms-blob-content-encoding", "Content-Encoding"),
    ("x-ms-blob-content-language", "Content-Language"),
    ("x-ms-blob-cache-control", "Cache-Control"),
    ("x-ms-blob-content-disposition", "Content-Disposition"),
    ("x-ms-blob-content-md5", "Content-MD5"),
];

impl Call {
    /// What is written here.
    pub(crate) fn target(&self) -> Target<'_> {
        Target {
            container: &self.container,
            name: &self.blob,
            signature: match &self.access {
                Access::Sas { id, .. } => id.as_deref(),
                Access::Owner => None,
            },
            now: self.now,
        }
    }

    pub(crate) fn parameter(&self, name: &str) -> &str {
        parameter(&self.query, name).unwrap_or_default()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub(crate) fn metadata(&self) -> Result<Headers, BlobError> {
        let mut metadata = Headers::new();
        let mut bytes = 0;
        for (name, value) in &self.head.headers {
            if let Some(name) = name.as_str().strip_prefix("x-ms-meta-") {
                let value = value.to_str().map_err(|_| BlobError::header("x-ms-meta"))?;
                bytes += name.len() + value.len();
                metadata.push((name.to_owned(), value.to_owned()));
            }
        }
        if bytes > METADATA_BYTES_MAX {
            let message = "The metadata is larger than 8 KiB.";
            return Err(BlobError::new(400, "MetadataTooLarge", message));
        }
        Ok(metadata)
    }

    /// `plain`: Content-Type of the request counts where the x-ms form is missing.
    pub(crate) fn properties(&self, plain: bool) -> Headers {
        let mut found = Headers::new();
        for (name, answer) in PROPERTIES {
            let own = self.header(name);
            let value = match answer {
                "Content-MD5" => own,
                _ if plain => own.or(self.header(&answer.to_ascii_lowercase())),
                _ => own,
            };
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                found.push((answer.to_owned(), value.to_owned()));
            }
        }
        if !found.iter().any(|(name, _)| name == "Content-Type") {
            found.push(("Content-Type".into(), "application/octet-stream".into()));
        }
        found
    }

    pub(crate) fn length(&self, limit: u64) -> Result<u64, BlobError> {
        let missing = || BlobError::new(411, "MissingContentLengthHeader", "Content-Length is missing.");
        let length: u64 = self
            .header("content-length")
            .ok_or_else(missing)?
            .parse()
            .map_err(|_| BlobError::header("Content-Length"))?;
        if length > limit {
            return Err(BlobError::too_large(limit));
        }
        Ok(length)
    }

    async fn block_list(self) -> Reply {
        self.access.need("r")?;
        let kind = self.parameter("blocklisttype").to_ascii_lowercase();
        let store = self.service.store.clone();
        let (blob, committed, staged) =
            blocking(&store, move |store| store.blocks(&self.container, &self.blob)).await?;
        let mut text = xml::document();
        text.push_str("<BlockList>");
        if kind != "uncommitted" {
            xml::blocks("CommittedBlocks", &committed, &mut text);
        }
        if kind == "uncommitted" || kind == "all" {
            xml::blocks("UncommittedBlocks", &staged, &mut text);
        }
        text.push_str("</BlockList>");
        let mut response = document(text);
        if let Some(blob) = blob {
            describe_blob(&blob, response.headers_mut());
            set(response.headers_mut(), "content-type", "application/xml");
            set(
                response.headers_mut(),
                "x-ms-blob-content-length",
                &blob.size.to_string(),
            );
        }
        Ok(response)
    }

    async fn describe(self, metadata_only: bool) -> Reply {
        self.access.need("w")?;
        let (properties, metadata) = (self.properties(false), self.metadata()?);
        let store = self.service.store.clone();
        let blob = blocking(&store, move |store| {
            let (properties, metadata) = match metadata_only {
                true => (None, Some(&metadata)),
                false => (Some(&properties), None),
            };
            let check = |old: Option<&Blob>| conditions::check(&self.head.headers, old, false);
            store.describe(self.target(), properties, metadata, check)
        })
        .await?;
        Ok(written(200, &blob))
    }

    async fn get(self, bare: bool) -> Reply {
        self.access.need("r")?;
        let structured = match self.header(structured::HEADER) {
            Some(form) if !form.eq_ignore_ascii_case(structured::FORM) => {
                return Err(BlobError::header(structured::HEADER));
            }
            form => form.is_some() && !bare,
        };
        let store = self.service.store.clone();
        let (container, name) = (self.container.clone(), self.blob.clone());
        let (blob, parts) = blocking(&store, move |store| store.read(&container, &name)).await?;
        conditions::check(&self.head.headers, Some(&blob), true)?;
        let mut response = Response::new(Body::empty());
        describe_blob(&blob, response.headers_mut());
        // A signature may say how a browser should take the blob.
        for (name, header) in [
            ("rscc", "cache-control"),
            ("rscd", "content-disposition"),
            ("rsce", "content-encoding"),
            ("rscl", "content-language"),
            ("rsct", "content-type"),
        ] {
            if matches!(self.access, Access::Sas { .. }) && !self.parameter(name).is_empty() {
                set(response.headers_mut(), header, self.parameter(name));
            }
        }
        let range = match bare {
            true => None,
            false => self
                .header("x-ms-range")
                .or(self.header("range"))
                .and_then(parse_range),
        };
        let (first, length) = match range {
            None => (0, blob.size),
            Some((first, last)) => {
                if first >= blob.size {
                    let message = "The range begins behind the end of the blob.";
                    return Err(BlobError::new(416, "InvalidRange", message));
                }
                let last = last.min(blob.size - 1);
                *response.status_mut() = StatusCode::PARTIAL_CONTENT;
                let text = format!("bytes {first}-{last}/{}", blob.size);
                set(response.headers_mut(), "content-range", &text);
                (first, last - first + 1)
            }
        };
        set(response.headers_mut(), "content-length", &length.to_string());
        if range.is_some() {
            // The MD5 that is kept is that of the whole blob.
            if let Some(md5) = response.headers_mut().remove("content-md5") {
                response.headers_mut().insert("x-ms-blob-content-md5", md5);
            }
        }
        if bare {
            return Ok(response);
        }
        let body = stream(parts, first, length).await?;
        if structured {
            let out = response.headers_mut();
            set(out, structured::HEADER, structured::FORM);
            set(out, structured::LENGTH_HEADER, &length.to_string());
            let encoded = structured::encoded_length(length);
            set(out, "content-length", &encoded.to_string());
            *response.body_mut() = structured::encode(body, length);
            return Ok(response);
        }
        let wants_md5 = self.header("x-ms-range-get-content-md5");
        if range.is_none() || !wants_md5.is_some_and(|wants| wants.eq_ignore_ascii_case("true")) {
            *response.body_mut() = body;
            return Ok(response);
        }
        if length > RANGE_MD5_BYTES_MAX {
            return Err(BlobError::header("x-ms-range-get-content-md5"));
        }
        let limit = usize::try_from(length).unwrap_or(usize::MAX);
        let bytes = axum::body::to_bytes(body, limit).await;
        let bytes = bytes.map_err(std::io::Error::other)?;
        set(response.headers_mut(), "content-md5", &md5_of(&bytes));
        *response.body_mut() = Body::from(bytes);
        Ok(response)
    }

    async fn delete_blob(self) -> Reply {
        self.access.need("d")?;
        let store = self.service.store.clone();
        blocking(&store, move |store| {
            let check = |old: Option<&Blob>| conditions::check(&self.head.headers, old, false);
            store.delete(self.target(), check)
        })
        .await?;
        Ok(reply(202, &[("x-ms-delete-type-permanent", "true")]))
    }

    fn account_information(&self) -> Reply {
        Ok(reply(
            200,
            &[
                ("x-ms-sku-name", "Standard_LRS"),
                ("x-ms-account-kind", "StorageV2"),
                ("x-ms-is-hns-enabled", "false"),
            ],
        ))
    }

    async fn create_container(self) -> Reply {
        self.access.owner()?;
        let metadata = self.metadata()?;
        if self.container == self.service.account.name() {
            let message = "A container cannot have the name of the account.";
            return Err(BlobError::new(400, "InvalidResourceName", message));
        }
        let store = self.service.store.clone();
        let made = blocking(&store, move |store| {
            store.create_container(&self.container, &metadata, self.now)
        })
        .await?;
        Ok(container_reply(201, &made, false))
    }

    async fn container_properties(self) -> Reply {
        self.access.owner()?;
        let store = self.service.store.clone();
        let found = blocking(&store, move |store| store.container(&self.container)).await?;
        Ok(container_reply(200, &found, true))
    }

    async fn set_container_metadata(self) -> Reply {
        self.access.owner()?;
        let metadata = self.metadata()?;
        let store = self.service.store.clone();
        let set = move |store: BlobStore| store.set_container_metadata(&self.container, &metadata, self.now);
        Ok(container_reply(200, &blocking(&store, set).await?, false))
    }

    async fn delete_container(self) -> Reply {
        self.access.owner()?;
        let store = self.service.store.clone();
        blocking(&store, move |store| store.delete_container(&self.container)).await?;
        Ok(reply(202, &[]))
    }

    fn max_results(&self) -> Result<usize, BlobError> {
        match self.parameter("maxresults") {
            "" => Ok(LIST_MAX),
            text => match text.parse::<usize>() {
                Ok(max @ 1..) => Ok(max.min(LIST_MAX)),
                _ => Err(BlobError::query("maxresults")),
            },
        }
    }

    async fn list_containers(self) -> Reply {
        self.access.owner()?;
        let max = self.max_results()?;
        let (prefix, marker) = (
            self.parameter("prefix").to_owned(),
            self.parameter("marker").to_owned(),
        );
        let (from, begins) = (marker.clone(), prefix.clone());
        let page = blocking(&self.service.store, move |store| {
            store.containers(&begins, &from, max)
        })
        .await?;
        let mut text = self.listing(&prefix, &marker, max);
        text.push_str("<Containers>");
        for container in &page.items {
            text.push_str("<Container>");
            xml::element("Name", &container.name, &mut text);
            text.push_str("<Properties>");
            xml::element("Last-Modified", &http_date(container.modified_at), &mut text);
            xml::element("Etag", &format!("\"{}\"", container.etag), &mut text);
            text.push_str(
                "<LeaseStatus>unlocked</LeaseStatus><LeaseState>available</LeaseState></Properties>",
            );
            if self.parameter("include").contains("metadata") {
                metadata_document(&container.metadata, &mut text);
            }
            text.push_str("</Container>");
        }
        text.push_str("</Containers>");
        xml::element("NextMarker", page.next.as_deref().unwrap_or_default(), &mut text);
        text.push_str("</EnumerationResults>");
        Ok(document(text))
    }

    fn listing(&self, prefix: &str, marker: &str, max: usize) -> String {
        let mut text = xml::document();
        text.push_str("<EnumerationResults");
        if !self.container.is_empty() {
            text.push_str(" ContainerName=\"");
            xml::escape(&self.container, &mut text);
            text.push('"');
        }
        text.push('>');
        xml::element("Prefix", prefix, &mut text);
        xml::element("Marker", marker, &mut text);
        xml::element("MaxResults", &max.to_string(), &mut text);
        text
    }

    async fn list_blobs(self) -> Reply {
        self.access.container()?;
        self.access.need("l")?;
        let max = self.max_results()?;
        let [prefix, delimiter, marker] =
            ["prefix", "delimiter", "marker"].map(|name| self.parameter(name).to_owned());
        let (container, begins, until, from) = (
            self.container.clone(),
            prefix.clone(),
            delimiter.clone(),
            marker.clone(),
        );
        let page = blocking(&self.service.store, move |store| {
            store.blobs(&container, &begins, &until, &from, max)
        })
        .await?;
        let mut text = self.listing(&prefix, &marker, max);
        xml::element("Delimiter", &delimiter, &mut text);
        text.push_str("<Blobs>");
        for entry in &page.items {
            match entry {
                Entry::Prefix(name) => {
                    text.push_str("<BlobPrefix>");
                    xml::element("Name", name, &mut text);
                    text.push_str("</BlobPrefix>");
                }
                Entry::Blob(blob) => {
                    blob_document(blob, self.parameter("include").contains("metadata"), &mut text)
                }
            }
        }
        text.push_str("</Blobs>");
        xml::element("NextMarker", page.next.as_deref().unwrap_or_default(), &mut text);
        text.push_str("</EnumerationResults>");
        Ok(document(text))
    }
}

fn metadata_document(metadata: &Headers, text: &mut String) {
    text.push_str("<Metadata>");
    for (name, value) in metadata {
        // Only names that are elements; others are told as headers only.
        if name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
        {
            xml::element(name, value, text);
        }
    }
    text.push_str("</Metadata>");
}

fn blob_document(blob: &Blob, metadata: bool, text: &mut String) {
    text.push_str("<Blob>");
    xml::element("Name", &blob.name, text);
    text.push_str("<Properties>");
    xml::element("Creation-Time", &http_date(blob.created_at), text);
    xml::element("Last-Modified", &http_date(blob.modified_at), text);
    xml::element("Etag", &blob.etag, text);
    xml::element("Content-Length", &blob.size.to_string(), text);
    for (name, value) in &blob.properties {
        xml::element(name, value, text);
    }
    text.push_str(
        "<BlobType>BlockBlob</BlobType><LeaseStatus>unlocked</LeaseStatus><LeaseState>available</LeaseState>",
    );
    text.push_str("<ServerEncrypted>false</ServerEncrypted></Properties>");
    if metadata {
        metadata_document(&blob.metadata, text);
    }
    text.push_str("</Blob>");
}

fn describe_blob(blob: &Blob, out: &mut HeaderMap) {
    for (name, value) in &blob.properties {
        set(out, &name.to_ascii_lowercase(), value);
    }
    for (name, value) in &blob.metadata {
        set(out, &format!("x-ms-meta-{name}"), value);
    }
    for (name, value) in [
        ("etag", format!("\"{}\"", blob.etag).as_str()),
        ("last-modified", &http_date(blob.modified_at)),
        ("x-ms-creation-time", &http_date(blob.created_at)),
        ("x-ms-blob-type", "BlockBlob"),
        ("x-ms-lease-status", "unlocked"),
        ("x-ms-lease-state", "available"),
        ("x-ms-server-encrypted", "false"),
        ("accept-ranges", "bytes"),
    ] {
        set(out, name, value);
    }
}

fn container_reply(status: u16, container: &Container, full: bool) -> Response<Body> {
    let mut response = reply(
        status,
        &[
            ("etag", &format!("\"{}\"", container.etag)),
            ("last-modified", &http_date(container.modified_at)),
        ],
    );
    if full {
        let out = response.headers_mut();
        set(out, "x-ms-lease-status", "unlocked");
        set(out, "x-ms-lease-state", "available");
        for (name, value) in &container.metadata {
            set(out, &format!("x-ms-meta-{name}"), value);
        }
    }
    response
}
