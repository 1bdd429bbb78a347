-- Message routing.

-- Events that an endpoint did not take; the event itself stays in the event log. `number` counts burials.
CREATE TABLE dead_letters (
    number          INTEGER PRIMARY KEY AUTOINCREMENT,
    endpoint        TEXT NOT NULL,
    partition       INTEGER NOT NULL,
    sequence_number INTEGER NOT NULL,
    identity        TEXT NOT NULL,
    at              INTEGER NOT NULL,
    reason          TEXT NOT NULL,
    UNIQUE (endpoint, partition, sequence_number)
) STRICT;
CREATE INDEX dead_letters_by_endpoint ON dead_letters (endpoint, number);

-- Events that were stored with the change they tell of and are not in the event log yet, in the order of the changes.
-- `source` as in the event log's blocks; `record` is one encoded record; `twin` is JSON for routing conditions.
CREATE TABLE outbox (
    number   INTEGER PRIMARY KEY,
    source   INTEGER NOT NULL,
    identity TEXT NOT NULL,
    record   BLOB NOT NULL,
    twin     TEXT
) STRICT;
