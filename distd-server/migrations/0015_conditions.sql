-- Conditions of rollouts beside their waves, and the turns that devices have (docs/rollouts.md, "Conditions").

-- JSON object; {} without conditions.
ALTER TABLE rollouts ADD COLUMN conditions TEXT NOT NULL DEFAULT '{}';

-- Devices that were told that they may begin: one row of each node and rollout, however often it asks.
CREATE TABLE rollout_turns (
    rollout   TEXT NOT NULL REFERENCES rollouts (id),
    node      TEXT NOT NULL REFERENCES nodes (id),
    -- Group of the node: the value of the label that the rollout names, '' without it.
    of_group  TEXT NOT NULL,
    -- Number of the attempt that the turn is for.
    number    BIGINT NOT NULL,
    granted   BIGINT NOT NULL,
    -- 1 when the attempt has ended, or was never begun.
    is_over   BIGINT NOT NULL,
    PRIMARY KEY (rollout, node)
);
CREATE INDEX rollout_turns_under_way ON rollout_turns (rollout, is_over, of_group);
CREATE INDEX rollout_turns_granted ON rollout_turns (rollout, granted);

-- Channels whose rollouts a second token approves before their first wave opens. A channel that is removed keeps it.
CREATE TABLE channel_approvals (
    product TEXT NOT NULL,
    channel TEXT NOT NULL,
    PRIMARY KEY (product, channel)
);

-- Whether the rollout waits for an approval: 'none' is needed, one is 'wanted', or 'given'.
ALTER TABLE rollouts ADD COLUMN approval TEXT NOT NULL DEFAULT 'none';
