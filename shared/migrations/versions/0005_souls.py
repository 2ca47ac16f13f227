"""Where a soul's versions come from, the one that each session keeps, and what of it was read."""

from shared.migrations.apart import run_apart

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# `soul_version` null: the newest one, as releases before this one take it. `consolidate_at` null:
# nothing of the session waits to be read again, which is so for all that were made before. No
# statement of a heartbeat or of a step touches what the index is about.
STATEMENTS = """
ALTER TABLE souls
    ADD COLUMN IF NOT EXISTS source text NOT NULL DEFAULT 'user',
    ADD COLUMN IF NOT EXISTS task_id uuid,
    ADD COLUMN IF NOT EXISTS restored integer;

ALTER TABLE sessions
    ADD COLUMN IF NOT EXISTS soul_version integer,
    ADD COLUMN IF NOT EXISTS consolidated bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS consolidate_at timestamptz,
    ADD COLUMN IF NOT EXISTS consolidation_tries smallint NOT NULL DEFAULT 0;
CREATE INDEX CONCURRENTLY IF NOT EXISTS sessions_to_consolidate
    ON sessions (consolidate_at) WHERE consolidate_at IS NOT NULL;
"""


def upgrade() -> None:
    run_apart(STATEMENTS)


def downgrade() -> None:
    raise NotImplementedError("migrations only add; restore a backup to go back")
