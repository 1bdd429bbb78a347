//! Block blobs over HTTP: the part of the Blob service's REST API that one reader and one writer need.
//!
//! A reader that is cut off goes on where it was, if the blob is still the same. A writer keeps one block in memory.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_blob::signature::{http_date, parse_http_date};
use holdfast_fleet::transfer::{BlobReader, BlobWriter};
use holdfast_model::Timestamp;
use holdfast_ports::file::StorageError;
use ureq::http::{Response, header};
use ureq::tls::RootCerts;
use ureq::{Agent, Body, BodyReader};

use super::account::StorageAccount;
use super::address::BlobAddress;

/// Version of the API; every request names it.
const API_VERSION: &str = "2021-08-06";
/// Size of a block: what a writer keeps in memory.
const BLOCK_BYTES: usize = 4 * 1024 * 1024;
/// Most blocks of a blob.
const BLOCKS_MAX: usize = 50_000;
/// Times that a request is made, or a broken reading is taken up again without anything read in between.
const TRIES_MAX: usize = 4;
/// Pause before the second try; it doubles.
const PAUSE: Duration = Duration::from_millis(250);
/// Longest look at a blob: a device waits for it.
const LOOK_TIME_MAX: Duration = Duration::from_secs(20);
/// Longest silence of the other side.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Reads and writes blobs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct BlobClient {
    agent: Agent,
}

