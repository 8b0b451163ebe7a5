-- Patch sets: what rebuilds a release's new chunks from an older release (docs/store.md, "Patch sets").

CREATE TABLE patch_sets (
    product       TEXT NOT NULL REFERENCES products (name),
    from_version  TEXT NOT NULL,
    to_version    TEXT NOT NULL,
    from_manifest BYTEA NOT NULL,
    to_manifest   BYTEA NOT NULL,
    state         TEXT NOT NULL CHECK (state IN ('queued', 'building', 'ready', 'failed')),
    -- Manifest of the set; NULL until it is ready, and then too when no patch saves anything.
    set_manifest  BYTEA,
    -- Length of the set, and what its targets cost as chunks.
    bytes         BIGINT NOT NULL DEFAULT 0,
    packed        BIGINT NOT NULL DEFAULT 0,
    patches       BIGINT NOT NULL DEFAULT 0,
    requested_by  TEXT NOT NULL,
    error         TEXT,
    created       BIGINT NOT NULL,
    started       BIGINT,
    finished      BIGINT,
    PRIMARY KEY (product, from_manifest, to_manifest)
);
CREATE INDEX patch_sets_waiting ON patch_sets (created) WHERE state = 'queued';
CREATE INDEX patch_sets_set ON patch_sets (set_manifest) WHERE set_manifest IS NOT NULL;
