-- The order of a product's releases, and who moved which channel where (docs/trust.md, "Downgrades").

-- Number of a release among those of its product: grows with each, and is never given twice. Releases from before there
-- were numbers get theirs by when they were made; later ones are numbered by the time, far above.
ALTER TABLE releases ADD COLUMN sequence BIGINT NOT NULL DEFAULT 0;
UPDATE releases SET sequence = numbered.sequence FROM (
    SELECT product, version, ROW_NUMBER() OVER (PARTITION BY product ORDER BY created, published, version) AS sequence
    FROM releases
) AS numbered WHERE numbered.product = releases.product AND numbered.version = releases.version;
-- The last number given.
ALTER TABLE products ADD COLUMN last_sequence BIGINT NOT NULL DEFAULT 0;
UPDATE products SET last_sequence =
    COALESCE((SELECT MAX(sequence) FROM releases WHERE releases.product = products.name), 0);
-- Devices with releases up to this number may come back to what the channel points to; NULL where that was not ordered.
ALTER TABLE channels ADD COLUMN downgrade_from BIGINT;

-- What became of channels. Added to, never changed, never deleted.
CREATE TABLE channel_moves (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    product        TEXT NOT NULL,
    channel        TEXT NOT NULL,
    moved          BIGINT NOT NULL,
    -- NULL when the channel was made.
    from_version   TEXT,
    -- NULL when it was removed.
    to_version     TEXT,
    -- The highest number of a release that the channel has pointed to until then.
    highest        BIGINT NOT NULL,
    -- As in channels.
    downgrade_from BIGINT,
    -- Id and label of the token; '' when the origin did it by itself.
    token          TEXT NOT NULL,
    label          TEXT NOT NULL
);
CREATE INDEX channel_moves_channel ON channel_moves (product, channel, id);
-- Channels from before: where they were found.
INSERT INTO channel_moves (product, channel, moved, from_version, to_version, highest, downgrade_from, token, label)
    SELECT c.product, c.channel, c.updated, NULL, c.version, r.sequence, NULL, '', ''
    FROM channels c JOIN releases r ON r.product = c.product AND r.version = c.version
    ORDER BY c.product, c.channel;
