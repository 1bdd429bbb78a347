//! The REST API with service signatures, as an uploading device sees it, and what a restart leaves.

use std::path::Path;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Request};
use holdfast_blob::signature::Account;
use holdfast_blob::store::FREE_BYTES_MIN;
use holdfast_blob::{BlobService, BlobStore, router};
use holdfast_model::Timestamp;
use http_body_util::BodyExt as _;
use tower::ServiceExt as _;

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
const LATER: Timestamp = Timestamp::from_seconds(1_800_003_600);
const KEY: &str = "c2VjcmV0";

fn account(name: &str) -> Account {
    Account::new(name, KEY).expect("a key")
}

fn open(dir: &Path) -> BlobService {
    BlobService {
        store: BlobStore::open(dir, FREE_BYTES_MIN, NOW).expect("a store"),
        account: account("holdfast"),
        now: Arc::new(|| NOW),
        tls: true,
    }
}

async fn ask(
    service: &BlobService,
    method: &str,
    uri: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (u16, HeaderMap, Bytes) {
    let mut request = Request::builder()
        .method(method)
        .uri(uri)
        .header("content-length", body.len());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::from(body.to_owned())).expect("a request");
    let response = router(service.clone())
        .oneshot(request)
        .await
        .expect("infallible");
    let (head, body) = response.into_parts();
    let bytes = body.collect().await.expect("a body").to_bytes();
    (head.status.as_u16(), head.headers, bytes)
}

const PUT: &[(&str, &str)] = &[("x-ms-blob-type", "BlockBlob"), ("x-ms-version", "2026-10-06")];

fn code(headers: &HeaderMap) -> &str {
    headers
        .get("x-ms-error-code")
        .map_or("", |value| value.to_str().expect("text"))
}

#[tokio::test]
async fn a_blob_goes_in_and_comes_out() {
    let dir = tempfile::tempdir().expect("a folder");
    let service = open(dir.path());
    service
        .store
        .create_container("uploads", &Vec::new(), NOW)
        .expect("new");
    let sas = service.account.sign_blob("uploads", "d1/a b", "rwd", LATER, None);
    let uri = format!("/uploads/d1/a%20b?{sas}");
    for body in ["", "x", "0123456789"] {
        let (status, headers, _) = ask(&service, "PUT", &uri, PUT, body).await;
        assert_eq!(
            (status, headers["x-ms-version"].to_str().unwrap_or_default()),
            (201, "2026-10-06")
        );
        let (status, headers, got) = ask(&service, "GET", &uri, &[], "").await;
        assert_eq!((status, &got[..]), (200, body.as_bytes()));
        assert_eq!(headers["content-length"], body.len().to_string().as_str());
    }
    let (status, headers, got) = ask(&service, "GET", &uri, &[("x-ms-range", "bytes=2-4")], "").await;
    assert_eq!((status, &got[..]), (206, &b"234"[..]));
    assert_eq!(headers["content-range"], "bytes 2-4/10");
    let (status, headers, _) = ask(&service, "GET", &uri, &[("range", "bytes=10-")], "").await;
    assert_eq!((status, code(&headers)), (416, "InvalidRange"));
    let create = [("x-ms-blob-type", "BlockBlob"), ("if-none-match", "*")];
    let (status, headers, _) = ask(&service, "PUT", &uri, &create, "y").await;
    assert_eq!((status, code(&headers)), (409, "BlobAlreadyExists"));
    // The path style of emulators reaches the same blob.
    let (status, ..) = ask(&service, "DELETE", &format!("/holdfast{uri}"), &[], "").await;
    assert_eq!(status, 202);
    let (status, headers, _) = ask(&service, "HEAD", &uri, &[], "").await;
    assert_eq!((status, code(&headers)), (404, "BlobNotFound"));
    assert_eq!(
        std::fs::read_dir(dir.path().join("data"))
            .expect("readable")
            .count(),
        0
    );
}

