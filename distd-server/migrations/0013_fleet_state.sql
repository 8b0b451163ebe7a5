-- State of the fleet (docs/fleet.md): sums over all devices are read from one index, without a join.

-- Number of channels that the node follows, by its newest report.
ALTER TABLE node_reports ADD COLUMN follows BIGINT NOT NULL DEFAULT 0;
UPDATE node_reports SET follows = (SELECT COUNT(*) FROM node_running r WHERE r.node = node_reports.node);
CREATE INDEX node_reports_received ON node_reports (received, follows, node);

-- Copies of what the sums are over: the time of the report, and the newest attempt at the rollout that was under way
-- on the channel then. An attempt at any other rollout says nothing about the channel.
ALTER TABLE node_running ADD COLUMN received BIGINT NOT NULL DEFAULT 0;
ALTER TABLE node_running ADD COLUMN rollout TEXT;
ALTER TABLE node_running ADD COLUMN attempt BIGINT;
ALTER TABLE node_running ADD COLUMN attempt_state TEXT;
ALTER TABLE node_running ADD COLUMN failure TEXT;
UPDATE node_running SET
    received = COALESCE((SELECT p.received FROM node_reports p WHERE p.node = node_running.node), 0),
    rollout = (SELECT o.id FROM rollouts o WHERE o.product = node_running.product AND o.channel = node_running.channel
               AND o.state IN ('open', 'paused', 'halted'));
UPDATE node_running SET
    attempt = (SELECT a.number FROM rollout_attempts a WHERE a.rollout = node_running.rollout AND a.node = node_running.node),
    attempt_state = (SELECT a.state FROM rollout_attempts a WHERE a.rollout = node_running.rollout AND a.node = node_running.node),
    failure = (SELECT a.failure FROM rollout_attempts a WHERE a.rollout = node_running.rollout AND a.node = node_running.node)
    WHERE rollout IS NOT NULL;
UPDATE node_running SET rollout = NULL WHERE attempt_state IS NULL;
DROP INDEX node_running_channel;
CREATE INDEX node_running_state ON node_running
    (product, channel, version, held, rollout, attempt_state, attempt, failure, received, node);

-- The devices that count, and the few nodes whose reports do not.
CREATE INDEX nodes_devices ON nodes (id) WHERE role = 'leaf' AND revoked IS NULL;
CREATE INDEX nodes_others ON nodes (id) WHERE revoked IS NOT NULL OR role <> 'leaf';
