"""An agent on AgentOS; with JOBS set its runs go through the durable queue."""

import os

from agno.agent import Agent
from agno.db.postgres import PostgresDb
from agno.models.openai import OpenAIChat
from agno.os import AgentOS

database = PostgresDb(db_url=os.environ["DATABASE_URL"].replace("://", "+psycopg://", 1))
agent = Agent(
    id="chat",
    model=OpenAIChat(id="scripted", base_url=os.environ["MODEL_URL"], api_key="none"),
    db=database,
    instructions="You are a helpful assistant.",
    add_history_to_context=True,
    num_history_runs=100,
    telemetry=False,
)
options = {}
if jobs := os.environ.get("JOBS"):
    from agno.job_queue import QueueConfig

    options["queue"] = QueueConfig(
        durable=True, redis=os.environ["REDIS_URL"], max_concurrency=int(jobs)
    )
app = AgentOS(agents=[agent], db=database, telemetry=False, **options).get_app()
