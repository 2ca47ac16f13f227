"""Settings: defaults, what is refused and how, and that no secret shows."""

from pathlib import Path
from typing import Any

import pytest
import structlog

from shared.errors import SettingsError
from shared.settings import (
    Settings,
    get_settings,
    load_settings,
    unknown_variables,
    warn_of_unknown_variables,
)

DEFAULTS: dict[str, Any] = {
    "database_url": "postgresql://localhost/fireside",
    "database_pool": 20,
    "database_pooler": "none",
    "redis_url": "redis://localhost:6379/0",
    "broker_url": None,
    "queue": "fireside",
    "host": "127.0.0.1",
    "auth": "required",
    "jwt_jwks": None,
    "jwt_issuer": None,
    "jwt_audience": None,
    "jwt_algorithms": ["ES256", "RS256"],
    "allowed_origins": [],
    "ticket_seconds": 30,
    "max_sockets": 10_000,
    "max_sockets_per_user": 50,
    "max_queued_per_user": 1000,
    "max_queued": 100_000,
    "ping_seconds": 20.0,
    "send_seconds": 10.0,
    "poll_seconds": 5.0,
    "gateway_metrics": None,
    "model": "openai/gpt-5-mini",
    "model_url": None,
    "model_path": "litellm",
    "model_api_key": None,
    "model_cheap": None,
    "model_cheap_url": None,
    "model_cheap_api_key": None,
    "model_fallbacks": [],
    "model_first_token_seconds": 30.0,
    "model_stall_seconds": 20.0,
    "model_retries": 3,
    "model_requests_per_minute": None,
    "model_tokens_per_minute": None,
    "model_concurrency": None,
    "model_limits": [],
    "embeddings": "minilm",
    "embeddings_url": None,
    "embeddings_api_key": None,
    "prices": None,
    "mark_up": 1.0,
    "budget_per_user": None,
    "budget_per_key": None,
    "budget_reserve": 0.01,
    "budget_economy": 0.8,
    "tool_seconds": 30.0,
    "task_seconds": 300.0,
    "consolidate_seconds": 600.0,
    "consolidate_batch": "off",
    "response_cache_seconds": 86_400,
    "agent_modules": ["worker.story", "worker.companion"],
    "story_folders": ["stories"],
    "default_story": None,
    "lease_seconds": 3.0,
    "outage_seconds": 30.0,
    "heartbeat_seconds": 1.0,
    "sweep_seconds": 1.0,
    "max_attempts": 5,
    "quarantine_after": 4,
    "max_in_flight": 1000,
    "worker_memory": None,
    "cache_agents": 10_000,
    "cache_idle_seconds": 1800.0,
    "cache_bytes": 67_108_864,
    "worker_metrics": None,
    "stuck_seconds": 30.0,
    "drain_seconds": 25.0,
    "agent_seconds": 120.0,
    "event_days": 30,
    "step_days": 7,
    "log_format": "json",
    "log_level": "info",
}

SECRET = "hunter2-Wh1sper"

