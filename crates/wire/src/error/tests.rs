use std::collections::HashSet;

use super::*;

fn tracking() -> TrackingId {
    TrackingId {
        id: 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef,
        node: 3,
        at: Timestamp::from_micros(1_790_000_000_250_000),
    }
}

#[test]
fn the_table_is_total_and_consistent() {
    let mut numbers = HashSet::new();
    for code in ErrorCode::ALL {
        let row = row(*code);
        assert!(numbers.insert(row.number), "{code:?}: number used twice");
        assert_eq!(row.number / 1_000, u32::from(row.http_status), "{code:?}");
        assert!((400..=504).contains(&row.http_status), "{code:?}");
        assert!(matches!(row.connack, 3 | 5), "{code:?}");
        assert!(
            row.amqp_condition.starts_with("amqp:") || row.amqp_condition.starts_with("com.microsoft:"),
            "{code:?}"
        );
        if *code != ErrorCode::MethodNotAllowed {
            assert_eq!(row.name, format!("{code:?}"));
        }
        let free = row.number % 1_000;
        // Numbers of the provisioning service between 200 and 299 are inferred from the order of a published list of
        // names; not all of them have been seen.
        let inferred = !row.number_verified && (200..300).contains(&free);
        assert!(
            inferred || row.number_verified == (free != 0 && free < 900),
            "{code:?}"
        );
    }
}

#[test]
fn rows_that_clients_depend_on() {
    for (code, status, number) in [
        (ErrorCode::InvalidProtocolVersion, 400, 400_001),
        (ErrorCode::ArgumentInvalid, 400, 400_004),
        (ErrorCode::IotHubUnauthorizedAccess, 401, 401_002),
        (ErrorCode::IotHubUnauthorized, 401, 401_003),
        (ErrorCode::SystemModuleModifyUnauthorizedAccess, 401, 401_901),
        (ErrorCode::DeviceMaximumQueueDepthExceeded, 403, 403_004),
        (
            ErrorCode::DeviceMaximumActiveFileUploadLimitExceeded,
            403,
            403_006,
        ),
        (ErrorCode::DeviceNotFound, 404, 404_001),
        (ErrorCode::ModuleNotFound, 404, 404_010),
        (ErrorCode::DeviceNotOnline, 404, 404_103),
        (ErrorCode::DeviceConnectionClosedRemotely, 404, 404_104),
        (ErrorCode::DeviceAlreadyExists, 409, 409_001),
        (ErrorCode::ModuleAlreadyExistsOnDevice, 409, 409_301),
        (ErrorCode::PreconditionFailed, 412, 412_001),
        (ErrorCode::DeviceMessageLockLost, 412, 412_002),
        (ErrorCode::MessageTooLarge, 413, 413_001),
        (ErrorCode::ThrottlingException, 429, 429_001),
        (ErrorCode::ServerError, 500, 500_001),
        (ErrorCode::GenericBadGateway, 502, 502_000),
        (ErrorCode::ServiceUnavailable, 503, 503_001),
        (ErrorCode::GatewayTimeout, 504, 504_101),
    ] {
        assert_eq!(
            (row(code).http_status, row(code).number),
            (status, number),
            "{code:?}"
        );
    }
    assert_eq!(row(ErrorCode::ServiceUnavailable).connack, 3);
    assert_eq!(row(ErrorCode::ThrottlingException).connack, 3);
    assert_eq!(row(ErrorCode::DeviceNotFound).connack, 5);
}

#[test]
fn tracking_id_has_azures_form() {
    assert_eq!(
        tracking().to_string(),
        "0123456789abcdef0123456789abcdef-G:3-TimeStamp:09/21/2026 14:13:20"
    );
}

#[test]
fn bodies_have_their_shapes() {
    let error = Error::new(ErrorCode::DeviceNotOnline, "the device \"d1\" is not online");
    let legacy: serde_json::Value = serde_json::from_str(&legacy_body(&error, tracking())).expect("JSON");
    assert_eq!(
        legacy,
        serde_json::json!({
            "Message": "ErrorCode:DeviceNotOnline;the device \"d1\" is not online",
            "ExceptionMessage": format!("Tracking ID:{}", tracking()),
        })
    );
    let info = Info::of_method(error.code, Duration::from_secs(3_725));
    let nested: serde_json::Value =
        serde_json::from_str(&nested_body(&error, tracking(), info)).expect("JSON");
    assert_eq!(nested["ExceptionMessage"], "");
    let inner: serde_json::Value =
        serde_json::from_str(nested["Message"].as_str().expect("text")).expect("JSON");
    assert_eq!(
        inner,
        serde_json::json!({
            "errorCode": 404_103,
            "trackingId": tracking().to_string(),
            "message": "the device \"d1\" is not online",
            "info": {"timeout": "01:02:05"},
            "timestampUtc": "2026-09-21T14:13:20.2500000Z",
        })
    );
    let flat: serde_json::Value =
        serde_json::from_str(&flat_body(&error, tracking(), Info::Empty)).expect("JSON");
    assert_eq!(flat["info"], serde_json::json!({}));
    assert_eq!(
        Info::of_method(ErrorCode::GatewayTimeout, Duration::from_secs(5)),
        Info::Empty
    );
}

/// What the Node service SDK does with a body of shape A.
#[test]
fn node_reads_the_code_from_shape_a() {
    let error = Error::new(ErrorCode::DeviceNotFound, "no device d1");
    let body: serde_json::Value = serde_json::from_str(&legacy_body(&error, tracking())).expect("JSON");
    let message = body["Message"].as_str().expect("text");
    let mut parts = message.split(';');
    assert_eq!(
        parts.next().and_then(|p| p.split(':').nth(1)),
        Some("DeviceNotFound")
    );
    assert_eq!(parts.next(), Some("no device d1"));
}
