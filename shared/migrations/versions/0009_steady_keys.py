"""Keys of crowded characters go into their index at once: recalls read whatever waits before it."""

from shared.migrations.apart import run_apart

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# New rows wait in a list of up to 4 MB, which each look for a word reads from end to end, until a
# vacuum or the next row beyond sorts them in. A recall looks for up to 48 words.
STATEMENTS = """
ALTER INDEX memories_keys SET (fastupdate = off);
SELECT gin_clean_pending_list('memories_keys');
"""


def upgrade() -> None:
    run_apart(STATEMENTS)


def downgrade() -> None:
    raise NotImplementedError("migrations only add; restore a backup to go back")
