"""${message}."""

from alembic import op

revision = "${up_revision}"
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    ${upgrades if upgrades else "op.execute()"}


def downgrade() -> None:
    raise NotImplementedError("migrations only add; restore a backup to go back")
