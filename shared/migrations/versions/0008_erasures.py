"""What Redis still has of users who were erased, until it was cleared of it."""

from shared.migrations.apart import run_apart

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# `owner` is the SHA-256 of the user's id, by which their tickets are told; `names` are the ids of
# what was erased, `hinted` of them the sessions that the queue may have hints of.
STATEMENTS = """
CREATE TABLE IF NOT EXISTS erasures (
    id uuid PRIMARY KEY,
    owner bytea NOT NULL,
    names uuid[] NOT NULL,
    hinted uuid[] NOT NULL,
    clear_at timestamptz NOT NULL
);
"""


def upgrade() -> None:
    run_apart(STATEMENTS)


def downgrade() -> None:
    raise NotImplementedError("migrations only add; restore a backup to go back")
