-- The log of receipts (docs/receipts.md): entries of a Merkle tree. Added to, never changed, never
-- deleted.
CREATE TABLE receipt_log (
    -- From 0, without gaps.
    number  BIGINT PRIMARY KEY NOT NULL,
    -- Hash of the entry, RFC 6962.
    hash    BLOB NOT NULL UNIQUE,
    at      BIGINT NOT NULL,
    kind    TEXT NOT NULL,
    -- Node, rollout or log that the entry is about.
    subject TEXT NOT NULL,
    entry   BLOB NOT NULL
);

CREATE INDEX receipt_log_subject ON receipt_log (subject, number);

-- Hashes of complete subtrees above the entries.
CREATE TABLE receipt_tree (
    level BIGINT NOT NULL,
    place BIGINT NOT NULL,
    hash  BLOB NOT NULL,
    PRIMARY KEY (level, place)
);

-- Ids of the log, the last one in force: another one begins when entries were lost.
CREATE TABLE receipt_logs (
    number BIGINT PRIMARY KEY NOT NULL,
    id     TEXT NOT NULL,
    began  BIGINT NOT NULL
);

-- What each node says about the log.
CREATE TABLE node_logs (
    node     TEXT PRIMARY KEY NOT NULL,
    size     BIGINT NOT NULL,
    head_at  BIGINT NOT NULL,
    fault    TEXT NOT NULL,
    hidden   BIGINT NOT NULL,
    received BIGINT NOT NULL
);

-- Number of entries; its row serialises those that are added.
INSERT INTO counters (name, value) VALUES ('receipts', 0);

CREATE TRIGGER receipt_log_update BEFORE UPDATE ON receipt_log
BEGIN SELECT RAISE(ABORT, 'the log of receipts is only added to'); END;
CREATE TRIGGER receipt_log_delete BEFORE DELETE ON receipt_log
BEGIN SELECT RAISE(ABORT, 'the log of receipts is only added to'); END;
CREATE TRIGGER receipt_tree_update BEFORE UPDATE ON receipt_tree
BEGIN SELECT RAISE(ABORT, 'the log of receipts is only added to'); END;
CREATE TRIGGER receipt_tree_delete BEFORE DELETE ON receipt_tree
BEGIN SELECT RAISE(ABORT, 'the log of receipts is only added to'); END;
CREATE TRIGGER receipt_logs_update BEFORE UPDATE ON receipt_logs
BEGIN SELECT RAISE(ABORT, 'the log of receipts is only added to'); END;
CREATE TRIGGER receipt_logs_delete BEFORE DELETE ON receipt_logs
BEGIN SELECT RAISE(ABORT, 'the log of receipts is only added to'); END;