impl BlobClient {
    pub(crate) fn new(roots: RootCerts) -> Self {
        let agent = Agent::config_builder()
            .tls_config(crate::cli::client::tls(roots))
            .http_status_as_error(false)
            // The signature is for the address that was given, and for nobody else.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(SILENCE_MAX))
            .timeout_per_read(Some(SILENCE_MAX))
            .timeout_per_write(Some(SILENCE_MAX))
            .user_agent(concat!("holdfast/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        BlobClient { agent }
    }

    /// Opens a blob for reading.
    ///
    /// # Errors
    /// Why it cannot be read, without its signature.
    pub(crate) fn open(&self, address: BlobAddress) -> Result<BlobReader, String> {
        let mut blob = HttpBlob {
            client: self.clone(),
            address,
            etag: None,
            read: 0,
            tries: 0,
            body: None,
        };
        let size = blob.get()?;
        Ok(BlobReader {
            bytes: Box::new(blob),
            size,
        })
    }

    /// Begins a blob.
    pub(crate) fn create(&self, address: BlobAddress) -> BlockWriter {
        BlockWriter {
            client: self.clone(),
            address,
            block: Vec::new(),
            blocks: 0,
        }
    }

    fn put(
        &self,
        address: &BlobAddress,
        parameters: &str,
        fields: &[(&str, &str)],
        body: &[u8],
    ) -> Result<(), String> {
        let mut pause = PAUSE;
        let mut failure = String::new();
        for number in 0..TRIES_MAX {
            if number > 0 {
                std::thread::sleep(pause);
                pause *= 2;
            }
            let mut request = self
                .agent
                .put(address.uri(parameters))
                .header("x-ms-version", API_VERSION);
            for (name, value) in fields {
                request = request.header(*name, *value);
            }
            match request.send(body) {
                Ok(response) if response.status().is_success() => return Ok(()),
                Ok(response) => {
                    let passing = is_passing(&response);
                    failure = refused("written", address, &response);
                    if !passing {
                        break;
                    }
                }
                Err(error) => failure = unreachable(address, &error),
            }
        }
        Err(failure)
    }
}

/// What a look at a blob finds.
pub(super) enum Found {
    /// No such blob, or no such container.
    Nothing,
    /// A blob.
    Blob {
        /// Bytes.
        size: u64,
        /// When it was last written.
        updated_at: Timestamp,
    },
}

impl BlobClient {
    /// Looks at a blob. Tried once: the device that waits for it can ask again.
    ///
    /// # Errors
    /// [`StorageError`], without the signature.
    pub(super) fn look(&self, address: &BlobAddress) -> Result<Found, StorageError> {
        let asked = self
            .agent
            .head(address.uri(""))
            .config()
            .timeout_global(Some(LOOK_TIME_MAX))
            .build()
            .header("x-ms-version", API_VERSION)
            .call();
        let response = asked.map_err(|error| StorageError::Unavailable(unreachable(address, &error)))?;
        let text = |name: header::HeaderName| response.headers().get(name)?.to_str().ok();
        match response.status().as_u16() {
            200 => {
                let size = text(header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
                let at = text(header::LAST_MODIFIED).and_then(parse_http_date);
                match (size, at) {
                    (Some(size), Some(at)) => Ok(Found::Blob {
                        size,
                        updated_at: Timestamp::from_seconds(at),
                    }),
                    _ => Err(StorageError::Refused(format!(
                        "{address} is told without its length or time"
                    ))),
                }
            }
            404 => Ok(Found::Nothing),
            _ if is_passing(&response) => Err(StorageError::Unavailable(refused("read", address, &response))),
            _ => Err(StorageError::Refused(refused("read", address, &response))),
        }
    }

    /// Makes a container of an account if it is not there.
    ///
    /// # Errors
    /// Why it cannot.
    pub(super) fn create_container(
        &self,
        account: &StorageAccount,
        container: &str,
        now: Timestamp,
    ) -> Result<(), String> {
        let uri = format!("{}/{container}?restype=container", account.endpoint);
        let parsed: ureq::http::Uri = uri
            .parse()
            .map_err(|_| "the blob endpoint is no address".to_owned())?;
        let date = http_date(now);
        let fields = [("x-ms-date", date.as_str()), ("x-ms-version", API_VERSION)];
        let query = [("restype".to_owned(), "container".to_owned())];
        let authorization = account.account.authorize("PUT", parsed.path(), &query, &fields);
        let asked = self
            .agent
            .put(&uri)
            .header("x-ms-date", &date)
            .header("x-ms-version", API_VERSION)
            .header("authorization", authorization)
            .send_empty();
        let (host, _) = account.host_and_path();
        match asked {
            Err(error) => Err(format!("{host} cannot be reached: {error}")),
            Ok(response) => match response.status().as_u16() {
                201 | 409 => Ok(()),
                status => Err(format!(
                    "{host} refuses to make the container {container} (HTTP {status})"
                )),
            },
        }
    }
}

/// A blob being read.
struct HttpBlob {
    client: BlobClient,
    address: BlobAddress,
    /// Of the blob as it was opened.
    etag: Option<String>,
    read: u64,
    /// Tries since something was read.
    tries: usize,
    body: Option<BodyReader<'static>>,
}

impl HttpBlob {
    /// Asks for what has not been read; gives its size.
    fn get(&mut self) -> Result<Option<u64>, String> {
        loop {
            self.tries += 1;
            match self.get_once() {
                Err((reason, true)) if self.tries < TRIES_MAX => {
                    holdfast_observe::tracing::debug!(%reason, "reading a blob is tried again");
                    std::thread::sleep(PAUSE * (1 << self.tries.min(6)));
                }
                Err((reason, _)) => return Err(reason),
                Ok(size) => return Ok(size),
            }
        }
    }

    /// The reason of a failure, and whether it may pass.
    fn get_once(&mut self) -> Result<Option<u64>, (String, bool)> {
        let mut request = self
            .client
            .agent
            .get(self.address.uri(""))
            .header("x-ms-version", API_VERSION)
            // What is counted here are the bytes of the blob itself.
            .header("accept-encoding", "identity");
        if self.read > 0 {
            let Some(etag) = &self.etag else {
                return Err((format!("reading {} broke off", self.address), false));
            };
            request = request
                .header("range", format!("bytes={}-", self.read))
                .header("if-match", etag.as_str());
        }
        let response = request
            .call()
            .map_err(|error| (unreachable(&self.address, &error), true))?;
        let status = response.status().as_u16();
        let wanted = if self.read > 0 { 206 } else { 200 };
        if status != wanted {
            let passing = is_passing(&response);
            return Err((refused("read", &self.address, &response), passing));
        }
        let text = |name: header::HeaderName| {
            let value = response.headers().get(name)?;
            value.to_str().ok().map(str::to_owned)
        };
        if self.read == 0 {
            self.etag = text(header::ETAG);
        }
        let size = text(header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
        self.body = Some(response.into_body().into_reader());
        Ok(size)
    }
}

impl Read for HttpBlob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.body.is_none() {
                self.get().map_err(io::Error::other)?;
            }
            let Some(body) = &mut self.body else { continue };
            match body.read(buffer) {
                Ok(length) => {
                    self.read += length as u64;
                    if length > 0 {
                        self.tries = 0;
                    }
                    return Ok(length);
                }
                Err(error) => {
                    self.body = None;
                    if self.etag.is_none() || self.tries >= TRIES_MAX {
                        return Err(error);
                    }
                }
            }
        }
    }
}

/// A block blob being written.
pub(crate) struct BlockWriter {
    client: BlobClient,
    address: BlobAddress,
    block: Vec<u8>,
    blocks: usize,
}

impl BlockWriter {
    fn put_block(&mut self) -> io::Result<()> {
        if self.blocks >= BLOCKS_MAX {
            return Err(io::Error::other(format!(
                "a blob can have {BLOCKS_MAX} blocks at most"
            )));
        }
        let parameters = format!("comp=block&blockid={}", block_id(self.blocks).replace('=', "%3D"));
        self.client
            .put(&self.address, &parameters, &[], &self.block)
            .map_err(io::Error::other)?;
        self.blocks += 1;
        self.block.clear();
        Ok(())
    }
}

/// All ids of a blob must be equally long.
fn block_id(number: usize) -> String {
    STANDARD.encode(format!("{number:06}"))
}

impl Write for BlockWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.block.len() >= BLOCK_BYTES {
            self.put_block()?;
        }
        let length = bytes.len().min(BLOCK_BYTES - self.block.len());
        self.block.extend_from_slice(&bytes[..length]);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl BlobWriter for BlockWriter {
    fn finish(mut self: Box<Self>) -> Result<(), String> {
        const TYPE: (&str, &str) = ("x-ms-blob-content-type", "text/plain; charset=utf-8");
        if self.blocks == 0 {
            let fields = [("x-ms-blob-type", "BlockBlob"), TYPE];
            return self.client.put(&self.address, "", &fields, &self.block);
        }
        if !self.block.is_empty() {
            self.put_block().map_err(|error| error.to_string())?;
        }
        let mut list = String::from("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>");
        for number in 0..self.blocks {
            // Writing to a string does not fail.
            let _ = write!(list, "<Latest>{}</Latest>", block_id(number));
        }
        list.push_str("</BlockList>");
        self.client
            .put(&self.address, "comp=blocklist", &[TYPE], list.as_bytes())
    }
}

fn unreachable(address: &BlobAddress, error: &ureq::Error) -> String {
    // No text of this library holds more of the address than its host.
    format!("{address} cannot be reached: {error}")
}

fn is_passing(response: &Response<Body>) -> bool {
    matches!(response.status().as_u16(), 408 | 429 | 500..)
}

fn refused(verb: &str, address: &BlobAddress, response: &Response<Body>) -> String {
    let status = response.status().as_u16();
    let code = response.headers().get("x-ms-error-code");
    let code = code.and_then(|code| code.to_str().ok()).unwrap_or_default();
    let why = match status {
        300..=399 => "the answer leads elsewhere, which is not followed",
        401 | 403 => "its shared access signature has expired, or does not allow this",
        404 => "there is no such container or blob",
        412 => "the blob has changed meanwhile",
        _ => "the blob store refuses",
    };
    let gap = if code.is_empty() { "" } else { " " };
    format!("{address} cannot be {verb}: {why} (HTTP {status}{gap}{code})")
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// Serves one answer per connection, and gives the requests it got.
    fn serve(answers: Vec<Vec<u8>>) -> (String, thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let server = thread::spawn(move || {
            let mut requests = Vec::new();
            for answer in answers {
                let (mut socket, _) = listener.accept().unwrap();
                requests.push(read_request(&mut socket));
                socket.write_all(&answer).unwrap();
            }
            requests
        });
        (base, server)
    }

    fn read_request(socket: &mut impl Read) -> String {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            socket.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        let length = head.to_ascii_lowercase().lines().find_map(|line| {
            let length = line.strip_prefix("content-length: ")?;
            length.parse::<usize>().ok()
        });
        let mut body = vec![0; length.unwrap_or(0)];
        socket.read_exact(&mut body).unwrap();
        let shown = String::from_utf8_lossy(&body[..body.len().min(400)]).into_owned();
        format!("{head}{shown}")
    }

    fn answer(status: &str, fields: &str, length: usize, body: &str) -> Vec<u8> {
        format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n{fields}\r\n{body}")
            .into_bytes()
    }

    fn client() -> BlobClient {
        BlobClient::new(RootCerts::new_with_certs(&[]))
    }

    fn address(base: &str) -> BlobAddress {
        BlobAddress::in_container(&format!("{base}/box?sig=SECRET"), "devices.txt").unwrap()
    }

    #[test]
    fn a_broken_reading_goes_on_where_it_was() {
        let (base, server) = serve(vec![
            answer("503 Busy", "", 0, ""),
            answer("200 OK", "etag: \"v1\"\r\n", 10, "hello"),
            answer("206 Partial", "etag: \"v1\"\r\n", 5, "world"),
        ]);
        let mut reader = client().open(address(&base)).unwrap();
        assert_eq!(reader.size, Some(10));
        let mut text = String::new();
        reader.bytes.read_to_string(&mut text).unwrap();
        assert_eq!(text, "helloworld");
        let requests = server.join().unwrap();
        assert!(requests[0].starts_with("GET /box/devices.txt?sig=SECRET HTTP/1.1"));
        let last = requests[2].to_ascii_lowercase();
        assert!(
            last.contains("range: bytes=5-") && last.contains("if-match: \"v1\""),
            "{last}"
        );
    }

    #[test]
    fn a_blob_that_changed_meanwhile_is_not_patched_together() {
        let (base, server) = serve(vec![
            answer("200 OK", "etag: \"v1\"\r\n", 10, "hello"),
            answer("412 Changed", "x-ms-error-code: ConditionNotMet\r\n", 0, ""),
        ]);
        let mut reader = client().open(address(&base)).unwrap();
        let error = reader
            .bytes
            .read_to_string(&mut String::new())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("changed meanwhile (HTTP 412 ConditionNotMet)"),
            "{error}"
        );
        assert!(!error.contains("SECRET"));
        server.join().unwrap();
    }

