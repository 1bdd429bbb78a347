use std::fs;
use std::path::Path;

use holdfast_model::event::EventBlock;
use serde_json::{Value, json};

use super::*;
use crate::endpoints::testing::{environment, outbound, telemetry};

fn endpoint(folder: &Path, settings: Value) -> StorageEndpoint {
    let definition = EndpointDefinition {
        name: "files".to_owned(),
        number: 1,
        kind: "storage".to_owned(),
        created_at: holdfast_model::Timestamp::from_seconds(1_000),
        settings,
    };
    let environment = Environment {
        data_dir: folder.to_owned(),
        ..environment()
    };
    StorageEndpoint::new(&definition, &environment).unwrap()
}

fn json_lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn at(mut block: EventBlock, partition: u16, first: u64) -> EventBlock {
    block.partition = partition;
    block.first_sequence_number = first;
    block
}

#[tokio::test]
async fn a_file_for_each_partition_field_by_field() {
    let folder = tempfile::tempdir().unwrap();
    let files = endpoint(folder.path(), json!({"encoding": "JSON"}));
    let one = at(telemetry("d1", &["{\"t\": 1}", "{\"t\": 2}"]), 1, 7);
    let two = at(telemetry("d2/m", &["not json"]), 2, 40);
    let batch = [outbound(&one), outbound(&two)].concat();
    files.deliver(&batch).await.unwrap();

    let root = folder.path().join("storage/hub1");
    let auth = |scope: &str| {
        format!(
            "{{\"scope\":\"{scope}\",\"type\":\"sas\",\"issuer\":\"iothub\",\"acceptingIpFilterRule\":null}}"
        )
    };
    let first = json_lines(&root.join("01/1970/01/01/00/33.json"));
    assert_eq!(first.len(), 2);
    let expected = json!({
        "EnqueuedTimeUtc": "1970-01-01T00:16:40.0000000Z",
        "Properties": {"level": "3", "hub": "hub1"},
        "SystemProperties": {
            "connectionDeviceId": "d1", "connectionAuthMethod": auth("device"), "connectionDeviceGenerationId": "42",
            "messageId": "m-1", "contentType": "application/json", "contentEncoding": "utf-8",
            "enqueuedTime": "1970-01-01T00:16:40.0000000Z",
        },
        "Body": {"t": 1},
    });
    assert_eq!(first[0], expected);
    let second = json_lines(&root.join("02/1970/01/01/00/33.json"));
    assert_eq!(second[0]["Body"], json!("bm90IGpzb24="));
    assert_eq!(second[0]["SystemProperties"]["connectionModuleId"], json!("m"));
    let left = fs::read_dir(folder.path().join("storage/.partial/files"))
        .unwrap()
        .count();
    assert_eq!(left, 0, "unfinished files are gone");
}

#[tokio::test]
async fn a_further_file_of_the_minute_has_a_number_and_takes_no_name() {
    let folder = tempfile::tempdir().unwrap();
    let settings = json!({"encoding": "JSON"});
    for (first, name) in [(7, "33.json"), (8, "33_01.json"), (9, "33_02.json")] {
        // Each from a hub that has just been started.
        let files = endpoint(folder.path(), settings.clone());
        let block = at(telemetry("d1", &[&first.to_string()]), 1, first);
        files.deliver(&outbound(&block)).await.unwrap();
        let path = folder.path().join("storage/hub1/01/1970/01/01/00").join(name);
        assert_eq!(json_lines(&path)[0]["Body"], json!(first), "{name}");
    }
}

#[tokio::test]
async fn what_is_stored_is_not_stored_again_when_a_later_file_fails() {
    let folder = tempfile::tempdir().unwrap();
    let settings =
        json!({"encoding": "JSON", "fileNameFormat": "{partition}/{iothub}-{YYYY}{MM}{DD}{HH}{mm}"});
    let files = endpoint(folder.path(), settings);
    let root = folder.path().join("storage");
    fs::create_dir(&root).unwrap();
    // A file where a folder should be.
    fs::write(root.join("02"), b"").unwrap();
    let one = at(telemetry("d1", &["1"]), 1, 7);
    let two = at(telemetry("d2", &["2"]), 2, 9);
    let batch = [outbound(&one), outbound(&two)].concat();
    for _ in 0..2 {
        let error = files.deliver(&batch).await.unwrap_err();
        assert!(
            !error.refused && error.message.contains("cannot write"),
            "{error}"
        );
    }
    fs::remove_file(root.join("02")).unwrap();
    files.deliver(&batch).await.unwrap();
    assert_eq!(fs::read_dir(root.join("01")).unwrap().count(), 1);
    assert_eq!(fs::read_dir(root.join("02")).unwrap().count(), 1);
}

/// What Parquet's own reader makes of a file; the Python suite reads files with the readers of others.
#[tokio::test]
async fn parquet_files_have_every_event() {
    use ::parquet::file::reader::{FileReader as _, SerializedFileReader};
    use ::parquet::record::RowAccessor as _;
    let folder = tempfile::tempdir().unwrap();
    let files = endpoint(folder.path(), json!({"encoding": "Parquet"}));
    // More than a row group holds.
    let bodies: Vec<String> = (0..70_000).map(|number| number.to_string()).collect();
    let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
    let block = at(telemetry("d1", &bodies), 1, 7);
    files.deliver(&outbound(&block)).await.unwrap();
    let path = folder.path().join("storage/hub1/01/1970/01/01/00/33.parquet");
    let reader = SerializedFileReader::new(fs::File::open(path).unwrap()).unwrap();
    assert_eq!(reader.metadata().num_row_groups(), 2);
    let mut count = 0;
    for (number, row) in reader.get_row_iter(None).unwrap().enumerate() {
        let row = row.unwrap();
        assert_eq!(row.get_timestamp_micros(0).unwrap(), 1_000_000_000);
        assert_eq!(row.get_map(1).unwrap().len(), 2, "level and hub");
        assert_eq!(row.get_bytes(3).unwrap().data(), number.to_string().as_bytes());
        count += 1;
    }
    assert_eq!(count, bodies.len());
}

