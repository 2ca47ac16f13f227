"""What the calls of models cost: each is counted and priced, and none begins without money.

Counting happens beneath whatever tries again: each try is a call of its own. What a provider
reported of a call stands in the ledger to the token, however the call ended; where it broke off
before that, an estimate in dollars stands beside it, so that nobody pays less by hanging up.
"""

import inspect
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from time import monotonic
from typing import Any, Literal, Protocol, TypeAlias

import structlog

from agent_core import (
    AbortedError,
    AssistantMessage,
    AssistantMessageEvent,
    LlmContext,
    Model,
    ProviderError,
    StreamDone,
    StreamError,
    StreamFn,
    StreamOptions,
    Usage,
)
from agent_core.default_stream import stream_model
from agent_core.tokens import count_context_tokens, count_message_tokens
from shared.errors import StoreUnavailable
from shared.prices import Price, PriceTable, load_prices
from shared.records import Claim, LedgerEntry
from shared.settings import Settings
from worker.model_errors import UNUSABLE, ModelErrors

log = structlog.get_logger(__name__)

PURPOSE = "reply"
"""What a call is for whose maker did not say."""

_INT32 = 2**31 - 1

_Outcome: TypeAlias = Literal["done", "error", "aborted"]


def _unheard(_outcome: str, _seconds: float) -> None:
    """Nobody counts."""


class Books(Protocol):
    """Where an attempt's calls are entered."""

    def enter(self, entry: LedgerEntry) -> None:
        """Take a call; its number is given here."""

    async def left(self) -> Decimal | None:
        """What may still be spent; None for anything. May raise StoreUnavailable."""


@dataclass(frozen=True, slots=True)
class Tariff:
    """What calls cost in this process, and what is billed for them.

    `reserve` is what a call is taken to cost while it is under way. `on_call` is told of each one
    how it ended and how many seconds it took, `errors` of those that failed.
    """

    prices: PriceTable = field(default_factory=PriceTable)
    mark_up: Decimal = Decimal(1)
    reserve: Decimal = Decimal(0)
    on_call: Callable[[str, float], None] = field(default=_unheard, compare=False, repr=False)
    errors: ModelErrors = field(default_factory=ModelErrors, compare=False, repr=False)
    _unknown: set[str] = field(default_factory=set, compare=False, repr=False)

    @classmethod
    def from_settings(cls, settings: Settings, models: "tuple[Model, ...]" = ()) -> "Tariff":
        """The tariff as an operator has set it.

        Args:
            models: those that will be called; that one has no price is said at once.

        Raises:
            PricesError: the operator's table is malformed.
        """
        tariff = cls(
            load_prices(None if settings.prices is None else Path(settings.prices)),
            Decimal(str(settings.mark_up)),
            settings.budgets.reserve,
        )
        for model in models:
            tariff.price(model)
        return tariff

    def price(self, model: Model) -> Price | None:
        """A model's price today; that it has none is logged once."""
        price = self.prices.price(model.name, datetime.now(UTC).date())
        if price is None and model.name not in self._unknown and self.prices.models:
            self._unknown.add(model.name)
            log.warning(
                "a model has no price: its calls count for no budget, see FIRESIDE_PRICES",
                model=model.name,
            )
        return price