    #[test]
    fn refusals_say_why_and_hide_the_signature() {
        for (status, fields, why) in [
            (
                "403 No",
                "x-ms-error-code: AuthenticationFailed\r\n",
                "has expired, or does not allow this (HTTP 403 AuthenticationFailed)",
            ),
            ("404 No", "", "no such container or blob (HTTP 404)"),
            (
                "302 Found",
                "location: http://169.254.169.254/\r\n",
                "not followed (HTTP 302)",
            ),
        ] {
            let (base, server) = serve(vec![answer(status, fields, 0, "")]);
            let error = client().open(address(&base)).unwrap_err();
            assert!(error.contains(why) && !error.contains("SECRET"), "{error}");
            server.join().unwrap();
        }
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = client().open(address(&format!("http://{gone}"))).unwrap_err();
        assert!(
            error.contains("cannot be reached") && !error.contains("SECRET"),
            "{error}"
        );
    }

    #[test]
    fn small_blobs_are_written_at_once_and_large_ones_in_blocks() {
        let (base, server) = serve(vec![answer("201 Created", "", 0, "")]);
        let mut writer = Box::new(client().create(address(&base)));
        writer.write_all(b"one\n").unwrap();
        writer.finish().unwrap();
        let request = server.join().unwrap().remove(0);
        assert!(
            request.starts_with("PUT /box/devices.txt?sig=SECRET "),
            "{request}"
        );
        assert!(request.to_ascii_lowercase().contains("x-ms-blob-type: blockblob"));

        let created = || answer("201 Created", "", 0, "");
        let (base, server) = serve(vec![created(), answer("500 No", "", 0, ""), created(), created()]);
        let mut writer = Box::new(client().create(address(&base)));
        writer.write_all(&vec![b'x'; BLOCK_BYTES + 5]).unwrap();
        writer.finish().unwrap();
        let requests = server.join().unwrap();
        assert!(requests[0].starts_with("PUT /box/devices.txt?comp=block&blockid=MDAwMDAw&sig=SECRET "));
        assert!(requests[2].starts_with("PUT /box/devices.txt?comp=block&blockid=MDAwMDAx&sig=SECRET "));
        assert!(requests[2].ends_with("xxxxx"));
        assert!(requests[3].ends_with("<Latest>MDAwMDAw</Latest><Latest>MDAwMDAx</Latest></BlockList>"));
    }
}
