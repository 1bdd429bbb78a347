-- The first schema: registry, twins, cloud-to-device queues, sessions, settings, checkpoints.
--
-- Text compares bytewise (BINARY), which is the order the ports promise. Unsigned 64-bit numbers (generations,
-- nonces, epochs) are stored as the signed number with the same bits. Times are microseconds since 1970, UTC.

-- One row of facts about the hub. `boot` counts the openings of this file: session epochs grow from it, and a
-- connection or lock that was noted under an earlier boot is void, without any row having to be touched at start.
CREATE TABLE hub (
    id               INTEGER PRIMARY KEY CHECK (id = 1),
    boot             INTEGER NOT NULL,
    devices_enabled  INTEGER NOT NULL,
    devices_disabled INTEGER NOT NULL
) STRICT;
INSERT INTO hub VALUES (1, 0, 0, 0);

-- Devices (module_id is empty) and modules. Everything that belongs to an identity hangs on `id` and goes with it.
CREATE TABLE identities (
    id                    INTEGER PRIMARY KEY,
    device_id             TEXT NOT NULL,
    module_id             TEXT NOT NULL,
    generation_id         INTEGER NOT NULL,
    version               INTEGER NOT NULL,
    status                TEXT NOT NULL CHECK (status IN ('enabled', 'disabled')),
    status_reason         TEXT,
    status_updated_at     INTEGER NOT NULL,
    auth_type             TEXT NOT NULL,
    auth_primary          TEXT,
    auth_secondary        TEXT,
    iot_edge              INTEGER NOT NULL,
    device_scope          TEXT,
    parent_scopes         TEXT NOT NULL, -- JSON array of strings
    managed_by            TEXT,
    connected_boot        INTEGER NOT NULL, -- connected, if this is hub.boot
    connection_updated_at INTEGER NOT NULL,
    last_activity_at      INTEGER NOT NULL,
    UNIQUE (device_id, module_id)
) STRICT;
CREATE INDEX identities_by_edge_scope ON identities (device_scope) WHERE iot_edge = 1;

-- The counts of devices are kept by triggers, so that they are right whoever writes, and cost nothing to read.
CREATE TRIGGER device_added AFTER INSERT ON identities WHEN new.module_id = '' BEGIN
    UPDATE hub SET devices_enabled = devices_enabled + (new.status = 'enabled'),
                   devices_disabled = devices_disabled + (new.status = 'disabled');
END;
CREATE TRIGGER device_deleted AFTER DELETE ON identities WHEN old.module_id = '' BEGIN
    UPDATE hub SET devices_enabled = devices_enabled - (old.status = 'enabled'),
                   devices_disabled = devices_disabled - (old.status = 'disabled');
END;
CREATE TRIGGER device_changed AFTER UPDATE OF status ON identities
    WHEN new.module_id = '' AND old.status <> new.status BEGIN
    UPDATE hub SET devices_enabled = devices_enabled + (new.status = 'enabled') - (old.status = 'enabled'),
                   devices_disabled = devices_disabled + (new.status = 'disabled') - (old.status = 'disabled');
END;

-- Sections are JSON objects as text, so that queries reach into them with json_extract. Small columns come first: a
-- query on tags then does not follow the overflow pages of a large twin.
CREATE TABLE twins (
    id                INTEGER PRIMARY KEY REFERENCES identities (id) ON DELETE CASCADE,
    version           INTEGER NOT NULL,
    desired_version   INTEGER NOT NULL,
    reported_version  INTEGER NOT NULL,
    model_id          TEXT,
    tags              TEXT NOT NULL,
    reported          TEXT NOT NULL,
    desired           TEXT NOT NULL,
    reported_metadata TEXT NOT NULL,
    desired_metadata  TEXT NOT NULL
) STRICT;

-- Cloud-to-device messages. `system` is a JSON array of [property number, value] (numbers as in
-- model::message::SystemProperty), `properties` a JSON array of [key, value or null]; both keep their order.
-- A message is locked if lock_nonce is set, lock_boot is hub.boot, and lock_until has not come.
CREATE TABLE messages (
    sequence_number INTEGER PRIMARY KEY AUTOINCREMENT,
    identity        INTEGER NOT NULL REFERENCES identities (id) ON DELETE CASCADE,
    generation_id   INTEGER NOT NULL,
    ack             TEXT NOT NULL,
    enqueued_at     INTEGER NOT NULL,
    expires_at      INTEGER NOT NULL,
    delivery_count  INTEGER NOT NULL DEFAULT 0,
    delivered       INTEGER NOT NULL DEFAULT 0,
    lock_nonce      INTEGER,
    lock_owner      INTEGER,
    lock_until      INTEGER,
    lock_boot       INTEGER,
    system          TEXT NOT NULL,
    properties      TEXT NOT NULL,
    body            BLOB NOT NULL
) STRICT;
CREATE INDEX messages_by_identity ON messages (identity, sequence_number);
CREATE INDEX messages_by_expiry ON messages (expires_at);

-- Feedback outlives the device it speaks of. A lock is named by the number of its first record and a nonce.
CREATE TABLE feedback (
    number        INTEGER PRIMARY KEY AUTOINCREMENT,
    enqueued_at   INTEGER NOT NULL,
    status        TEXT NOT NULL,
    message_id    TEXT NOT NULL,
    device_id     TEXT NOT NULL,
    generation_id INTEGER NOT NULL,
    lock_batch    INTEGER,
    lock_nonce    INTEGER,
    lock_until    INTEGER
) STRICT;
CREATE INDEX feedback_locked ON feedback (lock_nonce) WHERE lock_nonce IS NOT NULL;

CREATE TABLE sessions (
    id            INTEGER PRIMARY KEY REFERENCES identities (id) ON DELETE CASCADE,
    subscriptions INTEGER NOT NULL
) STRICT;

CREATE TABLE policies (
    name          TEXT PRIMARY KEY,
    primary_key   TEXT NOT NULL,
    secondary_key TEXT NOT NULL,
    rights        TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE authorities (
    name              TEXT PRIMARY KEY,
    certificate       BLOB NOT NULL,
    verified          INTEGER NOT NULL,
    verification_code TEXT,
    created_at        INTEGER NOT NULL,
    updated_at        INTEGER NOT NULL,
    version           INTEGER NOT NULL
) STRICT;

CREATE TABLE settings (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE consumer_groups (
    name TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;
INSERT INTO consumer_groups VALUES ('$Default');

CREATE TABLE checkpoints (
    reader    TEXT NOT NULL,
    partition INTEGER NOT NULL,
    next      INTEGER NOT NULL,
    PRIMARY KEY (reader, partition)
) STRICT, WITHOUT ROWID;
