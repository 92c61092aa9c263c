-- Row numbers and positions are never used twice: the next ones stand in `totals`, which each transaction writes once.
-- Times are seconds since the epoch. What scheduling reads is apart from payloads and documents.

CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE totals (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    last_rollout INTEGER NOT NULL DEFAULT 0,
    last_attempt INTEGER NOT NULL DEFAULT 0,
    last_span INTEGER NOT NULL DEFAULT 0,
    last_reply INTEGER NOT NULL DEFAULT 0,
    last_queue_position INTEGER NOT NULL DEFAULT 0,
    last_completion_position INTEGER NOT NULL DEFAULT 0,
    rollouts INTEGER NOT NULL DEFAULT 0,
    completed INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    spans INTEGER NOT NULL DEFAULT 0,
    resources INTEGER NOT NULL DEFAULT 0,
    workers INTEGER NOT NULL DEFAULT 0,
    span_bytes INTEGER NOT NULL DEFAULT 0,
    other_bytes INTEGER NOT NULL DEFAULT 0,
    latest_resources TEXT
);
INSERT INTO totals (only) VALUES (1);

CREATE TABLE rollouts (
    number INTEGER PRIMARY KEY,
    rollout_id TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL,
    mode TEXT,
    resources_id TEXT,
    config TEXT,                       -- JSON: timeout_seconds, unresponsive_seconds, max_attempts, retry_condition
    start_time REAL NOT NULL,
    end_time REAL,
    latest_attempt_id TEXT,
    queue_position INTEGER,
    completion_position INTEGER,
    completion_time REAL,
    deadline REAL,                     -- a lower bound
    spans_evicted INTEGER NOT NULL,
    last_sequence INTEGER NOT NULL DEFAULT 0,
    span_bytes INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX rollouts_by_deadline ON rollouts (deadline) WHERE deadline IS NOT NULL;
CREATE INDEX rollouts_with_spans ON rollouts (end_time) WHERE span_bytes > 0;

CREATE TABLE payloads (
    rollout INTEGER PRIMARY KEY,
    input_json TEXT NOT NULL,
    metadata_json TEXT
);

-- The rollouts that a claim may take, in order.
CREATE TABLE queue (
    position INTEGER PRIMARY KEY,
    rollout INTEGER NOT NULL
);

-- The rollouts that are terminal, in the order in which they ended.
CREATE TABLE completions (
    position INTEGER PRIMARY KEY,
    rollout INTEGER NOT NULL
);

CREATE TABLE attempts (
    number INTEGER PRIMARY KEY,
    rollout INTEGER NOT NULL,
    attempt_id TEXT NOT NULL,
    sequence_id INTEGER NOT NULL,
    start_time REAL NOT NULL,
    end_time REAL,
    status TEXT NOT NULL,
    worker_id TEXT,
    last_heartbeat_time REAL,
    metadata_json TEXT,
    UNIQUE (rollout, attempt_id)
);

CREATE TABLE spans (
    number INTEGER PRIMARY KEY,
    rollout INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    sequence_id INTEGER NOT NULL,
    trace_id TEXT NOT NULL,
    span_id TEXT NOT NULL,
    parent_id TEXT,
    name TEXT NOT NULL,
    start_time REAL,
    end_time REAL,
    document BLOB NOT NULL,            -- last: a row's other columns are read without it
    UNIQUE (rollout, attempt, span_id)
);

CREATE TABLE resources (
    number INTEGER PRIMARY KEY,
    resources_id TEXT NOT NULL UNIQUE,
    create_time REAL NOT NULL,
    update_time REAL NOT NULL,
    version INTEGER NOT NULL,
    resources_json TEXT NOT NULL
);

CREATE TABLE workers (
    number INTEGER PRIMARY KEY,
    worker_id TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL,
    heartbeat_stats_json TEXT,
    last_heartbeat_time REAL,
    last_dequeue_time REAL,
    last_busy_time REAL,
    last_idle_time REAL,
    current_rollout_id TEXT,
    current_attempt_id TEXT
);

-- In order of time, so that they are inserted at one end and expire at the other. A server that has the file open keeps
-- the request ids in memory: an index on them would be written at random places.
CREATE TABLE replies (
    number INTEGER PRIMARY KEY,
    request_id TEXT NOT NULL,
    recorded_at REAL NOT NULL,
    signature TEXT NOT NULL,
    refused INTEGER NOT NULL,
    body BLOB NOT NULL
);
