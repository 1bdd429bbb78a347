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
