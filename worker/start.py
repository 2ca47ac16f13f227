"""Starting a worker: agents and stories are announced, then the host runs."""

import asyncio
import gc
import importlib
import threading
from collections.abc import Mapping
from dataclasses import replace

import structlog
from prometheus_client import PlatformCollector, ProcessCollector

from agent_core import Model, ProviderError, get_model
from agent_core.litellm_stream import preload
from agent_core.openai_batches import BatchEndpoint
from shared.consolidation import KEEPER
from shared.errors import SettingsError
from shared.exposition import show
from shared.garbage import steady_garbage
from shared.records import CatalogEntry
from shared.schema import warn_of_newer_schema
from shared.settings import Settings
from shared.store import catalog
from shared.store.database import Database
from worker.agents import RegisteredAgent, load_agents
from worker.consolidation import ConsolidationAgent
from worker.heap import few_arenas, trim
from worker.host import Host
from worker.memory_limit import container_bytes, resident_bytes, share_of
from worker.publish import publish_stories
from worker.tiers import ModelAccess, ModelTiers

log = structlog.get_logger(__name__)


def start_host(settings: Settings) -> Host:
    """Make the process ready and start its loop.

    Raises:
        FiresideError: a setting is wrong, or Postgres is away or not migrated.
    """
    few_arenas()
    agents = agents_of(settings)
    announced = asyncio.run(
        _announce(settings, [agent for name, agent in agents.items() if name != KEEPER])
    )
    if settings.model_path == "direct" or settings.consolidate_batch != "off":
        importlib.import_module("aiohttp")  # the first model call would hold up the loop with it
    host = Host(
        settings,
        agents,
        model_of(settings),
        key_of(settings),
        tiers=tiers_of(settings),
        watched=True,
        batches=batches_of(settings),
        share=share_of(settings, resident=resident_bytes(), container=container_bytes()),
        announced=announced,
    )
    steady_garbage()
    host.start()
    # Who is answered there knows that this worker serves: readiness probes ask for that.
    if settings.worker_metrics is not None:
        process = (ProcessCollector(registry=None), PlatformCollector(registry=None))
        show(settings.worker_metrics, "FIRESIDE_WORKER_METRICS", *process, host.figures)
    if settings.model_path == "litellm":
        # Seconds of CPU: beside the first tasks, so that a worker which came back after a crash
        # takes over at once. Only a model call waits for it.
        threading.Thread(target=_preload, name="preload", daemon=True).start()
    return host


def agents_of(settings: Settings) -> Mapping[str, RegisteredAgent]:
    """All that a worker can run, by name: the agents on offer, and the one that nobody chooses.

    Raises:
        SettingsError: as `load_agents` does.
    """
    return {**load_agents(settings), KEEPER: ConsolidationAgent()}


def _preload() -> None:
    preload()
    trim()
    gc.freeze()  # a full collection would walk through all of it


def model_of(settings: Settings) -> Model:
    """The model that the settings name, `provider/id` as litellm writes it.

    Raises:
        SettingsError: the name has no provider.
    """
    return _model(settings, "FIRESIDE_MODEL", settings.model, settings.model_url)


def tiers_of(settings: Settings) -> ModelTiers | None:
    """The models that the settings name beside the one; None where they name none.

    Raises:
        SettingsError: a name has no provider.
    """
    if settings.model_cheap is None and not settings.model_fallbacks:
        return None
    cheap = None
    if settings.model_cheap is not None:
        cheap = _access(settings, "FIRESIDE_MODEL_CHEAP", settings.model_cheap)
        if settings.model_cheap_url is not None:
            cheap = replace(cheap, model=replace(cheap.model, base_url=settings.model_cheap_url))
        if settings.model_cheap_api_key is not None:
            cheap = replace(cheap, api_key=settings.model_cheap_api_key.get_secret_value())
    fallbacks = [
        _access(settings, "FIRESIDE_MODEL_FALLBACKS", name) for name in settings.model_fallbacks
    ]
    return ModelTiers(ModelAccess(model_of(settings), key_of(settings)), cheap, fallbacks)


def batches_of(settings: Settings) -> BatchEndpoint | None:
    """Where what nobody waits for is read in batches; None where it is not.

    Raises:
        SettingsError: nobody knows the address of the model's provider.
    """
    if settings.consolidate_batch == "off" or not settings.consolidate_seconds:
        return None
    tiers = tiers_of(settings)
    if tiers is None:
        access = ModelAccess(model_of(settings), key_of(settings))
    else:
        access = tiers.access("cheap")
    try:
        return BatchEndpoint(access.model, access.api_key)
    except ProviderError as error:
        raise SettingsError(f"FIRESIDE_CONSOLIDATE_BATCH: {error}") from None


def _access(settings: Settings, variable: str, name: str) -> ModelAccess:
    """A further model: it shares URL and key with the first where their provider is the same."""
    same = name.partition("/")[0] == settings.model.partition("/")[0]
    model = _model(settings, variable, name, settings.model_url if same else None)
    return ModelAccess(model, key_of(settings) if same else None)


def _model(settings: Settings, variable: str, name: str, url: str | None) -> Model:
    provider, slash, model_id = name.partition("/")
    if not slash or not provider or not model_id:
        raise SettingsError(f"{variable}: must be provider/model, for example openai/gpt-5-mini")
    return get_model(
        provider,
        model_id,
        base_url=url,
        api="openai" if settings.model_path == "direct" else "litellm",
        first_token_timeout=settings.model_first_token_seconds,
        stall_timeout=settings.model_stall_seconds,
        max_attempts=settings.model_retries + 1,
    )


def key_of(settings: Settings) -> str | None:
    """The key that the settings give for the model, or None."""
    key = settings.model_api_key
    return None if key is None else key.get_secret_value()


async def _announce(settings: Settings, agents: list[RegisteredAgent]) -> list[CatalogEntry]:
    async with Database.opened(settings) as db:
        warn_of_newer_schema(await db.revision())
        stories = await publish_stories(db, settings)
        entries = [*(agent.entry for agent in agents), *stories]
        await catalog.announce(db, entries)
        return entries
