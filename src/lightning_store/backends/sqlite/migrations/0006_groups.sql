-- Groups: rollouts that are consumed together.

ALTER TABLE rollouts ADD COLUMN run TEXT;
UPDATE rollouts SET run = (
    SELECT json_extract('[' || substr(label, length('lightning.run=') + 1) || ']', '$[0]')
    FROM labels WHERE rollout = rollouts.number AND label LIKE 'lightning.run="%'
) WHERE number IN (SELECT rollout FROM labels WHERE label LIKE 'lightning.run="%');
ALTER TABLE rollouts ADD COLUMN group_id TEXT;
ALTER TABLE rollouts ADD COLUMN group_size INTEGER;
ALTER TABLE rollouts ADD COLUMN first_claim_time REAL;
CREATE INDEX rollouts_by_group ON rollouts (group_id) WHERE group_id IS NOT NULL;

-- What consumers have consumed. A number is how many checkpoints the consumer had recorded when it marked the rollout; those of
-- checkpoints count from 1.

CREATE TABLE consumed (
    consumer TEXT NOT NULL,
    rollout INTEGER NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (consumer, rollout)
) WITHOUT ROWID;
CREATE INDEX consumed_by_rollout ON consumed (rollout);
CREATE TABLE checkpoints (
    consumer TEXT NOT NULL,
    checkpoint TEXT NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (consumer, checkpoint)
) WITHOUT ROWID;

-- How many groups of a run may be open: begun by somebody, consumed by nobody. Rollouts that have to wait are held.

ALTER TABLE rollouts ADD COLUMN held INTEGER NOT NULL DEFAULT 0;
ALTER TABLE rollouts ADD COLUMN consumers INTEGER NOT NULL DEFAULT 0;
CREATE INDEX rollouts_open ON rollouts (run, group_id)
    WHERE group_id IS NOT NULL AND consumers = 0 AND status NOT IN ('failed', 'cancelled');
CREATE TABLE admissions (
    run TEXT PRIMARY KEY,
    max_open_groups INTEGER,
    paused INTEGER NOT NULL
) WITHOUT ROWID;
