"""The first schema: sessions, tasks, steps, events, messages, characters, catalog, keys."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# A session's counters, fence and lease stand in one row, so that a fenced write and the numbers
# it takes are one row update. The row is updated often: fillfactor leaves room for HOT updates.
# Steps, events and messages are written many at a time and only under the session's row lock, so
# they carry no foreign key that would look the session up again for every row.
STATEMENTS = """
CREATE TABLE api_keys (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id text NOT NULL,
    label text NOT NULL DEFAULT '',
    sha256 bytea NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    revoked_at timestamptz
);

CREATE TABLE catalog (
    kind text NOT NULL CHECK (kind IN ('agent', 'story')),
    name text NOT NULL,
    title text NOT NULL,
    description text NOT NULL DEFAULT '',
    details jsonb NOT NULL DEFAULT '{}',
    announced_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (kind, name)
);

CREATE TABLE stories (
    hash text PRIMARY KEY,
    name text NOT NULL,
    compiled text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE characters (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id text NOT NULL,
    agent text NOT NULL,
    name text NOT NULL,
    is_default boolean NOT NULL DEFAULT false,
    soul text NOT NULL DEFAULT '',
    soul_version integer NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE UNIQUE INDEX characters_one_default ON characters (user_id, agent) WHERE is_default;
CREATE INDEX characters_by_user ON characters (user_id, created_at DESC);

CREATE TABLE souls (
    character_id uuid NOT NULL REFERENCES characters ON DELETE CASCADE,
    version integer NOT NULL,
    soul text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (character_id, version)
);

CREATE TABLE sessions (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id text NOT NULL,
    key text,
    agent text NOT NULL,
    story text,
    story_hash text,
    character_id uuid NOT NULL REFERENCES characters,
    title text NOT NULL DEFAULT '',
    metadata jsonb NOT NULL DEFAULT '{}',
    generation integer NOT NULL DEFAULT 1,
    state jsonb NOT NULL DEFAULT '{}',
    view jsonb NOT NULL DEFAULT '{"state": {}, "choices": []}',
    next_task bigint NOT NULL DEFAULT 1,
    next_event bigint NOT NULL DEFAULT 1,
    first_event bigint NOT NULL DEFAULT 1,
    next_message bigint NOT NULL DEFAULT 1,
    head_message bigint,
    open_tasks integer NOT NULL DEFAULT 0 CHECK (open_tasks >= 0),
    early_cancels integer NOT NULL DEFAULT 0 CHECK (early_cancels >= 0),
    epoch bigint NOT NULL DEFAULT 0,
    lease_token uuid,
    lease_until timestamptz,
    hint_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    hints smallint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 70);
CREATE UNIQUE INDEX sessions_by_key ON sessions (user_id, key) WHERE key IS NOT NULL;
CREATE INDEX sessions_by_user ON sessions (user_id, created_at DESC, id DESC);
CREATE INDEX sessions_by_character ON sessions (character_id);
CREATE INDEX sessions_waiting ON sessions (hint_at) WHERE open_tasks > 0;

CREATE TABLE tasks (
    session_id uuid NOT NULL REFERENCES sessions ON DELETE CASCADE,
    seq bigint NOT NULL,
    id uuid NOT NULL UNIQUE DEFAULT gen_random_uuid(),
    user_id text NOT NULL,
    client_action_id text,
    action jsonb NOT NULL,
    body_hash bytea NOT NULL,
    on_busy text NOT NULL DEFAULT 'enqueue',
    queued_seq bigint NOT NULL,
    position integer NOT NULL,
    status text NOT NULL DEFAULT 'queued'
        CHECK (status IN ('queued', 'running', 'completed', 'failed', 'cancelled', 'dead')),
    claims integer NOT NULL DEFAULT 0,
    attempts integer NOT NULL DEFAULT 0,
    steps_done integer NOT NULL DEFAULT 0,
    epoch bigint,
    cancel_requested_at timestamptz,
    result jsonb,
    error jsonb,
    usage jsonb,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at timestamptz,
    finished_at timestamptz,
    PRIMARY KEY (session_id, seq),
    UNIQUE (session_id, client_action_id)
) WITH (fillfactor = 80);
CREATE UNIQUE INDEX tasks_one_running ON tasks (session_id) WHERE status = 'running';
CREATE INDEX tasks_open ON tasks (session_id, seq) WHERE status IN ('queued', 'running');

CREATE TABLE early_cancels (
    session_id uuid NOT NULL REFERENCES sessions ON DELETE CASCADE,
    client_action_id text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (session_id, client_action_id)
);

CREATE TABLE steps (
    session_id uuid NOT NULL,
    task_seq bigint NOT NULL,
    no integer NOT NULL,
    kind text NOT NULL,
    name text NOT NULL,
    effect text NOT NULL,
    input_hash text NOT NULL,
    status text NOT NULL CHECK (status IN ('started', 'done', 'unknown')),
    epoch bigint NOT NULL,
    output jsonb,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (session_id, task_seq, no)
);

CREATE TABLE events (
    session_id uuid NOT NULL,
    seq bigint NOT NULL,
    task_id uuid,
    epoch bigint NOT NULL DEFAULT 0,
    type text NOT NULL,
    data jsonb NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (session_id, seq)
);
CREATE UNIQUE INDEX events_one_terminal ON events (task_id)
    WHERE type IN ('task_completed', 'task_failed', 'task_cancelled', 'task_dead');

CREATE TABLE messages (
    session_id uuid NOT NULL,
    no bigint NOT NULL,
    parent bigint,
    task_id uuid NOT NULL,
    message jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (session_id, no)
);
"""


def upgrade() -> None:
    op.execute(STATEMENTS)


def downgrade() -> None:
    raise NotImplementedError("migrations only add; restore a backup to go back")
