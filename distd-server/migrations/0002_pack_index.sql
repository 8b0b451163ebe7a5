-- The chunks of an open upload are no rows of their own: the pack that holds them carries its index (docs/store.md,
-- "Pack") until it is committed. Uploads under way start again; their packs become orphans, which the sweep deletes.

UPDATE uploads SET state = 'aborted' WHERE state = 'open';
DROP TABLE upload_chunks;
DELETE FROM packs WHERE upload IS NOT NULL;
ALTER TABLE packs ADD COLUMN chunk_index BYTEA;
