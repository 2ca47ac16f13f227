"""Consolidation by a provider's batches: what nobody waits for, at half the price.

Here batches are made of the ranges that wait, sent, asked after, and their answers taken in. What
is out stands in Postgres before the provider hears of it, so any worker goes on where another one
has died. What an answer is worth is judged by the task that takes it (`worker/consolidation.py`).
"""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import structlog

from agent_core import ProviderError, Usage
from agent_core.openai_batches import BatchEndpoint, BatchResult, BatchStatus, question_line
from agent_core.tokens import count_context_tokens, count_tokens
from shared.allowance import BudgetRules
from shared.encoding import well_formed
from shared.records import LedgerEntry
from shared.store import batches, budgets, consolidation
from shared.store.batches import LEASE_SECONDS, LONGEST, Asked, Batch
from shared.store.database import Database
from shared.trouble import Trouble
from worker.consolidation import PURPOSE, asked, options_of
from worker.extraction import OUTPUT_CHARACTERS
from worker.metering import Tariff, tokens_of

log = structlog.get_logger(__name__)

LOOK_SWEEPS = 60
"""After so many sweeps batches are looked at, and as long do ranges wait for others to go with."""

MOST_SENDS = 2
"""How often a provider is told to begin, where it did not say whether it has."""

SEND_SECONDS = 3600.0
"""How long a provider is tried that takes no batch."""

GIVEN_UP = 2 * LONGEST
"""How old a batch gets of which a provider says nothing. Its ranges don't wait so long; but what it
has answered is paid for, and its files hold what users said."""

PRICE_SHARE = Decimal("0.5")
"""What a call in a batch costs of what it would cost otherwise."""


