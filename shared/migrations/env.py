"""Alembic's entry: one connection, one transaction for each migration that wants none of its own.

`shared.migrate` sees to it that one process migrates at a time.
"""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
