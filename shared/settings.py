"""Every setting of gateway and worker, read from the environment once and validated here."""

import os
import re
from collections.abc import Mapping
from decimal import Decimal
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import structlog
from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from shared.allowance import BudgetRules, read_budget
from shared.errors import SettingsError
from shared.model_limits import read_limits
from shared.urls import BrokerUrl, HttpUrl, PostgresUrl, RedisUrl

Words = Annotated[list[str], NoDecode]
"""A list in one environment variable, separated by commas or blanks."""

log = structlog.get_logger(__name__)

_ADDRESS = r"^[A-Za-z0-9_.:\[\]-]*:[0-9]{1,5}$"

_PREFIX = "FIRESIDE_"

_OF_OTHERS = re.compile(
    r"FIRESIDE_(HOME|LLM|RUN)="  # of `make up`
    # What Kubernetes tells each container of services whose names begin as ours do.
    r"|\w+_SERVICE_(HOST|PORT)|\w+_PORT_[0-9]+_|\w+_PORT=(tcp|udp|sctp)://"
)


class Settings(BaseSettings):
    """What an operator may set; the README table lists it, a test compares the two.

    `DATABASE_URL` and `REDIS_URL` go by the names every platform gives them; everything else
    is `FIRESIDE_*`. Times are in seconds, sizes in bytes.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_ignore_empty=True,  # compose files pass what is not set as an empty string
        extra="ignore",
        hide_input_in_errors=True,
        allow_inf_nan=False,  # no timer takes them
    )

    database_url: PostgresUrl = Field(
        default=SecretStr("postgresql://localhost/fireside"),
        validation_alias=AliasChoices("DATABASE_URL", "FIRESIDE_DATABASE_URL"),
        description="Postgres 14 or later with pgvector 0.8 or later at hand",
    )
    database_pool: int = Field(
        default=20, ge=2, le=500, description="connections to Postgres per process, at most"
    )
    database_pooler: Literal["none", "transaction", "transaction_prepared"] = Field(
        default="none",
        description="`transaction` where `DATABASE_URL` is a pooler in that mode, as pgbouncer; "
        "`transaction_prepared` where it also keeps prepared statements",
    )
    redis_url: RedisUrl = Field(
        default=SecretStr("redis://localhost:6379/0"),
        validation_alias=AliasChoices("REDIS_URL", "FIRESIDE_REDIS_URL"),
        description="Redis 6.2 or later, or Valkey: hints, deltas, tickets, rulings",
    )
    broker_url: BrokerUrl | None = Field(
        default=None, description="Celery's broker where it is not the Redis above"
    )
    queue: str = Field(
        default="fireside", pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="name of the hint queue"
    )

    host: str = Field(default="127.0.0.1", description="address the gateway listens on")
    auth: Literal["required", "none"] = Field(
        default="required",
        description="`none` makes everything belong to user `local` and works on loopback only",
    )
    jwt_jwks: str | None = Field(
        default=None, description="URL or file with the keys that JWTs are checked against"
    )
    jwt_issuer: str | None = Field(default=None, description="`iss` that a JWT must carry")
    jwt_audience: str | None = Field(default=None, description="`aud` that a JWT must carry")
    jwt_algorithms: Words = Field(
        default=["ES256", "RS256"], description="algorithms accepted in JWTs; asymmetric ones only"
    )
    allowed_origins: Words = Field(
        default=[],
        description="origins that may open a WebSocket or call from a browser, beside the own host",
    )
    ticket_seconds: int = Field(
        default=30, ge=5, le=30, description="lifetime of a WebSocket ticket"
    )
    max_sockets: int = Field(
        default=10_000, ge=1, description="open WebSockets and event streams per gateway process"
    )
    max_sockets_per_user: int = Field(
        default=50,
        ge=1,
        description="open WebSockets and event streams of one user per gateway process",
    )
    max_queued_per_user: int = Field(
        default=1000,
        ge=1,
        le=100_000,
        description="open tasks of one user; more are refused with `too_many_tasks`",
    )
    max_queued: int = Field(
        default=100_000,
        ge=1,
        description="open tasks of all users; more are refused with `too_many_tasks`",
    )
    ping_seconds: float = Field(
        default=20,
        gt=0,
        le=120,
        description="a quiet WebSocket or SSE stream gets a ping this often",
    )
    send_seconds: float = Field(
        default=10,
        gt=0,
        le=300,
        description="a client that does not take a frame for this long is disconnected",
    )
    poll_seconds: float = Field(
        default=5, gt=0, le=60, description="how often followed sessions are compared with the log"
    )
    gateway_metrics: str | None = Field(
        default=None,
        pattern=_ADDRESS,
        description="`address:port` at which a gateway shows its figures to Prometheus",
    )

    model: str = Field(
        default="openai/gpt-5-mini", min_length=1, description="model by its litellm name"
    )
    model_url: HttpUrl | None = Field(
        default=None, description="base URL of an OpenAI-compatible endpoint"
    )
    model_path: Literal["litellm", "direct"] = Field(
        default="litellm",
        description="`direct` calls an OpenAI-compatible endpoint without litellm, for less CPU",
    )
    model_api_key: SecretStr | None = Field(
        default=None, description="key for the model where the provider's own variable is not used"
    )
    model_cheap: str | None = Field(
        default=None,
        min_length=1,
        description="model for referee, judge, summaries and small talk; else the model above",
    )
    model_cheap_url: HttpUrl | None = Field(
        default=None, description="its base URL; that of the model where the provider is the same"
    )
    model_cheap_api_key: SecretStr | None = Field(
        default=None, description="its key; that of the model where the provider is the same"
    )
    model_fallbacks: Words = Field(
        default=[], description="models that answer, in this order, while the others are away"
    )
    model_first_token_seconds: float = Field(
        default=30, gt=0, description="longest wait for a model's first token"
    )
    model_stall_seconds: float = Field(
        default=20, gt=0, description="longest pause within a model's stream"
    )
    model_retries: int = Field(
        default=3, ge=0, le=10, description="further tries of a failed model call"
    )
    model_requests_per_minute: int | None = Field(
        default=None, ge=1, description="requests that the whole fleet makes per model and key"
    )
    model_tokens_per_minute: int | None = Field(
        default=None, ge=1, description="tokens that the whole fleet uses per model and key"
    )
    model_concurrency: int | None = Field(
        default=None, ge=1, description="calls that the whole fleet has under way per model and key"
    )
    model_limits: Words = Field(
        default=[],
        description="the same three for single models, as `openai/gpt-5-mini=500/200000/20`; "
        "`-` is none",
    )
    embeddings: str = Field(
        default="minilm",
        min_length=1,
        description="vectors of memories: `minilm`, `hashing`, or a litellm name as "
        "`openai/text-embedding-3-small`",
    )
    embeddings_url: HttpUrl | None = Field(
        default=None, description="base URL of the embedding model where it is not the provider's"
    )
    embeddings_api_key: SecretStr | None = Field(
        default=None, description="key for the embedding model"
    )
    prices: str | None = Field(
        default=None,
        description="file with prices of models, before those of the release: docs/cost.md",
    )
    mark_up: float = Field(
        default=1, ge=0, le=1000, description="what is billed for each dollar that a model costs"
    )
    budget_per_user: str | None = Field(
        default=None,
        description="what a user without a budget of their own may spend, in billed dollars: "
        "`20/month`, `0.5/day` or `100` in all",
    )
    budget_per_key: str | None = Field(default=None, description="the same for each API key")
    budget_reserve: float = Field(
        default=0.01,
        ge=0,
        le=1000,
        description="dollars reserved for a task while nothing is known of what the user's cost",
    )
    budget_economy: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="part of a budget from which on cheaper models answer; 1: never",
    )
    tool_seconds: float = Field(default=30, gt=0, description="longest run of one tool call")
    task_seconds: float = Field(
        default=300, gt=0, description="longest run of one attempt of a task"
    )

    consolidate_seconds: float = Field(
        default=600,
        ge=0,
        le=604_800,
        description="a session that is quiet for so long is read for what is worth knowing; "
        "0: none is",
    )
    consolidate_batch: Literal["off", "openai"] = Field(
        default="off",
        description="`openai`: what nobody waits for is read by that protocol's batches, at half "
        "the price and within a day",
    )
    response_cache_seconds: int = Field(
        default=86_400,
        ge=0,
        le=604_800,
        description="how long a story's rulings are kept in Redis for whoever asks exactly the "
        "same; 0: none is",
    )

    agent_modules: Words = Field(
        default=["worker.story", "worker.companion"],
        description="modules whose `AGENTS` a worker offers",
    )
    story_folders: Words = Field(
        default=["stories"], description="folders in which stories are found"
    )
    default_story: str | None = Field(
        default=None, description="story of a session that names none; else the first by name"
    )

    lease_seconds: float = Field(default=3, ge=0.5, le=300, description="lifetime of a lease")
    outage_seconds: float = Field(
        default=30, ge=0, le=600, description="how long attempts wait for a Postgres that is away"
    )
    heartbeat_seconds: float = Field(
        default=1, ge=0.1, le=100, description="how often a worker renews its leases"
    )
    sweep_seconds: float = Field(
        default=1, ge=0.05, le=60, description="how often sessions without a worker are looked for"
    )
    max_attempts: int = Field(
        default=5, ge=1, le=100, description="starts of a task since its last finished step"
    )
    quarantine_after: int = Field(
        default=4,
        ge=1,
        le=100,
        description="a task that lost so many of these starts goes on in a process of its own",
    )
    max_in_flight: int = Field(
        default=1000, ge=1, le=100_000, description="tasks that one worker process runs at once"
    )
    worker_memory: int | None = Field(
        default=None,
        ge=1,
        description="bytes that a worker process may take: above them it lets in one task at a "
        "time; without it, nine tenths of its container's memory",
    )
    cache_agents: int = Field(
        default=10_000,
        ge=0,
        le=1_000_000,
        description="sessions that a worker holds in memory between their tasks; 0: none",
    )
    cache_idle_seconds: float = Field(
        default=1800, gt=0, le=86_400, description="how long it holds one that has nothing to do"
    )
    cache_bytes: int = Field(
        default=67_108_864,
        ge=0,
        description="bytes that these take together with the memories of their characters",
    )
    worker_metrics: str | None = Field(
        default=None,
        pattern=_ADDRESS,
        description="`address:port` at which a worker shows its figures to Prometheus",
    )
    stuck_seconds: float = Field(
        default=30,
        ge=1,
        le=3600,
        description="a worker whose loop stands still for so long, or four leases, ends itself",
    )
    agent_seconds: float = Field(
        default=120,
        ge=1,
        le=86_400,
        description="how long a task waits for a worker that has its agent, and an agent or story "
        "that no worker has any more stays on offer",
    )
    drain_seconds: float = Field(
        default=25, ge=0, le=600, description="how long a stopping process lets work finish"
    )

    event_days: int = Field(
        default=30,
        ge=0,
        le=36_500,
        description="days that events of ended tasks are kept; 0: for ever",
    )
    step_days: int = Field(
        default=7, ge=0, le=36_500, description="the same for the journal of ended tasks"
    )

    log_format: Literal["json", "text"] = Field(default="json", description="form of log lines")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least severe log line that is written"
    )

    @field_validator(
        "jwt_algorithms",
        "allowed_origins",
        "model_limits",
        "model_fallbacks",
        "agent_modules",
        "story_folders",
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        return value.replace(",", " ").split() if isinstance(value, str) else value

    @field_validator("jwt_algorithms")
    @classmethod
    def _asymmetric(cls, value: list[str]) -> list[str]:
        # A symmetric algorithm would let the public key be used as a shared secret.
        known = {"ES256", "ES384", "RS256", "RS384", "RS512", "PS256", "EdDSA"}
        if not value or not set(value) <= known:
            raise ValueError(f"only these algorithms are accepted: {', '.join(sorted(known))}")
        return value

    @field_validator("model_limits")
    @classmethod
    def _limits(cls, value: list[str]) -> list[str]:
        try:
            read_limits(value)
        except SettingsError as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("budget_per_user", "budget_per_key")
    @classmethod
    def _budget(cls, value: str | None) -> str | None:
        try:
            read_budget(value)
        except SettingsError as error:
            raise ValueError(str(error)) from None
        return value

    def model_post_init(self, _: object, /) -> None:
        """Refuse combinations that could not work."""
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError("FIRESIDE_HEARTBEAT_SECONDS must be at most half of the lease")
        if self.jwt_jwks and not (self.jwt_issuer and self.jwt_audience):
            raise ValueError(
                "FIRESIDE_JWT_JWKS needs FIRESIDE_JWT_ISSUER and FIRESIDE_JWT_AUDIENCE beside it"
            )

    @property
    def budgets(self) -> BudgetRules:
        """What users and keys may spend where nothing else was said of them."""
        return BudgetRules(
            per_user=read_budget(self.budget_per_user),
            per_key=read_budget(self.budget_per_key),
            reserve=Decimal(str(self.budget_reserve)),
            economy=Decimal(str(self.budget_economy)),
        )

    @property
    def story_paths(self) -> list[Path]:
        """The story folders as paths."""
        return [Path(folder) for folder in self.story_folders]


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process.

    Raises:
        SettingsError: a value is missing or wrong; the message names each variable, no value.
    """
    return load_settings()


