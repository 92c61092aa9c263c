-- What trainers ask for. Rollouts that were queued under an idempotency key have ids that follow from it, and the fingerprint
-- of their batch. The position of a rollout in `queue` is queue_band * 2^48 + queue_position.

ALTER TABLE rollouts ADD COLUMN fingerprint TEXT;
ALTER TABLE rollouts ADD COLUMN end_reason TEXT;
ALTER TABLE rollouts ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
ALTER TABLE rollouts ADD COLUMN queue_band INTEGER NOT NULL DEFAULT 0;
ALTER TABLE rollouts ADD COLUMN uncounted_attempts INTEGER NOT NULL DEFAULT 0;
ALTER TABLE attempts ADD COLUMN counts INTEGER NOT NULL DEFAULT 1;
UPDATE rollouts SET end_reason = CASE status WHEN 'cancelled' THEN 'cancelled' ELSE coalesce((
    SELECT CASE a.status WHEN 'timeout' THEN 'timeout' WHEN 'unresponsive' THEN 'worker_lost' END
    FROM attempts a WHERE a.rollout = rollouts.number AND a.attempt_id = rollouts.latest_attempt_id
), 'error') END
WHERE status IN ('failed', 'cancelled');

-- An index of the members of metadata whose keys begin with "lightning.": KEY=JSON. See lightning_store/labels.py.

CREATE TABLE labels (
    label TEXT NOT NULL,
    rollout INTEGER NOT NULL,
    PRIMARY KEY (label, rollout)
) WITHOUT ROWID;
INSERT OR IGNORE INTO labels SELECT label, rollout FROM (
    SELECT p.rollout AS rollout, m.key || '=' || CASE m.type
        WHEN 'true' THEN 'true' WHEN 'false' THEN 'false' WHEN 'null' THEN 'null' ELSE json_quote(m.value) END AS label
    FROM payloads p CROSS JOIN json_each(p.metadata_json) m
    WHERE (instr(p.metadata_json, 'lightning.') OR instr(p.metadata_json, '\'))
        AND substr(m.key, 1, 10) = 'lightning.' AND m.type NOT IN ('array', 'object')
) WHERE length(label) <= 512;
