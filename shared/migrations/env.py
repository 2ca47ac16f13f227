"""Alembic's entry: one connection, one transaction, one migrating process at a time."""

from alembic import context
from sqlalchemy import text

# Any number that no other user of the database takes: it keeps two processes that start at once
# from migrating at once. A transaction's lock, for it must also hold behind a pooler.
MIGRATION_LOCK = 7_316_205_117

connection = context.config.attributes["connection"]
context.configure(connection=connection, transaction_per_migration=False)
with context.begin_transaction():
    connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
    context.run_migrations()
