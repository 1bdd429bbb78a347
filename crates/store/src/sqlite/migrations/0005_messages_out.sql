-- Messages out: file uploads.

-- Uploads that devices have begun and not told the end of; expired ones are kept for a while, so that a device that is
-- late learns it.
CREATE TABLE uploads (
    correlation_id TEXT PRIMARY KEY,
    device         INTEGER NOT NULL REFERENCES identities (id) ON DELETE CASCADE,
    blob_name      TEXT NOT NULL,
    begun_at       INTEGER NOT NULL,
    expires_at     INTEGER NOT NULL
) STRICT;
CREATE INDEX uploads_by_device ON uploads (device, expires_at);
CREATE INDEX uploads_by_expiry ON uploads (expires_at);

-- Notifications of uploads for services, in the order of the uploads' ends.
CREATE TABLE file_notifications (
    number          INTEGER PRIMARY KEY AUTOINCREMENT,
    device_id       TEXT NOT NULL,
    blob_uri        TEXT NOT NULL,
    blob_name       TEXT NOT NULL,
    blob_size       INTEGER NOT NULL,
    blob_updated_at INTEGER NOT NULL,
    enqueued_at     INTEGER NOT NULL,
    expires_at      INTEGER NOT NULL,
    delivery_count  INTEGER NOT NULL DEFAULT 0,
    lock_nonce      INTEGER,
    lock_until      INTEGER
) STRICT;
CREATE INDEX file_notifications_ready ON file_notifications (number) WHERE lock_nonce IS NULL;
CREATE INDEX file_notifications_locked ON file_notifications (lock_until) WHERE lock_nonce IS NOT NULL;
CREATE INDEX file_notifications_by_expiry ON file_notifications (expires_at);