WRONG = [
    ("DATABASE_URL", f"mysql://u:{SECRET}@h/db", "must begin with postgresql://"),
    ("DATABASE_URL", f"postgresql+psycopg://u:{SECRET}@h/db", "must begin with postgresql://"),
    ("DATABASE_URL", f"postgresql:u:{SECRET}@h/db", "must begin with postgresql://"),
    ("REDIS_URL", f"http://u:{SECRET}@h", "must begin with redis://, rediss:// or unix://"),
    ("FIRESIDE_BROKER_URL", SECRET, "must be a URL, as redis://... or amqp://..."),
    *(
        (name, url, "must begin with http:// or https://")
        for name in ("FIRESIDE_MODEL_URL", "FIRESIDE_MODEL_CHEAP_URL", "FIRESIDE_EMBEDDINGS_URL")
        for url in (f"{SECRET}:8080/v1", f"ftp://u:{SECRET}@h")
    ),
    *(
        (name, url, "is not a URL; are special characters in it percent-encoded?")
        for name, url in [
            ("DATABASE_URL", f"postgresql://u:{SECRET}/x@h/db"),
            ("DATABASE_URL", f"postgresql://u:{SECRET}#@h/db"),
            ("DATABASE_URL", f" postgresql://u:{SECRET}@h/db"),
            ("DATABASE_URL", f"postgresql://u:x@{SECRET}@h/db"),
            ("DATABASE_URL", f"postgresql://u:{SECRET}@h:5432x/db"),
            ("DATABASE_URL", f"postgresql://u:{SECRET}@h:99999/db"),
            ("REDIS_URL", f"redis://u:{SECRET}[@h"),
            ("REDIS_URL", f"redis://u:{SECRET}@h\u2100"),
            ("FIRESIDE_BROKER_URL", f"amqp://u:{SECRET}?@h"),
        ]
    ),
    *(
        (name, url, "has no port after the colon of its host")
        for name in ("DATABASE_URL", "FIRESIDE_DATABASE_URL")
        for url in (f"postgresql://u:{SECRET}@h:/db", f"postgresql://u:{SECRET}@[::1]:")
    ),
    *(
        (name, url, "has an option after its ? that is unknown or has a wrong value")
        for name, url in [
            ("DATABASE_URL", f"postgresql://u:{SECRET}@h/db?plugin=x"),
            ("DATABASE_URL", f"postgresql://u:{SECRET}@h/db?sslmode=require&pgbouncer=true"),
            ("DATABASE_URL", f"postgresql://u:{SECRET}@h/db?autocommit=1"),
            ("DATABASE_URL", f"postgresql://u:{SECRET}@h/db?port=x"),
            ("DATABASE_URL", f"postgresql://h/db?user=u&password=x&{SECRET}=x"),
            ("FIRESIDE_DATABASE_URL", f"postgresql://u:{SECRET}@h/db?plugin=x"),
            ("REDIS_URL", f"redis://u:{SECRET}@h?plugin=x"),
            ("REDIS_URL", f"redis://u:{SECRET}@h?db={SECRET}"),
            ("REDIS_URL", f"redis://u:{SECRET}@h?ssl_cert_reqs=none"),
            ("REDIS_URL", f"redis://u:{SECRET}@h?retry=x"),
            ("REDIS_URL", f"rediss://u:{SECRET}@h?ssl_cert_reqs={SECRET}"),
            ("REDIS_URL", f"redis://u:{SECRET}@h?connection_class={SECRET}"),
            ("FIRESIDE_REDIS_URL", f"unix://u:{SECRET}@/r.sock?plugin=x"),
        ]
    ),
    ("FIRESIDE_QUEUE", f"{SECRET} ", "String should match pattern '^[A-Za-z0-9_.-]{1,64}$'"),
    (
        "FIRESIDE_WORKER_METRICS",
        SECRET,
        "String should match pattern '^[A-Za-z0-9_.:\\[\\]-]*:[0-9]{1,5}$'",
    ),
    (
        "FIRESIDE_DATABASE_POOLER",
        SECRET,
        "Input should be 'none', 'transaction' or 'transaction_prepared'",
    ),
    ("FIRESIDE_AUTH", SECRET, "Input should be 'required' or 'none'"),
    ("FIRESIDE_LOG_FORMAT", SECRET, "Input should be 'json' or 'text'"),
    ("FIRESIDE_LOG_LEVEL", SECRET, "Input should be 'debug', 'info', 'warning' or 'error'"),
    ("FIRESIDE_CONSOLIDATE_BATCH", SECRET, "Input should be 'off' or 'openai'"),
    *(
        (
            "FIRESIDE_JWT_ALGORITHMS",
            value,
            "only these algorithms are accepted: ES256, ES384, EdDSA, PS256, RS256, RS384, RS512",
        )
        for value in (SECRET, "HS256", "RS256,none", " , ")
    ),
    *(
        (
            name,
            SECRET,
            f"Input should be a valid {kind}, unable to parse string as {article} {kind}",
        )
        for kind, article, names in [
            (
                "integer",
                "an",
                "DATABASE_POOL TICKET_SECONDS MAX_SOCKETS MAX_SOCKETS_PER_USER MODEL_RETRIES "
                "MODEL_REQUESTS_PER_MINUTE MODEL_TOKENS_PER_MINUTE MODEL_CONCURRENCY "
                "MAX_QUEUED_PER_USER MAX_QUEUED MAX_ATTEMPTS QUARANTINE_AFTER MAX_IN_FLIGHT "
                "EVENT_DAYS STEP_DAYS WORKER_MEMORY CACHE_AGENTS CACHE_BYTES "
                "RESPONSE_CACHE_SECONDS",
            ),
            (
                "number",
                "a",
                "PING_SECONDS POLL_SECONDS MODEL_FIRST_TOKEN_SECONDS MODEL_STALL_SECONDS "
                "TOOL_SECONDS TASK_SECONDS LEASE_SECONDS HEARTBEAT_SECONDS SWEEP_SECONDS "
                "STUCK_SECONDS DRAIN_SECONDS CACHE_IDLE_SECONDS "
                "MARK_UP BUDGET_RESERVE BUDGET_ECONOMY",
            ),
        ]
        for name in (f"FIRESIDE_{one}" for one in names.split())
    ),
    *(
        (f"FIRESIDE_{name}", value, f"Input should be greater than {bound}")
        for name, value, bound in [
            ("DATABASE_POOL", "1", "or equal to 2"),
            ("TICKET_SECONDS", "4", "or equal to 5"),
            ("MAX_SOCKETS", "0", "or equal to 1"),
            ("MAX_SOCKETS_PER_USER", "0", "or equal to 1"),
            ("MAX_QUEUED_PER_USER", "0", "or equal to 1"),
            ("MAX_QUEUED", "0", "or equal to 1"),
            ("PING_SECONDS", "0", "0"),
            ("POLL_SECONDS", "0", "0"),
            ("MODEL_FIRST_TOKEN_SECONDS", "0", "0"),
            ("MODEL_STALL_SECONDS", "0", "0"),
            ("MODEL_RETRIES", "-1", "or equal to 0"),
            ("MODEL_REQUESTS_PER_MINUTE", "0", "or equal to 1"),
            ("MODEL_TOKENS_PER_MINUTE", "0", "or equal to 1"),
            ("MODEL_CONCURRENCY", "0", "or equal to 1"),
            ("TOOL_SECONDS", "0", "0"),
            ("MARK_UP", "-0.1", "or equal to 0"),
            ("BUDGET_RESERVE", "-1", "or equal to 0"),
            ("BUDGET_ECONOMY", "-0.1", "or equal to 0"),
            ("TASK_SECONDS", "-1", "0"),
            ("LEASE_SECONDS", "0.4", "or equal to 0.5"),
            ("HEARTBEAT_SECONDS", "0", "or equal to 0.1"),
            ("SWEEP_SECONDS", "0", "or equal to 0.05"),
            ("MAX_ATTEMPTS", "0", "or equal to 1"),
            ("QUARANTINE_AFTER", "0", "or equal to 1"),
            ("OUTAGE_SECONDS", "-1", "or equal to 0"),
            ("MAX_IN_FLIGHT", "0", "or equal to 1"),
            ("WORKER_MEMORY", "0", "or equal to 1"),
            ("RESPONSE_CACHE_SECONDS", "-1", "or equal to 0"),
            ("CACHE_AGENTS", "-1", "or equal to 0"),
            ("CACHE_IDLE_SECONDS", "0", "0"),
            ("CACHE_BYTES", "-1", "or equal to 0"),
            ("STUCK_SECONDS", "0.9", "or equal to 1"),
            ("DRAIN_SECONDS", "-1", "or equal to 0"),
            ("EVENT_DAYS", "-1", "or equal to 0"),
            ("STEP_DAYS", "-1", "or equal to 0"),
        ]
    ),
    *(
        (f"FIRESIDE_{name}", value, f"Input should be less than or equal to {bound}")
        for name, value, bound in [
            ("DATABASE_POOL", "501", "500"),
            ("TICKET_SECONDS", "31", "30"),
            ("PING_SECONDS", "121", "120"),
            ("POLL_SECONDS", "61", "60"),
            ("MODEL_RETRIES", "11", "10"),
            ("MARK_UP", "1001", "1000"),
            ("BUDGET_RESERVE", "1001", "1000"),
            ("BUDGET_ECONOMY", "1.1", "1"),
            ("LEASE_SECONDS", "301", "300"),
            ("HEARTBEAT_SECONDS", "101", "100"),
            ("SWEEP_SECONDS", "61", "60"),
            ("MAX_ATTEMPTS", "101", "100"),
            ("QUARANTINE_AFTER", "101", "100"),
            ("OUTAGE_SECONDS", "601", "600"),
            ("MAX_IN_FLIGHT", "100001", "100000"),
            ("RESPONSE_CACHE_SECONDS", "604801", "604800"),
            ("CACHE_AGENTS", "1000001", "1000000"),
            ("CACHE_IDLE_SECONDS", "86401", "86400"),
            ("STUCK_SECONDS", "3601", "3600"),
            ("DRAIN_SECONDS", "601", "600"),
            ("EVENT_DAYS", "36501", "36500"),
            ("STEP_DAYS", "36501", "36500"),
        ]
    ),
    *(
        (
            "FIRESIDE_MODEL_LIMITS",
            value,
            "must be provider/model=requests/tokens/calls for each model",
        )
        for value in (SECRET, f"{SECRET}=1", f"a/{SECRET}", f"a/{SECRET}=1/2/3/4", f"={SECRET}/b=1")
    ),
    *(
        (
            "FIRESIDE_MODEL_LIMITS",
            f"a/{SECRET}={value}",
            "a limit must be a whole number above 0, or - for none",
        )
        for value in ("0", "-1", "1.5", "x", "1/", "/1", "1//2", "²", "1" * 13)
    ),
    ("FIRESIDE_MODEL_LIMITS", f"a/{SECRET}=1,a/{SECRET}=2", "a model is named twice"),
    *(
        (name, SECRET, "must be US dollars, as 100, 20/month or 0.5/day")
        for name in ("FIRESIDE_BUDGET_PER_USER", "FIRESIDE_BUDGET_PER_KEY")
    ),
    *(
        (f"FIRESIDE_{name}", value, "Input should be a finite number")
        for name in (
            "TOOL_SECONDS",
            "TASK_SECONDS",
            "LEASE_SECONDS",
            "PING_SECONDS",
            "AGENT_SECONDS",
        )
        for value in ("nan", "inf", "-inf")
    ),
]


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"FIRESIDE_{name.upper()}", raising=False)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.delenv("REDIS_URL", raising=False)


