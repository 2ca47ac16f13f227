"""Memories: what a character can recall, with vectors that may come later."""

from shared.migrations.apart import run_apart

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# The vectors' length is the embedding model's, so the column has none; half precision ranks the
# same in half the space. No foreign keys, as with messages: rows are written in the end of a task,
# under the session's row lock, and go with their session or character.
#
# Ordinary characters are read whole by `memories_of_character`. Only the rows of crowded ones (see
# `crowds`) have `keys`, and only they stand in the two indexes that cost something to keep.
STATEMENTS = """
CREATE EXTENSION IF NOT EXISTS vector;

CREATE TABLE IF NOT EXISTS memories (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id text NOT NULL,
    character_id uuid NOT NULL,
    session_id uuid,
    kind text NOT NULL
        CHECK (kind IN ('turn', 'fact', 'preference', 'skill', 'relationship', 'summary')),
    no bigint,
    part smallint NOT NULL DEFAULT 0,
    sources bigint[] NOT NULL DEFAULT '{}',
    role text NOT NULL DEFAULT '',
    speaker text NOT NULL DEFAULT '',
    text text NOT NULL,
    language text NOT NULL DEFAULT 'english',
    words tsvector NOT NULL,
    importance real NOT NULL DEFAULT 0,
    said_at timestamptz NOT NULL,
    valid_from timestamptz NOT NULL,
    valid_to timestamptz,
    on_branch boolean NOT NULL DEFAULT true,
    vector halfvec,
    model text,
    keys bigint[],
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK ((vector IS NULL) = (model IS NULL))
);
CREATE INDEX CONCURRENTLY IF NOT EXISTS memories_of_character
    ON memories (user_id, character_id, said_at);
CREATE INDEX CONCURRENTLY IF NOT EXISTS memories_of_session
    ON memories (session_id, no) WHERE session_id IS NOT NULL;
CREATE INDEX CONCURRENTLY IF NOT EXISTS memories_without_vector
    ON memories (id) WHERE vector IS NULL;
CREATE INDEX CONCURRENTLY IF NOT EXISTS memories_keys
    ON memories USING gin (keys) WHERE keys IS NOT NULL;
CREATE INDEX CONCURRENTLY IF NOT EXISTS memories_near_384
    ON memories USING hnsw ((vector::halfvec(384)) halfvec_ip_ops)
    WHERE keys IS NOT NULL AND vector_dims(vector) = 384;

CREATE TABLE IF NOT EXISTS crowds (
    character_id uuid PRIMARY KEY,
    user_id text NOT NULL,
    since timestamptz NOT NULL DEFAULT clock_timestamp()
);
"""


def upgrade() -> None:
    run_apart(STATEMENTS)


def downgrade() -> None:
    raise NotImplementedError("migrations only add; restore a backup to go back")
