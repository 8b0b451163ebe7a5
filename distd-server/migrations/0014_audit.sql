-- The audit log (docs/fleet.md, "Audit log"). Added to, never changed, never deleted.
CREATE TABLE audit_log (
    number  BIGINT PRIMARY KEY NOT NULL,
    at      BIGINT NOT NULL,
    actor   TEXT NOT NULL,
    label   TEXT NOT NULL,
    action  TEXT NOT NULL,
    subject TEXT NOT NULL,
    -- JSON, as it was hashed.
    details TEXT NOT NULL,
    hash    BYTEA NOT NULL
);

-- Number of the last row; its row serialises those that are added.
INSERT INTO counters (name, value) VALUES ('audit', 0);