def shown(settings: Settings) -> dict[str, Any]:
    """All values, secrets in the open."""
    values = {name: getattr(settings, name) for name in Settings.model_fields}
    return {
        name: value.get_secret_value() if hasattr(value, "get_secret_value") else value
        for name, value in values.items()
    }


def test_defaults() -> None:
    assert shown(load_settings()) == DEFAULTS


def test_each_setting_has_a_description() -> None:
    assert [n for n, field in Settings.model_fields.items() if not field.description] == []


def test_each_variable_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    other: dict[str, Any] = {
        "database_url": "postgres://me@db:5433/other",
        "database_pool": 7,
        "database_pooler": "transaction",
        "redis_url": "rediss://cache:6380/2",
        "broker_url": "amqp://broker",
        "queue": "other.queue-1_x",
        "host": "0.0.0.0",
        "auth": "none",
        "jwt_jwks": "https://issuer.example/jwks.json",
        "jwt_issuer": "https://issuer.example",
        "jwt_audience": "fireside",
        "jwt_algorithms": ["ES384", "EdDSA"],
        "allowed_origins": ["https://a.example", "https://b.example"],
        "ticket_seconds": 5,
        "max_sockets": 1,
        "max_sockets_per_user": 2,
        "max_queued_per_user": 3,
        "max_queued": 4,
        "ping_seconds": 0.5,
        "send_seconds": 2.5,
        "poll_seconds": 0.25,
        "gateway_metrics": "0.0.0.0:9101",
        "model": "scripted",
        "model_url": "http://127.0.0.1:9/v1",
        "model_path": "direct",
        "model_api_key": SECRET,
        "model_cheap": "openai/small",
        "model_cheap_url": "http://127.0.0.1:10/v1",
        "model_cheap_api_key": SECRET,
        "model_fallbacks": ["openai/a", "xai/b"],
        "model_first_token_seconds": 1.5,
        "model_stall_seconds": 2.5,
        "model_retries": 0,
        "model_requests_per_minute": 500,
        "model_tokens_per_minute": 200_000,
        "model_concurrency": 20,
        "model_limits": ["openai/a=500/200000/20", "openai/b=-/90000"],
        "embeddings": "openai/text-embedding-3-small",
        "embeddings_url": "http://127.0.0.1:9/v1",
        "embeddings_api_key": SECRET,
        "prices": "prices.json",
        "mark_up": 1.25,
        "budget_per_user": "20/month",
        "budget_per_key": "0.5/day",
        "budget_reserve": 0.002,
        "budget_economy": 0.5,
        "tool_seconds": 3.5,
        "task_seconds": 4.5,
        "consolidate_seconds": 0.0,
        "consolidate_batch": "openai",
        "response_cache_seconds": 0,
        "agent_modules": ["parrot"],
        "story_folders": ["a", "b/c"],
        "default_story": "cave",
        "lease_seconds": 0.5,
        "outage_seconds": 5.0,
        "heartbeat_seconds": 0.25,
        "sweep_seconds": 0.05,
        "max_attempts": 1,
        "quarantine_after": 2,
        "max_in_flight": 2,
        "worker_memory": 500_000_000,
        "cache_agents": 100,
        "cache_idle_seconds": 60.0,
        "cache_bytes": 1_000_000,
        "worker_metrics": "0.0.0.0:9100",
        "stuck_seconds": 2.0,
        "drain_seconds": 0.0,
        "agent_seconds": 9.0,
        "event_days": 0,
        "step_days": 1,
        "log_format": "text",
        "log_level": "debug",
    }
    for name, value in other.items():
        variable = f"FIRESIDE_{name.upper()}"
        monkeypatch.setenv(variable, ", ".join(value) if isinstance(value, list) else str(value))

    assert shown(load_settings()) == other
    assert {name for name in DEFAULTS if other[name] == DEFAULTS[name]} == set()