#[tokio::test]
async fn a_block_list_is_whole_or_not_there_across_restarts() {
    let dir = tempfile::tempdir().expect("a folder");
    let service = open(dir.path());
    service
        .store
        .create_container("uploads", &Vec::new(), NOW)
        .expect("new");
    let sas = service.account.sign_blob("uploads", "d1/x", "rw", LATER, None);
    for (id, body) in [("MDA=", "one-"), ("MDE=", "two-"), ("MDI=", "three")] {
        let uri = format!("/uploads/d1/x?comp=block&blockid={id}&{sas}");
        assert_eq!(ask(&service, "PUT", &uri, PUT, body).await.0, 201);
    }
    // A process that dies leaves a file that nobody knows.
    std::fs::write(dir.path().join("data/00000000000000aa"), "half").expect("written");
    drop(service);
    let service = open(dir.path());
    assert_eq!(
        std::fs::read_dir(dir.path().join("data"))
            .expect("readable")
            .count(),
        3
    );
    let uri = format!("/uploads/d1/x?{sas}");
    assert_eq!(ask(&service, "GET", &uri, &[], "").await.0, 404);
    let list = format!("/uploads/d1/x?comp=blocklist&{sas}");
    let missing = "<BlockList><Latest>MDA=</Latest><Latest>OTk=</Latest></BlockList>";
    let (status, headers, _) = ask(&service, "PUT", &list, &[], missing).await;
    assert_eq!((status, code(&headers)), (400, "InvalidBlockList"));
    let whole = "<BlockList><Latest>MDI=</Latest><Uncommitted>MDA=</Uncommitted></BlockList>";
    assert_eq!(ask(&service, "PUT", &list, &[], whole).await.0, 201);
    drop(service);
    let service = open(dir.path());
    assert_eq!(&ask(&service, "GET", &uri, &[], "").await.2[..], b"threeone-");
    let (status, _, got) = ask(&service, "GET", &uri, &[("range", "bytes=4-6")], "").await;
    assert_eq!((status, &got[..]), (206, &b"eon"[..]));
    assert_eq!(
        std::fs::read_dir(dir.path().join("data"))
            .expect("readable")
            .count(),
        2
    );
}

#[tokio::test]
async fn a_signature_is_for_its_blob_its_account_and_its_time() {
    let dir = tempfile::tempdir().expect("a folder");
    let service = open(dir.path());
    service
        .store
        .create_container("uploads", &Vec::new(), NOW)
        .expect("new");
    let sign = |account: &Account, blob: &str, letters: &str, until| {
        account.sign_blob("uploads", blob, letters, until, Some("c1"))
    };
    let good = sign(&service.account, "d1/x", "rw", LATER);
    assert_eq!(
        ask(&service, "PUT", &format!("/uploads/d1/x?{good}"), PUT, "x")
            .await
            .0,
        201
    );
    for (uri, expected) in [
        (format!("/uploads/d2/x?{good}"), "AuthenticationFailed"),
        (
            format!("/uploads/d1/x?{}", good.replace("sp=rw", "sp=rwd")),
            "AuthenticationFailed",
        ),
        (
            format!("/uploads/d1/x?{}", sign(&service.account, "d1/x", "rw", NOW)),
            "AuthenticationFailed",
        ),
        (
            format!("/uploads/d1/x?{}", sign(&account("other"), "d1/x", "rw", LATER)),
            "AuthenticationFailed",
        ),
        (
            format!("/uploads/d1/x?{}", sign(&service.account, "d1/x", "r", LATER)),
            "AuthorizationPermissionMismatch",
        ),
        (
            format!("/uploads/d1/x?{}", sign(&service.account, "d1/x", "c", LATER)),
            "AuthorizationPermissionMismatch",
        ),
    ] {
        let (status, headers, _) = ask(&service, "PUT", &uri, PUT, "y").await;
        assert_eq!((status, code(&headers)), (403, expected), "{uri}");
    }
    let (status, headers, _) = ask(&service, "PUT", "/uploads/d1/x", PUT, "y").await;
    assert_eq!((status, code(&headers)), (401, "NoAuthenticationInformation"));
    let list = format!("/uploads?restype=container&comp=list&{good}");
    assert_eq!(ask(&service, "GET", &list, &[], "").await.0, 403);
    // Ended before its time, and still after a restart.
    service.store.revoke("c1", LATER).expect("revoked");
    drop(service);
    let service = open(dir.path());
    let (status, headers, _) = ask(&service, "PUT", &format!("/uploads/d1/x?{good}"), PUT, "y").await;
    assert_eq!((status, code(&headers)), (403, "AuthenticationFailed"));
}

