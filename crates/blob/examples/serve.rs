//! Serves an empty store without TLS on a free port of this machine, for trying clients: prints its connection string.
#![allow(clippy::print_stdout, reason = "an example for people")]

use std::sync::Arc;

use holdfast_blob::signature::Account;
use holdfast_blob::{BlobService, BlobStore, router};
use holdfast_model::Timestamp;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args().nth(1).ok_or("usage: serve FOLDER")?;
    let key = "aG9sZGZhc3QgZXhhbXBsZSBrZXksIG5vIHNlY3JldA==";
    let now = || {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Timestamp::from_seconds(since.map_or(0, |since| since.as_secs().cast_signed()))
    };
    let service = BlobService {
        store: BlobStore::open(
            std::path::Path::new(&dir),
            holdfast_blob::store::FREE_BYTES_MIN,
            now(),
        )?,
        account: Account::new("holdfast", key).ok_or("the key is not base64")?,
        now: Arc::new(now),
        tls: false,
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    println!(
        "DefaultEndpointsProtocol=http;AccountName=holdfast;AccountKey={key};BlobEndpoint=http://{address}/holdfast;"
    );
    axum::serve(listener, router(service)).await?;
    Ok(())
}
