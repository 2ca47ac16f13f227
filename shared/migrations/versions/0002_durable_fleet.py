"""Joined tasks, back-off and quarantine, priorities, versions of rows, the database's lineage."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# Releases before this one write to the same tables during an upgrade: each column has a default
# that means what they meant. Constant defaults rewrite no table.
STATEMENTS = """
ALTER TABLE sessions
    ADD COLUMN ready_at timestamptz,
    ADD COLUMN quarantined boolean NOT NULL DEFAULT false,
    ADD COLUMN priority smallint NOT NULL DEFAULT 0;
CREATE INDEX sessions_quarantined ON sessions (hint_at) WHERE quarantined AND open_tasks > 0;

ALTER TABLE tasks
    ADD COLUMN joined_task uuid,
    ADD COLUMN joined_no integer,
    ADD COLUMN requeue_of uuid,
    ADD COLUMN priority smallint NOT NULL DEFAULT 0;
CREATE INDEX tasks_open_by_user ON tasks (user_id) WHERE status IN ('queued', 'running');
CREATE INDEX tasks_dead ON tasks (finished_at) WHERE status = 'dead';

ALTER TABLE events ADD COLUMN version smallint NOT NULL DEFAULT 1;
ALTER TABLE steps ADD COLUMN version smallint NOT NULL DEFAULT 1;

CREATE TABLE lineage (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    generation integer NOT NULL DEFAULT 1,
    system_identifier text NOT NULL,
    timeline integer NOT NULL,
    noted_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
"""


def upgrade() -> None:
    op.execute(STATEMENTS)


def downgrade() -> None:
    raise NotImplementedError("migrations only add; restore a backup to go back")
