-- Several origins on one database and one store, and workers that make patch sets (docs/replicas.md).

CREATE TABLE leader (
    id BIGINT PRIMARY KEY,
    epoch BIGINT NOT NULL,
    holder TEXT NOT NULL,
    address TEXT NOT NULL,
    secret TEXT NOT NULL,
    until BIGINT NOT NULL
);

CREATE TABLE replicas (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    address TEXT NOT NULL,
    version TEXT NOT NULL,
    seen BIGINT NOT NULL
);

ALTER TABLE patch_sets ADD COLUMN worker TEXT NOT NULL DEFAULT '';
ALTER TABLE patch_sets ADD COLUMN held_until BIGINT NOT NULL DEFAULT 0;
ALTER TABLE patch_sets ADD COLUMN unlisted BIGINT NOT NULL DEFAULT 0;
