-- The bytes of an upload's packs are added up for each pack that comes: the index answers that alone.

DROP INDEX packs_upload;
CREATE INDEX packs_upload_bytes ON packs (upload, bytes) WHERE upload IS NOT NULL;
