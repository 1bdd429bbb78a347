//! Size and count limits of the hub (rest.md section 19). Sizes are bytes.

/// Longest device or module id.
pub const ID_LEN_MAX: usize = 128;
/// Most modules of one device.
pub const MODULES_PER_DEVICE_MAX: usize = 50;
/// Most identities in one `GET /devices` answer.
pub const DEVICES_PER_LIST_MAX: usize = 1_000;
/// Most entries of one bulk registry request.
pub const BULK_REGISTRY_MAX: usize = 100;
/// Largest telemetry message, body and properties together; also an HTTPS batch.
pub const D2C_BYTES_MAX: usize = 256 * 1024;
/// Most messages in one HTTPS batch.
pub const D2C_BATCH_MESSAGES_MAX: usize = 500;
/// Largest cloud-to-device message.
pub const C2D_BYTES_MAX: usize = 64 * 1024;
/// Most cloud-to-device messages waiting for one device.
pub const C2D_QUEUE_MAX: usize = 50;
/// Default life of a cloud-to-device message, seconds.
pub const C2D_TTL_DEFAULT_SECONDS: u64 = 3_600;
/// Longest life of a cloud-to-device message, seconds.
pub const C2D_TTL_MAX_SECONDS: u64 = 2 * 24 * 3_600;
/// How long a delivered cloud-to-device message stays locked, seconds.
pub const C2D_LOCK_SECONDS: u64 = 60;
/// How often a cloud-to-device message may be abandoned before it is dead.
pub const C2D_DELIVERY_COUNT_MAX: u32 = 10;
/// Most records of one feedback batch.
pub const FEEDBACK_BATCH_MAX: usize = 64;
/// Oldest age of a record at which an unfilled feedback batch closes, seconds.
pub const FEEDBACK_BATCH_SECONDS: u64 = 15;
/// Most file uploads of one device under way.
pub const UPLOADS_PER_DEVICE_MAX: usize = 10;
/// Default life of an upload and of its signature, seconds.
pub const UPLOAD_TTL_DEFAULT_SECONDS: u64 = 3_600;
/// Life of a notification of an upload: default and longest, seconds.
pub const FILE_NOTIFICATION_TTL_SECONDS: (u64, u64) = (3_600, 2 * 24 * 3_600);
/// How long a notification stays locked: least, default and longest, seconds.
pub const FILE_NOTIFICATION_LOCK_SECONDS: (u64, u64, u64) = (5, 60, 300);
/// How often a notification may be abandoned before it is dropped.
pub const FILE_NOTIFICATION_DELIVERY_COUNT_MAX: u32 = 100;
/// Longest name of a blob, characters, that of its device included.
pub const BLOB_NAME_LEN_MAX: usize = 1_024;
/// Largest direct method payload, each way.
pub const METHOD_BYTES_MAX: usize = 128 * 1024;
/// Longest direct method name.
pub const METHOD_NAME_LEN_MAX: usize = 100;
/// Response timeout of a direct method: least, default and most, seconds.
pub const METHOD_RESPONSE_TIMEOUT_SECONDS: (u64, u64, u64) = (5, 30, 300);
/// Longest connect timeout of a direct method, seconds.
pub const METHOD_CONNECT_TIMEOUT_MAX_SECONDS: u64 = 300;
/// Largest `tags` section of a twin.
pub const TWIN_TAGS_BYTES_MAX: usize = 8 * 1024;
/// Largest `desired` or `reported` section of a twin.
pub const TWIN_SECTION_BYTES_MAX: usize = 32 * 1024;
/// Longest key in a twin.
pub const TWIN_KEY_BYTES_MAX: usize = 1024;
/// Longest string value in a twin.
pub const TWIN_STRING_BYTES_MAX: usize = 4096;
/// Deepest nesting below a twin section's root.
pub const TWIN_DEPTH_MAX: usize = 10;
/// Least and greatest integer in a twin.
pub const TWIN_INTEGER_RANGE: (i64, i64) = (-4_503_599_627_370_496, 4_503_599_627_370_495);
/// Most downlink items (method calls, desired patches) waiting in one session's mailbox.
pub const MAILBOX_ITEMS_MAX: usize = 64;
/// Tolerated difference between the clocks of hub and client when a token's expiry is checked, seconds.
pub const CLOCK_SKEW_SECONDS: u64 = 300;
/// Most configurations of devices and modules.
pub const CONFIGURATIONS_MAX: usize = 100;
/// Most edge deployments.
pub const DEPLOYMENTS_MAX: usize = 100;
/// Longest id of a configuration, deployment or job.
pub const FLEET_ID_LEN_MAX: usize = 128;
/// Most metrics of one configuration.
pub const CONFIGURATION_METRICS_MAX: usize = 5;
/// Most labels of one configuration.
pub const CONFIGURATION_LABELS_MAX: usize = 20;
/// Longest query text, target and job conditions included.
pub const QUERY_BYTES_MAX: usize = 8_192;
/// Most modules of one deployment.
pub const DEPLOYMENT_MODULES_MAX: usize = 52;
/// Longest time that a job may run, seconds (48 hours).
pub const JOB_EXECUTION_MAX_SECONDS: u64 = 48 * 3_600;
/// Life of an ended job, seconds (30 days).
pub const JOB_HISTORY_SECONDS: u64 = 30 * 24 * 3_600;
