"""Joined tasks, back-off and quarantine, priorities, versions of rows, the database's lineage."""

from shared.migrations.apart import run_apart

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# Releases before this one write to the same tables during an upgrade: each column has a default
# that means what they meant. Constant defaults rewrite no table. Each statement is a transaction
# of its own and may be run again.
STATEMENTS = """
ALTER TABLE sessions
    ADD COLUMN IF NOT EXISTS ready_at timestamptz,
    ADD COLUMN IF NOT EXISTS quarantined boolean NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS priority smallint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS writes integer NOT NULL DEFAULT 0;
CREATE INDEX CONCURRENTLY IF NOT EXISTS sessions_quarantined
    ON sessions (hint_at) WHERE quarantined AND open_tasks > 0;

ALTER TABLE tasks
    ADD COLUMN IF NOT EXISTS joined_task uuid,
    ADD COLUMN IF NOT EXISTS joined_no integer,
    ADD COLUMN IF NOT EXISTS requeue_of uuid,
    ADD COLUMN IF NOT EXISTS priority smallint NOT NULL DEFAULT 0;
CREATE INDEX CONCURRENTLY IF NOT EXISTS tasks_open_by_user
    ON tasks (user_id) WHERE status IN ('queued', 'running');
CREATE INDEX CONCURRENTLY IF NOT EXISTS tasks_dead
    ON tasks (finished_at) WHERE status = 'dead';

ALTER TABLE events ADD COLUMN IF NOT EXISTS version smallint NOT NULL DEFAULT 1;
ALTER TABLE steps ADD COLUMN IF NOT EXISTS version smallint NOT NULL DEFAULT 1;

CREATE TABLE IF NOT EXISTS lineage (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    generation integer NOT NULL DEFAULT 1,
    beat bigint NOT NULL DEFAULT 0,
    system_identifier text NOT NULL,
    timeline integer NOT NULL,
    lifting boolean NOT NULL DEFAULT false,
    lifted_to uuid,
    noted_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE IF NOT EXISTS retention (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    pruned_to uuid,
    next_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
"""


def upgrade() -> None:
    run_apart(STATEMENTS)


def downgrade() -> None:
    raise NotImplementedError("migrations only add; restore a backup to go back")