#[test]
fn settings_are_filled_and_wrong_ones_named() {
    let filled = StorageConfig::check(&json!({})).unwrap();
    assert_eq!(filled["batchFrequencyInSeconds"], json!(300));
    assert_eq!(filled["maxChunkSizeInBytes"], json!(314_572_800));
    assert_eq!(filled["encoding"], json!("Avro"));
    assert_eq!(
        filled["fileNameFormat"],
        json!("{iothub}/{partition}/{YYYY}/{MM}/{DD}/{HH}/{mm}")
    );
    let key = "c2VjcmV0";
    for (settings, named) in [
        (json!({"batchFrequencyInSeconds": 0}), "batchFrequencyInSeconds"),
        (json!({"batchFrequencyInSeconds": 721}), "batchFrequencyInSeconds"),
        (json!({"maxChunkSizeInBytes": 1}), "maxChunkSizeInBytes"),
        (json!({"encoding": "Xml"}), "Xml"),
        (json!({"path": "../x"}), "path"),
        (json!({"path": "/etc"}), "path"),
        (
            json!({"fileNameFormat": "{iothub}/{YYYY}/{MM}/{DD}/{HH}/{mm}"}),
            "{partition}",
        ),
        (
            json!({"fileNameFormat": "{mm}{iothub}/{partition}/{YYYY}/{MM}/{DD}/{HH}/{mm}"}),
            "{mm}",
        ),
        (
            json!({"fileNameFormat": "../{iothub}/{partition}/{YYYY}/{MM}/{DD}/{HH}/{mm}"}),
            "fileNameFormat",
        ),
        (
            json!({"fileNameFormat": "{x}/{iothub}/{partition}/{YYYY}/{MM}/{DD}/{HH}/{mm}"}),
            "fileNameFormat",
        ),
        (
            json!({"provider": "azureBlob", "containerName": "abc"}),
            "connectionString",
        ),
        (
            json!({"provider": "azureBlob", "connectionString": "UseDevelopmentStorage=true"}),
            "containerName",
        ),
        (
            json!({"provider": "azureBlob", "containerName": "abc", "connectionString": format!("AccountKey={key}")}),
            "AccountName",
        ),
        (
            json!({"provider": "s3", "containerName": "abc"}),
            "secretAccessKey",
        ),
        (json!({"caCertificate": "x"}), "caCertificate"),
        (json!({"unknown": 1}), "unknown"),
    ] {
        let error = StorageConfig::check(&settings).unwrap_err();
        assert!(
            error.contains(named) && !error.contains(key),
            "{settings}: {error}"
        );
    }
}

#[test]
fn accounts_of_connection_strings() {
    let account = |text: &str| {
        let settings = json!({"provider": "azureBlob", "containerName": "abc", "connectionString": text});
        StorageConfig::read(&settings).unwrap().account().unwrap()
    };
    assert_eq!(
        account("AccountName=a;AccountKey=k==").endpoint,
        "https://a.blob.core.windows.net"
    );
    assert_eq!(account("AccountName=a;AccountKey=k==").key.unwrap(), "k==");
    assert_eq!(
        account("UseDevelopmentStorage=true").endpoint,
        "http://127.0.0.1:10000/devstoreaccount1"
    );
    let sas = account("BlobEndpoint=https://b.blob.example.com/;SharedAccessSignature=sv=1&sig=x");
    assert_eq!(
        (sas.name.as_str(), sas.endpoint.as_str()),
        ("b", "https://b.blob.example.com")
    );
}

#[test]
fn signatures_are_not_told() {
    let shown = service::without_signature("PUT https://x/c?sv=1&sig=a%2Fb&se=2 and sig=c");
    assert_eq!(shown, "PUT https://x/c?sv=1&sig=***&se=2 and sig=***");
}

#[tokio::test]
async fn services_that_refuse_hang_or_are_not_there() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let block = telemetry("d1", &["1"]);
    let azure = |port: u16| {
        let account = format!("AccountName=acc;AccountKey=c2VjcmV0;BlobEndpoint=http://127.0.0.1:{port}/acc");
        let settings = json!({"provider": "azureBlob", "containerName": "abc", "connectionString": account});
        endpoint(Path::new("."), settings)
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let refusing = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 64 << 10];
        let _ = socket.read(&mut request).await.unwrap();
        let answer = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 9\r\n\r\nforbidden";
        socket.write_all(answer).await.unwrap();
        listener
    });
    let error = azure(port).deliver(&outbound(&block)).await.unwrap_err();
    assert!(
        !error.refused && error.accepted == 0 && !error.message.contains("c2VjcmV0"),
        "{error}"
    );
    drop(refusing.await.unwrap());
    let error = azure(port).deliver(&outbound(&block)).await.unwrap_err();
    assert!(error.message.contains("cannot store"), "{error}");

    // Connects and says nothing; the clock runs as fast as nothing else happens.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hanging = azure(listener.local_addr().unwrap().port());
    tokio::time::pause();
    let error = hanging.deliver(&outbound(&block)).await.unwrap_err();
    assert!(!error.refused, "{error}");
}
