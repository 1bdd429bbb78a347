-- Children of edge devices: found by the scope of their parent. A device has one parent at most, so that the whole text
-- of the array is the key.
CREATE INDEX IF NOT EXISTS identities_by_parent ON identities (parent_scopes, device_id)
    WHERE parent_scopes <> '[]' AND module_id = '';
