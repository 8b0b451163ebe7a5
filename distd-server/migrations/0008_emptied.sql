-- Packs whose chunks were moved to other packs (docs/store.md, "Compaction").

-- Since when no chunk lies in it; its object stays for a day, for those who read it.
ALTER TABLE packs ADD COLUMN emptied BIGINT;
CREATE INDEX packs_emptied ON packs (emptied) WHERE emptied IS NOT NULL;
