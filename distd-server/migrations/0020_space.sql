-- Space: withdrawn releases that can come back, releases and patch sets whose bytes go, policies, pins and quotas.

-- When a removal of the release began; its bytes go when the grace is over. NULL: they stay.
ALTER TABLE releases ADD COLUMN removing BIGINT;
-- Until now a release was withdrawn only to be removed.
UPDATE releases SET removing = withdrawn WHERE withdrawn IS NOT NULL;
CREATE INDEX releases_withdrawn ON releases (withdrawn) WHERE withdrawn IS NOT NULL;
CREATE INDEX releases_removing ON releases (removing) WHERE removing IS NOT NULL;
-- Id of the token that committed it, and stored bytes of the chunks that came with it; '' and 0 for earlier releases.
ALTER TABLE releases ADD COLUMN token TEXT NOT NULL DEFAULT '';
ALTER TABLE releases ADD COLUMN stored BIGINT NOT NULL DEFAULT 0;
CREATE INDEX releases_token ON releases (token) WHERE token <> '';

-- As for releases.
ALTER TABLE patch_sets ADD COLUMN removing BIGINT;
CREATE INDEX patch_sets_removing ON patch_sets (removing) WHERE removing IS NOT NULL;

CREATE TABLE retention (
    product   TEXT PRIMARY KEY NOT NULL REFERENCES products (name),
    -- The newest releases that are kept, by number and by age in days; NULL: none for this reason.
    keep      BIGINT,
    days      BIGINT,
    -- 1 when the policy may leave the product without a release.
    may_empty BIGINT NOT NULL
);

CREATE TABLE release_pins (
    product TEXT NOT NULL,
    version TEXT NOT NULL,
    why     TEXT NOT NULL,
    pinned  BIGINT NOT NULL,
    -- Label of the token.
    label   TEXT NOT NULL,
    PRIMARY KEY (product, version),
    FOREIGN KEY (product, version) REFERENCES releases (product, version) ON DELETE CASCADE
);

CREATE TABLE quotas (
    kind     TEXT NOT NULL CHECK (kind IN ('product', 'token')),
    -- Name of the product, id of the token.
    name     TEXT NOT NULL,
    -- Bytes of new chunks, and of releases; NULL: no bound.
    stored   BIGINT,
    released BIGINT,
    PRIMARY KEY (kind, name)
);

-- When releases and patch sets were last collected, unix seconds.
INSERT INTO counters (name, value) VALUES ('gc', 0);
