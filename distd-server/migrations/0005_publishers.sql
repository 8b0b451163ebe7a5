-- Publishers are apart: tokens are for products, uploads are their token's (docs/http-api.md, "Tokens").

-- Patterns of products, separated by commas. Tokens from before are for all products.
ALTER TABLE api_tokens ADD COLUMN products TEXT NOT NULL DEFAULT '*';
-- Id of the token that began an upload. Those from before are nobody's, and end within a day.
ALTER TABLE uploads ADD COLUMN token TEXT NOT NULL DEFAULT '';
-- The token's products, as they were then.
ALTER TABLE uploads ADD COLUMN products TEXT NOT NULL DEFAULT '';
DROP INDEX uploads_open;
CREATE UNIQUE INDEX uploads_open ON uploads (product, version, token) WHERE state = 'open';
-- Row by which changes of tokens take turns.
INSERT INTO counters (name, value) VALUES ('tokens', 0);