#[tokio::test]
async fn names_never_become_paths_and_sizes_are_refused_unread() {
    let dir = tempfile::tempdir().expect("a folder");
    let service = open(&dir.path().join("store"));
    service
        .store
        .create_container("uploads", &Vec::new(), NOW)
        .expect("new");
    for name in ["../../escape", "/etc/passwd", "a/../b", "ü\u{1F600}"] {
        let sas = service.account.sign_blob("uploads", name, "rw", LATER, None);
        let encoded = percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC);
        let uri = format!("/uploads/{encoded}?{sas}");
        assert_eq!(ask(&service, "PUT", &uri, PUT, name).await.0, 201);
        assert_eq!(&ask(&service, "GET", &uri, &[], "").await.2[..], name.as_bytes());
    }
    assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 1);
    let sas = service.account.sign_blob("uploads", "big", "rw", LATER, None);
    for (length, status, expected) in [
        ("5242880001", 413, "RequestBodyTooLarge"),
        ("x", 400, "InvalidHeaderValue"),
        ("7", 400, "IncompleteBody"),
    ] {
        let request = Request::put(format!("/uploads/big?{sas}"))
            .header("x-ms-blob-type", "BlockBlob")
            .header("content-length", length)
            .body(Body::from("short"))
            .expect("a request");
        let response = router(service.clone())
            .oneshot(request)
            .await
            .expect("infallible");
        assert_eq!(
            (response.status().as_u16(), code(response.headers())),
            (status, expected)
        );
    }
    assert_eq!(
        std::fs::read_dir(dir.path().join("store/data"))
            .expect("readable")
            .count(),
        4
    );
}

#[tokio::test]
async fn a_signature_that_ends_while_a_body_comes_ends_the_write() {
    let dir = tempfile::tempdir().expect("a folder");
    let service = open(dir.path());
    let store = &service.store;
    store.create_container("uploads", &Vec::new(), NOW).expect("new");
    let sas = service
        .account
        .sign_blob("uploads", "d1/x", "rw", LATER, Some("c1"));
    let uri = format!("/uploads/d1/x?{sas}");
    assert_eq!(ask(&service, "PUT", &uri, PUT, "first").await.0, 201);
    for part in ["", "&comp=block&blockid=MDA%3D"] {
        let (sender, body) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(1);
        let body = futures_util::stream::unfold(body, |mut body| async move {
            let next = body.recv().await?;
            Some((next, body))
        });
        let request = Request::put(format!("{uri}{part}"))
            .header("x-ms-blob-type", "BlockBlob")
            .header("content-length", 6)
            .body(Body::from_stream(body))
            .expect("a request");
        let answer = tokio::spawn(router(service.clone()).oneshot(request));
        sender.send(Ok(Bytes::from("sec"))).await.expect("it is read");
        if part.is_empty() {
            let seen = store
                .finish_upload("uploads", "d1/x", "c1", LATER)
                .expect("readable");
            assert_eq!(seen.map(|blob| blob.size), Some(5), "what was seen is what stays");
        }
        // The second is refused before its body is looked at, so nobody may be listening any more.
        let _ = sender.send(Ok(Bytes::from("ond"))).await;
        drop(sender);
        let response = answer.await.expect("no panic").expect("infallible");
        assert_eq!(
            (response.status().as_u16(), code(response.headers())),
            (403, "AuthenticationFailed"),
            "{part}"
        );
    }
    let owner = service.account.sign_blob("uploads", "d1/x", "r", LATER, None);
    let (status, _, got) = ask(&service, "GET", &format!("/uploads/d1/x?{owner}"), &[], "").await;
    assert_eq!((status, &got[..]), (200, &b"first"[..]));
    assert_eq!(
        store
            .finish_upload("uploads", "d1/none", "c2", LATER)
            .expect("readable")
            .map(|_| ()),
        None
    );
    assert_eq!(
        store
            .finish_upload("nowhere", "d1/x", "c2", LATER)
            .expect("readable")
            .map(|_| ()),
        None
    );
    assert!(!store.is_revoked("c2").expect("readable"));
    let files = std::fs::read_dir(dir.path().join("data")).expect("readable");
    assert_eq!(files.count(), 1, "nothing is left of what was refused");
}

