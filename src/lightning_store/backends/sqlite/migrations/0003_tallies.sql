-- How many rollouts and workers there are of each kind, so that nobody has to count them. Triggers keep the numbers: they see
-- every change, whoever makes it. A mode that is not given is ''.

CREATE TABLE rollout_tallies (
    status TEXT NOT NULL,
    mode TEXT NOT NULL,
    rollouts INTEGER NOT NULL,
    PRIMARY KEY (status, mode)
) WITHOUT ROWID;
INSERT INTO rollout_tallies SELECT status, coalesce(mode, ''), count(*) FROM rollouts GROUP BY 1, 2;

CREATE TRIGGER rollouts_inserted AFTER INSERT ON rollouts BEGIN
    INSERT INTO rollout_tallies VALUES (new.status, coalesce(new.mode, ''), 1)
        ON CONFLICT (status, mode) DO UPDATE SET rollouts = rollouts + 1;
END;
CREATE TRIGGER rollouts_deleted AFTER DELETE ON rollouts BEGIN
    UPDATE rollout_tallies SET rollouts = rollouts - 1 WHERE status = old.status AND mode = coalesce(old.mode, '');
END;
CREATE TRIGGER rollouts_updated AFTER UPDATE OF status, mode ON rollouts
    WHEN old.status <> new.status OR old.mode IS NOT new.mode
BEGIN
    UPDATE rollout_tallies SET rollouts = rollouts - 1 WHERE status = old.status AND mode = coalesce(old.mode, '');
    INSERT INTO rollout_tallies VALUES (new.status, coalesce(new.mode, ''), 1)
        ON CONFLICT (status, mode) DO UPDATE SET rollouts = rollouts + 1;
END;

CREATE TABLE worker_tallies (
    status TEXT PRIMARY KEY,
    workers INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO worker_tallies SELECT status, count(*) FROM workers GROUP BY 1;

CREATE TRIGGER workers_inserted AFTER INSERT ON workers BEGIN
    INSERT INTO worker_tallies VALUES (new.status, 1) ON CONFLICT (status) DO UPDATE SET workers = workers + 1;
END;
CREATE TRIGGER workers_deleted AFTER DELETE ON workers BEGIN
    UPDATE worker_tallies SET workers = workers - 1 WHERE status = old.status;
END;
CREATE TRIGGER workers_updated AFTER UPDATE OF status ON workers WHEN old.status <> new.status BEGIN
    UPDATE worker_tallies SET workers = workers - 1 WHERE status = old.status;
    INSERT INTO worker_tallies VALUES (new.status, 1) ON CONFLICT (status) DO UPDATE SET workers = workers + 1;
END;
