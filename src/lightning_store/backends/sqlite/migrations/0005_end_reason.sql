-- Why a rollout did not succeed.

ALTER TABLE rollouts ADD COLUMN end_reason TEXT;
UPDATE rollouts SET end_reason = CASE status WHEN 'cancelled' THEN 'cancelled' ELSE coalesce((
    SELECT CASE a.status WHEN 'timeout' THEN 'timeout' WHEN 'unresponsive' THEN 'worker_lost' END
    FROM attempts a WHERE a.rollout = rollouts.number AND a.attempt_id = rollouts.latest_attempt_id
), 'error') END
WHERE status IN ('failed', 'cancelled');