def test_the_names_that_platforms_give_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://first")
    monkeypatch.setenv("FIRESIDE_DATABASE_URL", "postgresql://second")
    monkeypatch.setenv("REDIS_URL", "redis://first")
    monkeypatch.setenv("FIRESIDE_REDIS_URL", "redis://second")

    assert shown(load_settings()) == DEFAULTS | {
        "database_url": "postgresql://first",
        "redis_url": "redis://first",
    }


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.setenv(f"FIRESIDE_{name.upper()}", "")
    monkeypatch.setenv("DATABASE_URL", "")

    assert shown(load_settings()) == DEFAULTS


def test_story_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRESIDE_STORY_FOLDERS", "a,b/c  d")

    assert load_settings().story_paths == [Path("a"), Path("b/c"), Path("d")]


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("DATABASE_URL", "postgresql://"),
        ("DATABASE_URL", "postgresql:///db?host=/run/postgresql&user=me&password=p%20w"),
        ("DATABASE_URL", "postgresql://me@/db?host=a:1&host=b:2&target_session_attrs=any"),
        ("DATABASE_URL", "postgres://me:p%40w@[::1]:5432/db?sslmode=require&options=-c%20a=1"),
        ("REDIS_URL", "redis://:p%40w@h:/0?protocol=3&socket_timeout=2"),
        ("REDIS_URL", "rediss://h/1?ssl_cert_reqs=none&health_check_interval=5&timeout=1"),
        ("REDIS_URL", "unix://u:p@/run/r.sock?db=4"),
    ],
)
def test_a_url_that_will_do(monkeypatch: pytest.MonkeyPatch, name: str, url: str) -> None:
    monkeypatch.setenv(name, url)

    assert shown(load_settings())[name.lower()] == url


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_a_wrong_value_is_named_but_not_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError) as caught:
        load_settings()

    assert str(caught.value) == f"{name}: {message}"
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_all_wrong_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRESIDE_DATABASE_POOL", "1")
    monkeypatch.setenv("FIRESIDE_AUTH", "maybe")

    with pytest.raises(SettingsError) as caught:
        load_settings()

    assert str(caught.value) == (
        "FIRESIDE_DATABASE_POOL: Input should be greater than or equal to 2; "
        "FIRESIDE_AUTH: Input should be 'required' or 'none'"
    )


