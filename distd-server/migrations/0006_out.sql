-- What is out stays out: join tokens that are revoked, releases that are withdrawn.

ALTER TABLE join_tokens ADD COLUMN revoked BIGINT;
-- Since when a release is on its way out: it is no release any more, and its row goes when its contents can.
ALTER TABLE releases ADD COLUMN withdrawn BIGINT;
