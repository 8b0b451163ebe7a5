-- Nodes by a label, for selectors in a large fleet.
CREATE INDEX node_labels_value ON node_labels (key, value, source, node);

-- The oldest program that works on this schema, by the number of the last migration that it knows (docs/replicas.md,
-- "Upgrades"). A migration that an older program cannot live with raises the number.
CREATE TABLE schema_floor (
    id        BIGINT PRIMARY KEY NOT NULL,
    migration BIGINT NOT NULL
);
INSERT INTO schema_floor (id, migration) VALUES (1, 22);