@pytest.mark.parametrize(("lease", "heartbeat"), [("3", "1.6"), ("0.5", "0.3")])
def test_a_heartbeat_must_fit_twice_into_a_lease(
    monkeypatch: pytest.MonkeyPatch, lease: str, heartbeat: str
) -> None:
    monkeypatch.setenv("FIRESIDE_LEASE_SECONDS", lease)
    monkeypatch.setenv("FIRESIDE_HEARTBEAT_SECONDS", heartbeat)

    with pytest.raises(SettingsError) as caught:
        load_settings()

    assert str(caught.value) == (
        "settings: FIRESIDE_HEARTBEAT_SECONDS must be at most half of the lease"
    )


def test_no_secret_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgresql://u:{SECRET}@h/db")
    monkeypatch.setenv("REDIS_URL", f"redis://u:{SECRET}@h/0")
    monkeypatch.setenv("FIRESIDE_BROKER_URL", f"amqp://u:{SECRET}@h")
    monkeypatch.setenv("FIRESIDE_MODEL_API_KEY", SECRET)
    settings = load_settings()

    assert SECRET not in repr(settings) + str(settings) + settings.model_dump_json()


def test_the_settings_of_a_process_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    get_settings.cache_clear()
    first = get_settings()
    monkeypatch.setenv("FIRESIDE_QUEUE", "later")

    assert get_settings() is first
    assert load_settings().queue == "later"
    get_settings.cache_clear()


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("FIRESIDE_MAX_INFLIGHT", "FIRESIDE_MAX_IN_FLIGHT"),
        ("fireside_modell", "FIRESIDE_MODEL"),
        ("FIRESIDE_PORT", "PORT"),
        ("FIRESIDE_DATABASE_URI", "FIRESIDE_DATABASE_URL"),
        ("FIRESIDE_FLUX_CAPACITOR", None),
        ("FIRESIDE_", None),
    ],
)
def test_a_variable_that_is_no_setting_is_told(variable: str, meant: str | None) -> None:
    assert unknown_variables({variable: "8000"}) == {variable: meant}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FIRESIDE_MODEL", "openai/any"),
        ("fireside_model", "openai/any"),
        ("FIRESIDE_DATABASE_URL", "postgresql://host/name"),
        ("DATABASE_URL", "postgresql://host/name"),
        ("PORT", "8000"),
        ("FIRESIDE_HOME", ".fireside"),
        ("MODEL", "other"),
        ("FIRESIDE_SERVICE_HOST", "10.0.0.1"),
        ("FIRESIDE_GATEWAY_SERVICE_PORT_HTTP", "80"),
        ("FIRESIDE_PORT", "tcp://10.0.0.1:80"),
        ("FIRESIDE_GATEWAY_PORT_80_TCP_ADDR", "10.0.0.1"),
    ],
)
def test_what_is_a_setting_or_of_others_is_not_told(variable: str, value: str) -> None:
    assert unknown_variables({variable: value}) == {}


def test_a_warning_names_the_variable_and_not_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRESIDE_MODEL_APIKEY", SECRET)

    with structlog.testing.capture_logs() as told:
        warn_of_unknown_variables()

    assert told == [
        {
            "event": "no such setting",
            "log_level": "warning",
            "variable": "FIRESIDE_MODEL_APIKEY",
            "perhaps": "FIRESIDE_MODEL_API_KEY",
        }
    ]
