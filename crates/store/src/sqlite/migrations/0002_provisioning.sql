-- Device provisioning: enrollments, groups, registrations, linked hubs, policies.
--
-- Ids are in lower case, documents are the JSON forms of model::provisioning. Nothing here is searched by anything but
-- its id or its group, so the documents stay whole.

CREATE TABLE enrollments (
    id       TEXT PRIMARY KEY,
    version  INTEGER NOT NULL,
    document TEXT NOT NULL
) STRICT;

CREATE TABLE enrollment_groups (
    id       TEXT PRIMARY KEY,
    version  INTEGER NOT NULL,
    document TEXT NOT NULL
) STRICT;

-- `group_id` is empty for an individual enrollment.
CREATE TABLE registrations (
    id       TEXT PRIMARY KEY,
    group_id TEXT NOT NULL,
    version  INTEGER NOT NULL,
    document TEXT NOT NULL
) STRICT;
CREATE INDEX registrations_by_group ON registrations (group_id, id) WHERE group_id <> '';

CREATE TABLE linked_hubs (
    id       TEXT PRIMARY KEY,
    document TEXT NOT NULL
) STRICT;

CREATE TABLE provisioning_policies (
    id       TEXT PRIMARY KEY,
    document TEXT NOT NULL
) STRICT;
