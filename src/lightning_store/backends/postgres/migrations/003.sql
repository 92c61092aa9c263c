-- What somebody holds a snapshot of is not cleaned up, and neither is what was deleted or replaced since: whoever looks for the
-- first row of the queue, or for the present row of a worker, must not walk through all of it.

-- Lower bounds: the queue has no position before the first, and no rollout has a deadline before the second.
ALTER TABLE log
    ADD COLUMN queue_from bigint NOT NULL DEFAULT -9223372036854775808,
    ADD COLUMN due_from double precision NOT NULL DEFAULT '-Infinity';

-- A worker's row is replaced by one with a greater version, the id of the transaction in `log`, and found from that end.
ALTER TABLE workers
    DROP CONSTRAINT workers_pkey,
    DROP CONSTRAINT workers_worker_id_key,
    ADD COLUMN version bigint NOT NULL DEFAULT 0,
    ADD PRIMARY KEY (worker_id, version);

-- Recorded replies are found by age in the order of their numbers, which are given like all others.
ALTER TABLE log ADD COLUMN last_reply bigint NOT NULL DEFAULT 0;
UPDATE log SET last_reply = (SELECT coalesce(max(number), 0) FROM replies);
ALTER TABLE replies ALTER COLUMN number DROP IDENTITY;
DROP INDEX replies_by_time;

-- Columns that indices depend on change as rarely as can be, so that most updates of a rollout leave the indices alone.
ALTER TABLE rollouts
    ADD COLUMN has_spans boolean GENERATED ALWAYS AS (span_bytes > 0) STORED,
    ADD COLUMN is_open boolean GENERATED ALWAYS AS
        (group_id IS NOT NULL AND consumers = 0 AND status <> 'failed' AND status <> 'cancelled') STORED;
DROP INDEX rollouts_with_spans;
CREATE INDEX rollouts_with_spans ON rollouts (end_time, number) WHERE has_spans;
DROP INDEX rollouts_open;
CREATE INDEX rollouts_open ON rollouts (run, group_id) WHERE is_open;

-- What is long is compressed by LZ4, which takes less time, where PostgreSQL was built with it.
DO $$ BEGIN
    ALTER TABLE spans ALTER COLUMN document SET COMPRESSION lz4;
    ALTER TABLE replies ALTER COLUMN body SET COMPRESSION lz4;
    ALTER TABLE resources ALTER COLUMN resources_json SET COMPRESSION lz4;
    ALTER TABLE payloads
        ALTER COLUMN input_json SET COMPRESSION lz4,
        ALTER COLUMN metadata_json SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN NULL;
END $$;

-- A program that does not know these columns writes nothing: they would say what is not so.
ALTER TABLE log
    ALTER COLUMN queue_from DROP DEFAULT,
    ALTER COLUMN due_from DROP DEFAULT,
    ALTER COLUMN last_reply DROP DEFAULT;