class Batching:
    """Sees to batches; any number of processes may.

    Args:
        every: seconds between two looks at a batch; for as long are ranges gathered for one.
    """

    def __init__(
        self,
        db: Database,
        endpoint: BatchEndpoint,
        tariff: Tariff,
        rules: BudgetRules,
        *,
        every: float,
    ) -> None:
        self._db = db
        self._endpoint = endpoint
        self._tariff = tariff
        self._rules = rules
        self._every = every

    async def may(self, user_id: str) -> bool:
        """Whether the user has money left for it: with a batch goes only what can be paid."""
        left = await budgets.left(self._db, user_id, self._rules)
        return left is None or left > 0

    async def look_for_ever(self) -> None:
        """Look until cancelled."""
        trouble = Trouble(log, "batches not looked at")
        while True:
            await asyncio.sleep(self._every)
            with trouble.catch():
                await self.look()

    async def look(self) -> None:
        """Make the batches that can be made, and see to all that are due."""
        while await batches.make(self._db, self._endpoint.model.name, gather=self._every):
            pass
        while (batch := await batches.take(self._db)) is not None:
            try:
                async with asyncio.timeout(LEASE_SECONDS * 0.9):
                    await self._see_to(batch)
            except (ProviderError, TimeoutError) as error:
                log.warning("batch not seen to", batch=str(batch.id), error=_said(error))
                if batch.age > GIVEN_UP.total_seconds():
                    await self._give_up(batch)
                else:
                    await batches.later(self._db, batch, pause=self._every)

    async def _see_to(self, batch: Batch) -> None:
        if batch.state == "made":
            await self._send(batch)
        else:
            await self._collect(batch)

    # -- on its way out ---------------------------------------------------------------------------

    async def _send(self, batch: Batch) -> None:
        """Have the provider begin: once, also where another process died while it did so.

        Raises:
            ProviderError: nobody knows whether it has; the next look finds out.
        """
        mark = str(batch.id)
        if batch.sends and (begun := await self._find(mark)) is not None:
            await batches.sent(self._db, batch, begun, pause=self._every)
            return
        if batch.sends >= MOST_SENDS or batch.age > SEND_SECONDS:
            await self._give_back(batch, "the provider took it not")
            return
        try:
            file = batch.input_file or await self._upload(batch)
            if file is None:
                await self._give_back(batch, "nothing is left of it")
                return
            await batches.sending(self._db, batch)
            begun = await self._endpoint.create(file, mark)
        except ProviderError as error:
            if error.retryable:
                raise
            await self._give_back(batch, _said(error))
            return
        await batches.sent(self._db, batch, begun, pause=self._every)
        log.info("batch sent", batch=mark)

    async def _find(self, mark: str) -> str | None:
        try:
            return await self._endpoint.find(mark)
        except ProviderError as error:
            if error.retryable:
                raise
            return None  # it has no list

    async def _upload(self, batch: Batch) -> str | None:
        """The name of the questions' file; None where there is nothing to ask."""
        lines = [
            line
            for one in await batches.lines(self._db, batch)
            if (line := await self._line(batch, one)) is not None
        ]
        if not lines:
            return None
        file = await self._endpoint.upload(lines)
        await batches.filed(self._db, batch, file)
        return file

    async def _line(self, batch: Batch, one: Asked) -> bytes | None:
        """The question about a range, as a task would ask it; None where there is none."""
        range_ = (one.user_id, one.session_id, one.first, one.last)
        material = await consolidation.read(self._db, *range_)
        if material is None or all(said.no < one.first for said in material.said):
            await batches.answer(self._db, batch, one.id, None, None)
            return None
        if one.known is not None:
            material = material.as_of(one.known)
        model = self._endpoint.model
        context = asked(material, one.first, one.last)
        tokens = count_context_tokens(context.system_prompt, context.messages, context.tools)
        if not await batches.know(self._db, one, material.remembered, tokens):
            return None
        return question_line(str(one.id), model, context, options_of(model))

    # -- on its way back --------------------------------------------------------------------------

    async def _collect(self, batch: Batch) -> None:
        """Take in what has come. However old it is: workers may have been away for longer."""
        assert batch.provider_id is not None
        files: tuple[str, ...] = ()
        try:
            status = await self._endpoint.status(batch.provider_id)
            files = status.files
            if status.over:
                await self._take_in(batch, status)
        except ProviderError as error:
            if error.status not in {404, 410}:
                raise
            await self._give_back(batch, _said(error), files)
            return
        if status.over:
            left = await batches.end(self._db, batch)
            log.info("batch ended", batch=str(batch.id), status=status.status[:20], unanswered=left)
            await self._delete(batch.input_file, *files)
        elif batch.age > LONGEST.total_seconds():
            await self._give_up(batch, files)
        else:
            await batches.later(self._db, batch, pause=self._every)

    async def _take_in(self, batch: Batch, status: BatchStatus) -> None:
        tokens = {one.id: one.tokens for one in await batches.lines(self._db, batch)}
        for file in status.files:
            async with aclosing(self._endpoint.results(file)) as results:
                async for result in results:
                    if (line := _uuid(result.custom_id)) is not None:
                        entry = self._entry(batch, result, tokens.get(line, 0))
                        await batches.answer(self._db, batch, line, _output(result), entry)

    def _entry(self, batch: Batch, result: BatchResult, asked_tokens: int) -> LedgerEntry | None:
        """What an answer cost; None for one that cost nothing."""
        tokens = tokens_of(result.usage or Usage())
        reported = any(tokens.values())
        if not reported and result.text is None:
            return None
        price = self._tariff.prices.price(batch.model, datetime.now(UTC).date())
        usd, estimated = None, Decimal(0)
        if price is not None:
            usd = PRICE_SHARE * price.usd(**tokens)
            if not reported:
                said = count_tokens(result.text or "")
                estimated = PRICE_SHARE * price.usd(input=asked_tokens, output=said)
        return LedgerEntry(
            no=0,
            model=batch.model,
            purpose=PURPOSE,
            outcome="error" if result.text is None else "done",
            reported=reported,
            **tokens,
            usd=usd,
            estimated_usd=estimated,
            prices=None if price is None else price.version,
            mark_up=self._tariff.mark_up,
        )

    # -- not at all -------------------------------------------------------------------------------

    async def _give_up(self, batch: Batch, files: Sequence[str] = ()) -> None:
        await self._give_back(batch, "it took too long", files)
        await self._cancel(batch)

    async def _give_back(self, batch: Batch, why: str, files: Sequence[str] = ()) -> None:
        """Have all that has no answer read in the ordinary way; `files` are its answers'."""
        left = await batches.end(self._db, batch)
        log.warning("batch given up", batch=str(batch.id), unanswered=left, error=why)
        await self._delete(batch.input_file, *files)

    async def _cancel(self, batch: Batch) -> None:
        if batch.provider_id is not None:
            try:
                await self._endpoint.cancel(batch.provider_id)
            except ProviderError as error:
                log.info("batch not cancelled", error=_said(error))

    async def _delete(self, *files: str | None) -> None:
        """Delete files with users' words at the provider, as far as it lets us."""
        for file in files:
            if file is not None:
                try:
                    await self._endpoint.delete(file)
                except ProviderError as error:
                    log.info("a batch's file is left", error=_said(error))


def _output(result: BatchResult) -> str | None:
    """The answer as Postgres takes it; one that is far too long is none."""
    if result.text is None or len(result.text) > OUTPUT_CHARACTERS:
        return None
    return well_formed(result.text).replace("\0", "")


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _said(error: BaseException) -> str:
    """What may be logged of an error: a provider may quote what it was sent."""
    status = getattr(error, "status", None)
    return f"{type(error).__name__} {status}" if status else type(error).__name__
