-- The servers that are alive, and the rules by which each decides, as JSON: all of them have the same.
CREATE TABLE servers (
    server text COLLATE "C" PRIMARY KEY,
    name text NOT NULL,
    rules text NOT NULL,
    seen_at double precision NOT NULL
);
