-- The web page (docs/web.md).

-- People who signed in.
CREATE TABLE web_sessions (
    -- SHA-256 of the secret in the browser's cookie.
    secret_sha256 BYTEA PRIMARY KEY NOT NULL,
    -- The API token with which they signed in: its scopes are theirs, and its end is theirs.
    token         BYTEA NOT NULL REFERENCES api_tokens (secret_sha256),
    created       BIGINT NOT NULL,
    ends          BIGINT NOT NULL
);
CREATE INDEX web_sessions_token ON web_sessions (token, created);

-- Devices by release over time, for charts.
CREATE TABLE fleet_history (
    at      BIGINT NOT NULL,
    product TEXT NOT NULL,
    channel TEXT NOT NULL,
    -- '' for devices that have none yet.
    version TEXT NOT NULL,
    devices BIGINT NOT NULL,
    PRIMARY KEY (product, channel, at, version)
);
CREATE INDEX fleet_history_at ON fleet_history (at);