#[tokio::test]
async fn bodies_are_checked_and_told() {
    const MD5_OF_A: &str = "DMF1ucDxtqgxw5niaXcmYQ==";
    let dir = tempfile::tempdir().expect("a folder");
    let service = open(dir.path());
    service
        .store
        .create_container("uploads", &Vec::new(), NOW)
        .expect("new");
    let sas = service.account.sign_blob("uploads", "x", "rw", LATER, None);
    let uri = format!("/uploads/x?{sas}");
    let fields = |extra: &[(&'static str, &'static str)]| [PUT, extra].concat();
    let (status, headers, _) = ask(&service, "PUT", &uri, &fields(&[("content-md5", MD5_OF_A)]), "a").await;
    assert_eq!(
        (status, headers["content-md5"].to_str().unwrap_or_default()),
        (201, MD5_OF_A)
    );
    assert!(headers.contains_key("x-ms-content-crc64"));
    for (extra, expected) in [
        (("content-md5", MD5_OF_A), "Md5Mismatch"),
        (("x-ms-content-crc64", "iJh5CoYUi64="), "Crc64Mismatch"),
        (("x-ms-structured-body", "XSM/9"), "InvalidHeaderValue"),
        (
            ("x-ms-structured-body", "XSM/1.0; properties=crc64"),
            "InvalidHeaderValue",
        ),
    ] {
        let (status, headers, _) = ask(&service, "PUT", &uri, &fields(&[extra]), "b").await;
        assert_eq!((status, code(&headers)), (400, expected), "{extra:?}");
    }
    // The MD5 of the blob is kept, and that of a range is told where it is asked for.
    let (_, headers, _) = ask(&service, "HEAD", &uri, &[], "").await;
    assert_eq!(headers["content-md5"], MD5_OF_A);
    assert_eq!(ask(&service, "PUT", &uri, PUT, "xay").await.0, 201);
    let range = [
        ("x-ms-range", "bytes=1-1"),
        ("x-ms-range-get-content-md5", "true"),
    ];
    let (status, headers, got) = ask(&service, "GET", &uri, &range, "").await;
    assert_eq!((status, &got[..]), (206, &b"a"[..]));
    assert_eq!(headers["content-md5"], MD5_OF_A);
    assert_ne!(headers["x-ms-blob-content-md5"], MD5_OF_A);
    let list = format!("/uploads/x?comp=blocklist&{sas}");
    let wrong = [("content-md5", MD5_OF_A)];
    let (status, headers, _) = ask(&service, "PUT", &list, &wrong, "<BlockList/>").await;
    assert_eq!((status, code(&headers)), (400, "Md5Mismatch"));
}

#[tokio::test]
async fn a_disk_without_room_refuses_and_keeps_what_is_there() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = BlobStore::open(dir.path(), u64::MAX / 2, NOW).expect("a store");
    store.create_container("uploads", &Vec::new(), NOW).expect("new");
    let service = BlobService {
        store,
        account: account("holdfast"),
        now: Arc::new(|| NOW),
        tls: true,
    };
    let sas = service.account.sign_blob("uploads", "x", "rw", LATER, None);
    let (status, headers, _) = ask(&service, "PUT", &format!("/uploads/x?{sas}"), PUT, "x").await;
    assert_eq!((status, code(&headers)), (507, "InsufficientStorage"));
    assert_eq!(
        std::fs::read_dir(dir.path().join("data"))
            .expect("readable")
            .count(),
        0
    );
}

#[tokio::test]
async fn blocks_that_nobody_listed_go_after_a_week() {
    let dir = tempfile::tempdir().expect("a folder");
    let service = open(dir.path());
    service
        .store
        .create_container("uploads", &Vec::new(), NOW)
        .expect("new");
    let sas = service.account.sign_blob("uploads", "x", "rw", LATER, None);
    let uri = format!("/uploads/x?comp=block&blockid=MDA%3D&{sas}");
    assert_eq!(ask(&service, "PUT", &uri, PUT, "block").await.0, 201);
    let files = || {
        std::fs::read_dir(dir.path().join("data"))
            .expect("readable")
            .count()
    };
    let week = std::time::Duration::from_secs(7 * 86_400);
    service.store.sweep(NOW.plus(week)).expect("writable");
    assert_eq!(files(), 1);
    service.store.sweep(NOW.plus(2 * week)).expect("writable");
    assert_eq!(files(), 0);
}
