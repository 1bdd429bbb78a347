-- Fleet management: configurations and deployments, what they have done to twins, and jobs.

-- `configurations` is the member of the twin document: {"id":{"status":"Applied"}}. `managed` is the JSON form of
-- model::twin::Managed.
ALTER TABLE twins ADD COLUMN configurations TEXT NOT NULL DEFAULT '{}';
ALTER TABLE twins ADD COLUMN managed TEXT;

-- The same by configuration, for counting and for finding what a configuration has touched. Kept by triggers, so that
-- it is never apart from the twins.
CREATE TABLE twin_configurations (
    id            INTEGER NOT NULL REFERENCES identities (id) ON DELETE CASCADE,
    configuration TEXT NOT NULL,
    status        TEXT NOT NULL,
    PRIMARY KEY (id, configuration)
) STRICT, WITHOUT ROWID;
CREATE INDEX twin_configurations_by_configuration ON twin_configurations (configuration, status, id);
CREATE TRIGGER twin_configured AFTER UPDATE OF configurations ON twins
    WHEN old.configurations <> new.configurations BEGIN
    DELETE FROM twin_configurations WHERE id = new.id;
    INSERT INTO twin_configurations
        SELECT new.id, key, value ->> 'status' FROM json_each(new.configurations);
END;
CREATE TRIGGER twin_added_configured AFTER INSERT ON twins WHEN new.configurations <> '{}' BEGIN
    INSERT INTO twin_configurations
        SELECT new.id, key, value ->> 'status' FROM json_each(new.configurations);
END;

-- Documents are the JSON forms of model::configuration; nothing is searched but the id.
CREATE TABLE configurations (
    id       TEXT PRIMARY KEY,
    version  INTEGER NOT NULL,
    document TEXT NOT NULL
) STRICT;

-- Jobs in the order of their creation. `document` is the JSON form of model::job::JobSpec; the counts are of the rows in
-- device_jobs by status, kept in the same transactions. `cursor` is where the search for targets goes
-- on; null at its beginning.
CREATE TABLE jobs (
    number      INTEGER PRIMARY KEY AUTOINCREMENT,
    id          TEXT NOT NULL UNIQUE,
    type        TEXT NOT NULL,
    status      TEXT NOT NULL,
    created_at  INTEGER NOT NULL,
    start_at    INTEGER NOT NULL,
    started_at  INTEGER,
    ended_at    INTEGER,
    failure     TEXT,
    document    TEXT NOT NULL,
    cursor      TEXT,
    expanded    INTEGER NOT NULL DEFAULT 0,
    pending     INTEGER NOT NULL DEFAULT 0,
    running     INTEGER NOT NULL DEFAULT 0,
    succeeded   INTEGER NOT NULL DEFAULT 0,
    failed      INTEGER NOT NULL DEFAULT 0,
    canceled    INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX jobs_by_status ON jobs (status, number);

-- One row for each device or module of a job. History: rows outlive the device. `job` is jobs.number; module_id is
-- empty for a device.
CREATE TABLE device_jobs (
    job        INTEGER NOT NULL REFERENCES jobs (number) ON DELETE CASCADE,
    device_id  TEXT NOT NULL,
    module_id  TEXT NOT NULL,
    status     TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    ended_at   INTEGER,
    updated_at INTEGER NOT NULL,
    outcome    TEXT, -- JSON {"deviceMethodResponse":{"status","payload"}}
    error      TEXT, -- JSON {"code","description"}
    PRIMARY KEY (job, device_id, module_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX device_jobs_unfinished ON device_jobs (job, status, device_id, module_id)
    WHERE status = 'pending' OR status = 'running';
CREATE INDEX device_jobs_by_device ON device_jobs (device_id, module_id, job);

-- Indexes that the store makes by itself for places that queries look at. Each has a table query_index_<number> with a
-- row for every identity, (module, kind, value, id), kept by triggers from the moment it exists; rows from before are
-- added in steps. `target` is the place as a query writes it, `state` 0 filling (up to the id `filled_to`), 1 ready,
-- 2 being taken away.
CREATE TABLE query_indexes (
    number    INTEGER PRIMARY KEY AUTOINCREMENT,
    target    TEXT NOT NULL UNIQUE,
    state     INTEGER NOT NULL,
    filled_to INTEGER NOT NULL,
    used_at   INTEGER NOT NULL
) STRICT;
