-- What is ordered by priority first: the position of a rollout in `queue` is queue_band * 2^48 + queue_position.

ALTER TABLE rollouts ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
ALTER TABLE rollouts ADD COLUMN queue_band INTEGER NOT NULL DEFAULT 0;
