-- Versions of policies: of resources within their run, and those that an attempt has used.

ALTER TABLE resources ADD COLUMN policy_version INTEGER NOT NULL DEFAULT 0;
ALTER TABLE resources ADD COLUMN run TEXT;
CREATE INDEX resources_by_policy ON resources (run, policy_version);
ALTER TABLE attempts ADD COLUMN resources_id TEXT;
ALTER TABLE attempts ADD COLUMN resources_version INTEGER;
ALTER TABLE attempts ADD COLUMN policy_version INTEGER;
ALTER TABLE attempts ADD COLUMN policy_version_min INTEGER;
ALTER TABLE attempts ADD COLUMN policy_version_max INTEGER;

-- Until now the latest resources were those that were published last.
UPDATE resources SET policy_version = ranked.place FROM (
    SELECT number, row_number() OVER (
        ORDER BY resources_id IS (SELECT latest_resources FROM totals), update_time, number
    ) AS place FROM resources
) AS ranked WHERE ranked.number = resources.number;
