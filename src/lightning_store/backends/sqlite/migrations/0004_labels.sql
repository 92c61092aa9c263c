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
    WHERE p.metadata_json LIKE '%lightning.%' AND m.key LIKE 'lightning.%' AND m.type NOT IN ('array', 'object')
) WHERE length(label) <= 512;
