"""Consolidations that a provider answers in batches, some time within a day."""

from shared.migrations.apart import run_apart

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# A line is one range of messages; there is never a second one for the same beginning of a range.
# Without a `batch_id` it waits for others to go with. It refers to its session, for a process of
# the release before erases users without knowing of lines.
STATEMENTS = """
CREATE TABLE IF NOT EXISTS consolidation_batches (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    model text NOT NULL,
    state text NOT NULL DEFAULT 'made' CHECK (state IN ('made', 'sent', 'done')),
    provider_id text,
    input_file text,
    sends smallint NOT NULL DEFAULT 0,
    made_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    next_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX CONCURRENTLY IF NOT EXISTS consolidation_batches_open
    ON consolidation_batches (next_at) WHERE state <> 'done';

CREATE TABLE IF NOT EXISTS consolidation_lines (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    batch_id uuid REFERENCES consolidation_batches ON DELETE CASCADE,
    user_id text NOT NULL,
    session_id uuid NOT NULL REFERENCES sessions ON DELETE CASCADE,
    keeper_id uuid NOT NULL,
    first bigint NOT NULL,
    last bigint NOT NULL,
    state text NOT NULL DEFAULT 'out' CHECK (state IN ('out', 'answered', 'failed', 'used')),
    known jsonb,
    tokens integer NOT NULL DEFAULT 0,
    output text,
    made_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    until timestamptz NOT NULL,
    UNIQUE (session_id, first)
);
CREATE INDEX CONCURRENTLY IF NOT EXISTS consolidation_lines_of_batch
    ON consolidation_lines (batch_id);
CREATE INDEX CONCURRENTLY IF NOT EXISTS consolidation_lines_of_user
    ON consolidation_lines (user_id);
CREATE INDEX CONCURRENTLY IF NOT EXISTS consolidation_lines_waiting
    ON consolidation_lines (made_at) WHERE batch_id IS NULL;
"""


def upgrade() -> None:
    run_apart(STATEMENTS)


def downgrade() -> None:
    raise NotImplementedError("migrations only add; restore a backup to go back")
