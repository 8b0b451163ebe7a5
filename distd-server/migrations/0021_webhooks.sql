-- Webhooks: addresses of operators, and events on their way there.

CREATE TABLE webhooks (
    id           TEXT PRIMARY KEY NOT NULL,
    url          TEXT NOT NULL,
    -- Kinds of events, separated by commas; '' for every kind.
    events       TEXT NOT NULL,
    label        TEXT NOT NULL,
    -- Key of the signatures. It signs, so its hash would not do.
    secret       BYTEA NOT NULL,
    created      BIGINT NOT NULL,
    -- Events that were not kept because too many waited.
    lost         BIGINT NOT NULL,
    -- When an event was taken last; since when every try has failed, and why the newest one did.
    delivered    BIGINT,
    failing      BIGINT,
    error        TEXT,
    -- When the next try may be made: a receiver that does not answer gets all of its events later.
    paused_until BIGINT NOT NULL
);

CREATE TABLE webhook_deliveries (
    webhook TEXT NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
    -- Grows with each event.
    number  BIGINT NOT NULL,
    message TEXT NOT NULL,
    event   TEXT NOT NULL,
    at      BIGINT NOT NULL,
    body    TEXT NOT NULL,
    state   TEXT NOT NULL CHECK (state IN ('waiting', 'delivered', 'given_up')),
    tries   BIGINT NOT NULL,
    -- When it is tried next, or its last change when it is not.
    next_at BIGINT NOT NULL,
    result  TEXT,
    PRIMARY KEY (webhook, number)
);
CREATE INDEX webhook_deliveries_state ON webhook_deliveries (state, webhook, number);

-- When it was said that a quota is nearly full; NULL when that is not so.
ALTER TABLE quotas ADD COLUMN told BIGINT;

INSERT INTO counters (name, value) VALUES ('webhook', 0);
