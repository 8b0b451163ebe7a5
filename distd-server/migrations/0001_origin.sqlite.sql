-- The origin's first schema (docs/database.md). Add files, never edit this one.
-- Times are unix seconds; hashes and public keys are blobs.

CREATE TABLE counters (
    name  TEXT PRIMARY KEY NOT NULL,
    value BIGINT NOT NULL
);
-- The last chunk id given.
INSERT INTO counters (name, value) VALUES ('chunk_id', 0);

CREATE TABLE products (
    name    TEXT PRIMARY KEY NOT NULL,
    cut_min BIGINT NOT NULL,
    cut_avg BIGINT NOT NULL,
    cut_max BIGINT NOT NULL,
    created BIGINT NOT NULL
);

CREATE TABLE releases (
    product     TEXT NOT NULL REFERENCES products (name),
    version     TEXT NOT NULL,
    manifest    BLOB NOT NULL,
    blake3      BLOB NOT NULL,
    bytes       BIGINT NOT NULL,
    chunk_count BIGINT NOT NULL,
    kind        TEXT NOT NULL,
    created     BIGINT NOT NULL,
    created_by  TEXT NOT NULL,
    -- When the TUF repository first listed it; NULL until then.
    published   BIGINT,
    PRIMARY KEY (product, version)
);
CREATE INDEX releases_manifest ON releases (manifest);

CREATE TABLE channels (
    product TEXT NOT NULL,
    channel TEXT NOT NULL,
    version TEXT NOT NULL,
    counter BIGINT NOT NULL,
    updated BIGINT NOT NULL,
    PRIMARY KEY (product, channel),
    FOREIGN KEY (product, version) REFERENCES releases (product, version)
);

CREATE TABLE uploads (
    id         TEXT PRIMARY KEY NOT NULL,
    product    TEXT NOT NULL REFERENCES products (name),
    version    TEXT NOT NULL,
    state      TEXT NOT NULL CHECK (state IN ('open', 'committed', 'aborted')),
    created    BIGINT NOT NULL,
    expires    BIGINT NOT NULL,
    created_by TEXT NOT NULL
);
CREATE UNIQUE INDEX uploads_open ON uploads (product, version) WHERE state = 'open';

CREATE TABLE packs (
    -- AUTOINCREMENT: an id is never given twice, so it may key a cache.
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    object  TEXT NOT NULL UNIQUE,
    bytes   BIGINT NOT NULL,
    -- The upload that brought it while that is open; NULL once committed.
    upload  TEXT REFERENCES uploads (id),
    created BIGINT NOT NULL
);
CREATE INDEX packs_upload ON packs (upload) WHERE upload IS NOT NULL;

CREATE TABLE chunks (
    id          INTEGER PRIMARY KEY,
    hash        BLOB NOT NULL UNIQUE,
    pack        BIGINT NOT NULL REFERENCES packs (id),
    pack_offset BIGINT NOT NULL,
    stored_len  BIGINT NOT NULL,
    raw_len     BIGINT NOT NULL,
    codec       BIGINT NOT NULL
);
CREATE INDEX chunks_pack ON chunks (pack);

-- Chunks that are durable in a pack and not yet part of any release.
CREATE TABLE upload_chunks (
    upload      TEXT NOT NULL REFERENCES uploads (id),
    hash        BLOB NOT NULL,
    pack        BIGINT NOT NULL REFERENCES packs (id),
    pack_offset BIGINT NOT NULL,
    stored_len  BIGINT NOT NULL,
    raw_len     BIGINT NOT NULL,
    codec       BIGINT NOT NULL,
    PRIMARY KEY (upload, hash)
) WITHOUT ROWID;
CREATE INDEX upload_chunks_pack ON upload_chunks (pack);

CREATE TABLE nodes (
    id           TEXT PRIMARY KEY NOT NULL,
    public_key   BLOB NOT NULL UNIQUE,
    role         TEXT NOT NULL,
    label        TEXT NOT NULL,
    enrolled     BIGINT NOT NULL,
    cert_serial  TEXT NOT NULL,
    cert_expires BIGINT NOT NULL,
    revoked      BIGINT
);

CREATE TABLE join_tokens (
    public_key TEXT PRIMARY KEY NOT NULL,
    role       TEXT NOT NULL,
    uses_left  BIGINT NOT NULL CHECK (uses_left >= 0),
    expires    BIGINT NOT NULL,
    label      TEXT NOT NULL,
    created    BIGINT NOT NULL
);

CREATE TABLE join_token_uses (
    token TEXT NOT NULL REFERENCES join_tokens (public_key) ON DELETE CASCADE,
    node  TEXT NOT NULL,
    used  BIGINT NOT NULL,
    PRIMARY KEY (token, node)
);

CREATE TABLE api_tokens (
    secret_sha256 BLOB PRIMARY KEY NOT NULL,
    label         TEXT NOT NULL,
    scopes        TEXT NOT NULL,
    created       BIGINT NOT NULL,
    expires       BIGINT,
    revoked       BIGINT
);
