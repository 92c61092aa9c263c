-- Each namespace has these tables in a schema of its own. Times are seconds since the epoch. Row numbers and positions are
-- never used twice: the next ones stand in the last row of `log`. What scheduling reads is apart from payloads and documents.

CREATE TABLE meta (
    name text COLLATE "C" PRIMARY KEY,
    value text NOT NULL
);
INSERT INTO meta VALUES ('store_id', replace(gen_random_uuid()::text, '-', ''));

-- One row for each transaction, in the order of their commits: what is stored after it, and what it did that somebody on another
-- server may wait for. Rows are inserted at one end and deleted at the other, so that no snapshot that is held makes the last one
-- hard to find, as it would that of a row that is updated.
CREATE TABLE log (
    id bigint PRIMARY KEY,
    server text COLLATE "C" NOT NULL,
    last_rollout bigint NOT NULL,
    last_attempt bigint NOT NULL,
    last_span bigint NOT NULL,
    last_queue_position bigint NOT NULL,
    last_completion_position bigint NOT NULL,
    rollouts bigint NOT NULL,
    completed bigint NOT NULL,
    attempts bigint NOT NULL,
    spans bigint NOT NULL,
    resources bigint NOT NULL,
    workers bigint NOT NULL,
    span_bytes bigint NOT NULL,
    other_bytes bigint NOT NULL,
    latest_resources text COLLATE "C",
    newest_time double precision NOT NULL,
    tallies text NOT NULL,               -- JSON: how many rollouts have each status and mode, how many workers each status
    ended text[] NOT NULL,
    deleted text[] NOT NULL,
    queued integer NOT NULL,
    deadline double precision            -- the earliest that was set
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
INSERT INTO log VALUES (1, '', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL, 0, '[[], []]', '{}', '{}', 0, NULL);

CREATE TABLE rollouts (
    number bigint PRIMARY KEY,
    rollout_id text COLLATE "C" NOT NULL UNIQUE,
    status text COLLATE "C" NOT NULL,
    mode text COLLATE "C",
    resources_id text COLLATE "C",
    config text,                         -- JSON; NULL for the default
    start_time double precision NOT NULL,
    end_time double precision,
    latest_attempt_id text COLLATE "C",
    queue_position bigint,
    completion_position bigint,
    completion_time double precision,
    deadline double precision,           -- a lower bound
    spans_evicted boolean NOT NULL,
    fingerprint text COLLATE "C",
    end_reason text COLLATE "C",
    priority bigint NOT NULL,
    queue_band bigint NOT NULL,
    uncounted_attempts bigint NOT NULL,
    run text COLLATE "C",
    group_id text COLLATE "C",
    group_size bigint,
    first_claim_time double precision,
    held boolean NOT NULL,
    consumers bigint NOT NULL,
    last_sequence bigint NOT NULL,
    span_bytes bigint NOT NULL,
    payload_bytes bigint NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX rollouts_by_deadline ON rollouts (deadline) WHERE deadline IS NOT NULL;
CREATE INDEX rollouts_with_spans ON rollouts (end_time, number) WHERE span_bytes > 0;
CREATE INDEX rollouts_by_group ON rollouts (group_id) WHERE group_id IS NOT NULL;
CREATE INDEX rollouts_open ON rollouts (run, group_id)
    WHERE group_id IS NOT NULL AND consumers = 0 AND status NOT IN ('failed', 'cancelled');

CREATE TABLE payloads (
    rollout bigint PRIMARY KEY,
    input_json text NOT NULL,
    metadata_json text
);

-- An index of the members of metadata whose keys begin with "lightning.": KEY=JSON.
CREATE TABLE labels (
    label text COLLATE "C" NOT NULL,
    rollout bigint NOT NULL,
    PRIMARY KEY (label, rollout)
);

-- The rollouts that a claim may take: queue_band * 2^48 + queue_position.
CREATE TABLE queue (
    position bigint PRIMARY KEY,
    rollout bigint NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);

-- The rollouts that are terminal, in the order in which they ended.
CREATE TABLE completions (
    position bigint PRIMARY KEY,
    rollout bigint NOT NULL
);

CREATE TABLE attempts (
    number bigint PRIMARY KEY,
    rollout bigint NOT NULL,
    attempt_id text COLLATE "C" NOT NULL,
    sequence_id bigint NOT NULL,
    start_time double precision NOT NULL,
    end_time double precision,
    status text COLLATE "C" NOT NULL,
    worker_id text COLLATE "C",
    last_heartbeat_time double precision,
    metadata_json text,
    counts boolean NOT NULL,
    resources_id text COLLATE "C",
    resources_version bigint,
    policy_version bigint,
    policy_version_min bigint,
    policy_version_max bigint,
    size_bytes bigint NOT NULL,
    UNIQUE (rollout, attempt_id)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);

CREATE TABLE spans (
    number bigint PRIMARY KEY,
    rollout bigint NOT NULL,
    attempt bigint NOT NULL,
    sequence_id bigint NOT NULL,
    trace_id text COLLATE "C" NOT NULL,
    span_id text COLLATE "C" NOT NULL,
    parent_id text COLLATE "C",
    name text COLLATE "C" NOT NULL,
    start_time double precision,
    end_time double precision,
    document bytea NOT NULL,
    UNIQUE (rollout, attempt, span_id)
);

CREATE TABLE resources (
    number bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    resources_id text COLLATE "C" NOT NULL UNIQUE,
    resources_json text NOT NULL,
    create_time double precision NOT NULL,
    update_time double precision NOT NULL,
    version bigint NOT NULL,
    policy_version bigint NOT NULL,
    run text COLLATE "C"
);
CREATE INDEX resources_by_policy ON resources (run, policy_version);

CREATE TABLE workers (
    number bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    worker_id text COLLATE "C" NOT NULL UNIQUE,
    status text COLLATE "C" NOT NULL,
    heartbeat_stats_json text,
    last_heartbeat_time double precision,
    last_dequeue_time double precision,
    last_busy_time double precision,
    last_idle_time double precision,
    current_rollout_id text COLLATE "C",
    current_attempt_id text COLLATE "C"
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);

CREATE TABLE replies (
    number bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    request_id text COLLATE "C" NOT NULL UNIQUE,
    recorded_at double precision NOT NULL,
    signature text NOT NULL,
    refused boolean NOT NULL,
    body bytea NOT NULL
);
CREATE INDEX replies_by_time ON replies (recorded_at);

-- What consumers have consumed. A number is how many checkpoints the consumer had recorded when it marked the rollout.
CREATE TABLE consumed (
    consumer text COLLATE "C" NOT NULL,
    rollout bigint NOT NULL,
    number bigint NOT NULL,
    PRIMARY KEY (consumer, rollout)
);
CREATE INDEX consumed_by_rollout ON consumed (rollout);
CREATE TABLE checkpoints (
    consumer text COLLATE "C" NOT NULL,
    checkpoint text COLLATE "C" NOT NULL,
    number bigint NOT NULL,
    PRIMARY KEY (consumer, checkpoint)
);
CREATE TABLE admissions (
    run text COLLATE "C" PRIMARY KEY,
    max_open_groups bigint,
    paused boolean NOT NULL
);