class Meter:
    """The calls of one attempt.

    `refused` says that one was not made for want of money.
    """

    def __init__(self, claim: Claim, books: Books, tariff: Tariff) -> None:
        self._books = books
        self._tariff = tariff
        self._left = claim.left_usd
        self._limited = claim.left_usd is not None
        self._asked = False
        self._under_way = 0
        self.refused = False

    def counted(self, stream_fn: StreamFn | None) -> StreamFn:
        """The same stream function; each of its calls is entered when it ends."""

        async def stream(
            model: Model, context: LlmContext, options: StreamOptions
        ) -> AsyncGenerator[AssistantMessageEvent, None]:
            call = _Call(model, context, options)
            try:
                async with aclosing(_opened(stream_fn, model, context, options)) as events:
                    async for event in events:
                        if isinstance(event, StreamDone | StreamError):
                            self._enter(call, event)
                            if isinstance(event, StreamError) and self._hides(call, event):
                                event.error.error_message = UNUSABLE
                        else:
                            call.partial = event.partial
                        yield event
            except Exception as error:
                call.outcome = "error"
                if self._hides(call, error):
                    status = error.status if isinstance(error, ProviderError) else None
                    raise ProviderError(UNUSABLE, status=status) from error
                raise
            finally:
                if not call.entered:
                    self._enter(call, None)

        return stream

    def guarded(self, stream_fn: StreamFn) -> StreamFn:
        """The same stream function, which calls nobody once a budget is spent."""
        if not self._limited:
            return stream_fn

        async def stream(
            model: Model, context: LlmContext, options: StreamOptions
        ) -> AsyncGenerator[AssistantMessageEvent, None]:
            await self._check()
            self._under_way += 1
            try:
                async with aclosing(_opened(stream_fn, model, context, options)) as events:
                    async for event in events:
                        yield event
            finally:
                self._under_way -= 1

        return stream

    async def _check(self) -> None:
        """Look what is left before each call: another session may have spent it meanwhile.

        Raises:
            ProviderError: nothing is; in a form that holds nothing against the model.
        """
        if self._asked:
            try:
                self._left = await self._books.left()
            except StoreUnavailable as error:
                log.warning("budget not looked at", error=str(error))
        self._asked = True
        # Calls that an agent makes side by side must not all be paid from the same last cent.
        taken = self._under_way * self._tariff.reserve
        if self._left is not None and self._left <= taken:
            self.refused = True
            raise ProviderError("The budget for this is spent", status=400)

    def _hides(self, call: "_Call", failed: StreamError | Exception) -> bool:
        """Tell the log of a call that failed; whether users are not to read why."""
        if isinstance(failed, AbortedError):
            return False
        if isinstance(failed, StreamError) and failed.reason == "aborted":
            return False
        return self._tariff.errors.take(
            call.model, call.options.purpose or PURPOSE, failed, call.options.api_key
        )

    def _enter(self, call: "_Call", final: StreamDone | StreamError | None) -> None:
        call.entered = True
        message, outcome = call.ended(final)
        self._tariff.on_call(outcome, monotonic() - call.began)
        used = message.usage
        price = self._tariff.price(call.model)
        tokens = tokens_of(used)
        reported = any(tokens.values())
        usd = None if price is None else price.usd(**tokens)
        if usd is not None:
            used.cost = float(usd)  # one price in the ledger, the journal and what clients are told
        self._books.enter(
            LedgerEntry(
                no=0,
                model=call.model.name,
                purpose=(call.options.purpose or PURPOSE)[:64],
                outcome=outcome,
                reported=reported,
                step=call.options.step,
                **tokens,
                usd=usd,
                estimated_usd=Decimal(0) if reported else call.estimate(price, message, outcome),
                prices=None if price is None else price.version,
                mark_up=self._tariff.mark_up,
            )
        )


class _Call:
    """A call that is under way."""

    def __init__(self, model: Model, context: LlmContext, options: StreamOptions) -> None:
        self.model = model
        self.options = options
        self.partial: AssistantMessage | None = None
        self.outcome: _Outcome = "aborted"
        self.entered = False
        self.began = monotonic()
        self._context = context

    def ended(self, final: StreamDone | StreamError | None) -> tuple[AssistantMessage, _Outcome]:
        """What there is of the answer, and how it ended."""
        if isinstance(final, StreamDone):
            return final.message, "done"
        if final is not None:
            return final.error, "aborted" if final.reason == "aborted" else "error"
        return self.partial or AssistantMessage([]), self.outcome

    def estimate(
        self, price: Price | None, message: AssistantMessage, outcome: _Outcome
    ) -> Decimal:
        """What a provider is likely to charge for a call that it reported nothing of.

        One that failed before it gave anything is not charged for.
        """
        if price is None or (outcome == "error" and not message.content):
            return Decimal(0)
        context = self._context
        asked = count_context_tokens(context.system_prompt, context.messages, context.tools)
        return price.usd(input=asked, output=count_message_tokens(message))


async def _opened(
    stream_fn: StreamFn | None, model: Model, context: LlmContext, options: StreamOptions
) -> AsyncGenerator[AssistantMessageEvent, None]:
    """The events of a stream function of any of its forms, closed when this is."""
    opened: Any = (stream_fn or stream_model)(model, context, options)
    events = await opened if inspect.isawaitable(opened) else opened
    try:
        async for event in events:
            yield event
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()


def tokens_of(used: Usage) -> dict[str, int]:
    """The tokens of a call by their kinds, as the ledger takes them."""
    return {
        "input": _count(used.input),
        "output": _count(used.output),
        "cache_read": _count(used.cache_read),
        "cache_write": _count(used.cache_write),
    }


def _count(tokens: int) -> int:
    """A count as the ledger takes it: providers have been seen to report nonsense."""
    return min(max(tokens, 0), _INT32)
