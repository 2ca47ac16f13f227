"""Which model answers: by need of tools and by task, the same for a session, with fallbacks."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from agent_core.completion import stream_completion
from agent_core.errors import UnknownModelError
from agent_core.models import Model
from agent_core.streaming import (
    LONGEST_WAIT,
    AssistantMessageEvent,
    LlmContext,
    StreamDone,
    StreamError,
    StreamFn,
    StreamOptions,
)

logger = logging.getLogger(__name__)

Task: TypeAlias = Literal["simple", "deep", "judge", "summarise"]

_MAX_SESSIONS = 10_000

# What is wrong with the request would be wrong with it anywhere, and says nothing of the model.
_REQUEST_FAULTS = frozenset({400, 413, 422})


@dataclass(slots=True)
class _Entry:
    """A registered model and how it has been doing."""

    name: str
    model: Model
    tasks: frozenset[str]
    failures: int = 0
    closed_until: float = field(default=0.0)


class ModelRouter:
    """Chooses among registered models; the order of their registration is the order of fallback.

    A model that failed `trip_after` times in a row, or asked for a wait, is left out for
    `cool_down` seconds (or that wait), then tried again. A session keeps its model as long as
    that one works: changing it costs the provider's cache of the prompt.
    """

    def __init__(
        self,
        *,
        cool_down: float = 30.0,
        trip_after: int = 3,
        sticky: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cool_down = cool_down
        self._trip_after = trip_after
        self._sticky = sticky
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._chosen: OrderedDict[tuple[str, str], str] = OrderedDict()

    def register(self, name: str, model: Model, tasks: Iterable[Task] = ()) -> None:
        """Add a model under a name of its own; without tasks it serves all of them."""
        self._entries[name] = _Entry(name, model, frozenset(tasks))

    def get_model(
        self,
        has_tools: bool = False,
        *,
        task: Task = "simple",
        session_id: str | None = None,
    ) -> Model:
        """Return the model to try first; raises UnknownModelError if none fits."""
        return self.candidates(has_tools=has_tools, task=task, session_id=session_id)[0]

    def candidates(
        self, *, has_tools: bool = False, task: Task = "simple", session_id: str | None = None
    ) -> list[Model]:
        """Return the models that fit, in the order to try them; those that cool down come last."""
        fitting = self._fitting(has_tools=has_tools, task=task)
        now = self._clock()
        fitting.sort(key=lambda entry: entry.closed_until > now)
        if self._sticky and session_id is not None:
            self._stick(fitting, (session_id, task), now)
        return [entry.model for entry in fitting]

    def preferred(self, *, has_tools: bool = False, task: Task = "simple") -> Model:
        """Return the model to try first if all are well; raises UnknownModelError if none fits."""
        return self._fitting(has_tools=has_tools, task=task)[0].model

    def _fitting(self, *, has_tools: bool, task: Task) -> list[_Entry]:
        capable = [entry for entry in self._entries.values() if entry.model.tools or not has_tools]
        fitting = [entry for entry in capable if task in entry.tasks]
        # A model for all tasks stands in for one of its own.
        fitting += [entry for entry in capable if not entry.tasks]
        if not fitting:
            raise UnknownModelError(f"no model is registered for {task}, has_tools={has_tools}")
        return fitting

    def _stick(self, fitting: list[_Entry], key: tuple[str, str], now: float) -> None:
        """Put the session's model first, or make the first one the session's."""
        kept = next((each for each in fitting if each.name == self._chosen.get(key)), None)
        if kept is not None and kept.closed_until <= now:
            fitting.remove(kept)
            fitting.insert(0, kept)
        self._chosen[key] = fitting[0].name
        self._chosen.move_to_end(key)
        if len(self._chosen) > _MAX_SESSIONS:
            self._chosen.popitem(last=False)

    def report(self, model: Model, error: StreamError | None) -> None:
        """Take note of how a call went: None for well."""
        for entry in self._entries.values():
            if not _is_same(entry.model, model):
                continue
            if error is None:
                entry.failures = 0
                entry.closed_until = 0.0
            elif error.reason == "error" and error.status not in _REQUEST_FAULTS:
                self._note_failure(entry, error)

    def _note_failure(self, entry: _Entry, error: StreamError) -> None:
        entry.failures += 1
        if error.retry_after is None and entry.failures < self._trip_after:
            return
        stated = error.retry_after
        wait = self._cool_down if stated is None else min(stated, LONGEST_WAIT)
        entry.closed_until = self._clock() + wait
        logger.warning("model %s is left out for %.0f s", entry.name, wait)

    def stream_fn(
        self,
        inner: StreamFn | None = None,
        *,
        task: Task = "simple",
        key_of: Callable[[Model], Awaitable[str | None]] | None = None,
    ) -> StreamFn:
        """Return a stream function that falls back from model to model.

        The model it is called with is tried first, unless it is left out just now. A model that
        has begun its answer is not replaced. A fallback of another provider is called with what
        `key_of` gives for it; without that, with the key of the options only at the same
        `base_url`, else with none.
        """

        async def routed(
            model: Model, context: LlmContext, options: StreamOptions
        ) -> AsyncGenerator[AssistantMessageEvent, None]:
            candidates = self._with_fallbacks(model, task, options, tools=bool(context.tools))
            for candidate in candidates:
                fallback_left = candidate is not candidates[-1]
                began = False
                own = options
                if candidate.provider != model.provider and key_of is not None:
                    own = replace(options, api_key=await key_of(candidate))
                elif not candidate.shares_keys_with(model):
                    own = replace(options, api_key=None)
                events = stream_completion(candidate, context, own, stream_fn=inner)
                async with aclosing(events):
                    async for event in events:
                        if isinstance(event, (StreamDone, StreamError)):
                            failure = event if isinstance(event, StreamError) else None
                            self.report(candidate, failure)
                            if _is_replaceable(event) and fallback_left and not began:
                                logger.info("%s failed, falling back", candidate.name)
                                break
                        began = True
                        yield event
                    else:
                        return

        return routed

    def _with_fallbacks(
        self, model: Model, task: Task, options: StreamOptions, *, tools: bool
    ) -> list[Model]:
        rest = self.candidates(has_tools=tools, task=task, session_id=options.session_id)
        now = self._clock()
        closed = any(
            _is_same(entry.model, model) and entry.closed_until > now
            for entry in self._entries.values()
        )
        others = [other for other in rest if not _is_same(other, model)]
        return [*others, model] if closed else [model, *others]


def _is_same(one: Model, other: Model) -> bool:
    """Whether two are one model: a caller may have changed how it is to be called."""
    return (one.name, one.base_url) == (other.name, other.base_url)


def _is_replaceable(event: AssistantMessageEvent) -> bool:
    return isinstance(event, StreamError) and event.reason == "error"
