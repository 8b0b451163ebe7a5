-- Whether the removal of a release that is under way is one of a policy (1): it ends when a node runs the release.
ALTER TABLE releases ADD COLUMN by_policy BIGINT NOT NULL DEFAULT 0;
