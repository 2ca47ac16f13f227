"""What a recall asks of each memory of a character stands in an index, and what is no turn in
another."""

from shared.migrations.apart import run_apart

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# The memories of a character lie wherever its turns happened to be written, a page for each turn: a
# recall among a thousand of them, of which it reads hardly one, went through more than five hundred
# pages. The index has it all in sixteen, as long as vacuum keeps up with what is new. What a
# character has learned is a few rows between all that was said.
STATEMENTS = """
CREATE INDEX CONCURRENTLY IF NOT EXISTS memories_to_recall
    ON memories (user_id, character_id, said_at)
    INCLUDE (id, created_at, session_id, no, kind, valid_to, on_branch);
CREATE INDEX CONCURRENTLY IF NOT EXISTS memories_learned
    ON memories (user_id, character_id, said_at) WHERE kind <> 'turn';
DROP INDEX CONCURRENTLY IF EXISTS memories_of_character;
ALTER TABLE memories SET (autovacuum_vacuum_insert_scale_factor = 0.05);
"""


def upgrade() -> None:
    run_apart(STATEMENTS)


def downgrade() -> None:
    raise NotImplementedError("migrations only add; restore a backup to go back")
