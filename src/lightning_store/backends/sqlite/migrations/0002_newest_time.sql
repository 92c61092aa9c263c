-- The time of the last change. The next server goes on from there, also where the machine's clock was set back meanwhile.

ALTER TABLE totals ADD COLUMN newest_time REAL NOT NULL DEFAULT 0;
UPDATE totals SET newest_time = (SELECT coalesce(max(recorded_at), 0) FROM replies);
