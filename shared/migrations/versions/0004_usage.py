"""The ledger of model calls, what users and keys have spent, and what they may spend."""

from shared.migrations.apart import run_apart

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# The ledger outlasts sessions, so it refers to none; its key begins with the session, in which
# calls come one after the other. What was spent is counted in several rows (`slot`), so that the
# sessions of one user or key seldom wait for each other; each row has little but numbers that
# change, and room for the next version of itself.
STATEMENTS = """
CREATE TABLE IF NOT EXISTS usage (
    session_id uuid NOT NULL,
    task_id uuid NOT NULL,
    attempt integer NOT NULL,
    no integer NOT NULL,
    user_id text NOT NULL,
    key_id text NOT NULL DEFAULT '',
    agent text NOT NULL,
    model text NOT NULL,
    purpose text NOT NULL,
    step integer,
    outcome text NOT NULL CHECK (outcome IN ('done', 'error', 'aborted', 'lost')),
    reported boolean NOT NULL,
    input integer NOT NULL DEFAULT 0,
    output integer NOT NULL DEFAULT 0,
    cache_read integer NOT NULL DEFAULT 0,
    cache_write integer NOT NULL DEFAULT 0,
    usd numeric,
    estimated_usd numeric NOT NULL DEFAULT 0,
    prices text,
    mark_up numeric NOT NULL DEFAULT 1,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (session_id, task_id, attempt, no)
);
CREATE INDEX CONCURRENTLY IF NOT EXISTS usage_by_user ON usage (user_id, at);
CREATE INDEX CONCURRENTLY IF NOT EXISTS usage_without_price ON usage (at) WHERE usd IS NULL;

CREATE TABLE IF NOT EXISTS spending (
    user_id text NOT NULL,
    key_id text NOT NULL DEFAULT '',
    slot smallint NOT NULL,
    tasks bigint NOT NULL DEFAULT 0,
    total numeric NOT NULL DEFAULT 0,
    month date NOT NULL,
    in_month numeric NOT NULL DEFAULT 0,
    day date NOT NULL,
    in_day numeric NOT NULL DEFAULT 0,
    PRIMARY KEY (user_id, key_id, slot)
) WITH (fillfactor = 50);

CREATE TABLE IF NOT EXISTS budgets (
    user_id text NOT NULL,
    key_id text NOT NULL DEFAULT '',
    usd numeric CHECK (usd >= 0),
    period text NOT NULL DEFAULT 'total' CHECK (period IN ('total', 'month', 'day')),
    set_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (user_id, key_id)
);

ALTER TABLE tasks
    ADD COLUMN IF NOT EXISTS key_id text NOT NULL DEFAULT '',
    ADD COLUMN IF NOT EXISTS reserved numeric;
"""


def upgrade() -> None:
    run_apart(STATEMENTS)


def downgrade() -> None:
    raise NotImplementedError("migrations only add; restore a backup to go back")