def load_settings() -> Settings:
    """Read the environment anew; raises SettingsError as `get_settings` does."""
    try:
        return Settings()
    except ValidationError as error:
        wrong = [
            f"{_variable(item['loc'])}: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors(include_url=False, include_input=False)
        ]
        raise SettingsError("; ".join(wrong)) from None


def unknown_variables(environment: Mapping[str, str] = os.environ) -> dict[str, str | None]:
    """Variables that look like settings and are none, each with the one that may be meant."""
    known = {name.upper(): _variable((name,)) for name in Settings.model_fields} | {"PORT": "PORT"}
    unknown: dict[str, str | None] = {}
    for name, value in environment.items():
        asked = name.upper().removeprefix(_PREFIX)
        if name.upper() == asked or known.get(asked, "").startswith(_PREFIX):
            continue
        if not _OF_OTHERS.match(f"{name.upper()}={value}"):
            close = get_close_matches(asked, known, n=1, cutoff=0.7)
            unknown[name] = known[close[0]] if close else None
    return unknown


def warn_of_unknown_variables() -> None:
    """Log one warning for each of them: what was set does nothing."""
    for name, meant in unknown_variables().items():
        log.warning("no such setting", variable=name, perhaps=meant)


def _variable(loc: tuple[int | str, ...]) -> str:
    name = str(loc[0]) if loc else "settings"
    if name.isupper() and name in {one.upper() for one, value in os.environ.items() if value}:
        return name
    return f"{_PREFIX}{name.upper()}" if loc else name
