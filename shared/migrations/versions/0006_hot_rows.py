"""Vacuum of the rows that each task updates: by their number, not by a fifth of the table."""

from shared.migrations.apart import run_apart

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# Sessions and tasks are kept for ever and few of them change: with a million of them the default
# lets two hundred thousand dead versions lie among those that work. A change of these settings
# holds up neither reads nor writes. `fillfactor` stays: 70 and 50 measured alike.
STATEMENTS = """
ALTER TABLE sessions SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.05);
ALTER TABLE tasks SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.05);
"""


def upgrade() -> None:
    run_apart(STATEMENTS)


def downgrade() -> None:
    raise NotImplementedError("migrations only add; restore a backup to go back")
