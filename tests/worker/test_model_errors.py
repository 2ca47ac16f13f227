"""What the log and users are told of calls of models that failed."""

from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from agent_core import (
    AssistantMessage,
    AssistantMessageEvent,
    LlmContext,
    ProviderError,
    StreamError,
    StreamOptions,
)
from agent_core.testing import ScriptedModel
from tests.worker.attempts import KeepingStore, claim
from tests.worker.test_metering import MODEL, Books, events_of, run
from worker.metering import Meter, Tariff
from worker.model_errors import SAY_SECONDS, UNUSABLE, ModelErrors

KEY = "sk-abcdefgh1jklmnop"
REFUSED = ProviderError(f"litellm.AuthenticationError: Incorrect API key: {KEY}", status=401)


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_refused_key_is_told_to_the_log_and_not_to_users(status: int) -> None:
    store = KeepingStore()
    with capture_logs() as logs:
        refused = ProviderError(str(REFUSED), status=status)
        await run(claim(agent="companion"), store, [refused])

    assert store.events[-1].data["error"] == {"code": "model_failed", "message": UNUSABLE}
    assert "litellm" not in str([event.data for event in store.events])
    assert store.outcome is not None
    assert "litellm" not in str(store.outcome.messages)
    (told,) = [one for one in logs if one["event"] == "a model call failed"]
    assert told == {
        "event": "a model call failed",
        "log_level": "warning",
        "model": MODEL.name,
        "purpose": "reply",
        "status": status,
        "error": "litellm.AuthenticationError: Incorrect API key: [hidden]",
        "left_out": 0,
    }


async def test_a_failed_answer_is_told_as_one_that_was_raised() -> None:
    async def failing(
        model: object, context: LlmContext, options: StreamOptions
    ) -> AsyncIterator[AssistantMessageEvent]:
        message = AssistantMessage([], stop_reason="error", error_message=str(REFUSED))
        yield StreamError("error", message, status=401)

    with capture_logs() as logs:
        final = (await events_of(Meter(claim(), Books(), Tariff()).counted(failing)))[-1]

    assert isinstance(final, StreamError)
    assert (final.status, final.error.error_message) == (401, UNUSABLE)
    assert [(one["status"], KEY in one["error"]) for one in logs] == [(401, False)]


async def test_what_may_quote_a_user_is_not_told_to_the_log() -> None:
    failed = [
        ProviderError("refused: Xanthippe said", status=400),
        ProviderError("The server sent what is no chunk of an answer: Xanthippe"),
        ProviderError("The model did not answer within 30 seconds"),
        ProviderError("Connection failed: Cannot connect to host model:80 ssl:default"),
    ]
    stream_fn = Meter(claim(), Books(), Tariff()).counted(ScriptedModel(failed))

    with capture_logs() as logs:
        finals = [(await events_of(stream_fn))[-1] for _ in failed]

    assert [one["error"] for one in logs] == [
        "not told here: it may quote a user",
        "not told here: it may quote a user",
        "The model did not answer within 30 seconds",
        "Connection failed: Cannot connect to host model:80",
    ]
    assert isinstance(finals[0], StreamError)
    assert finals[0].error.error_message == "refused: Xanthippe said"


async def test_a_refused_form_is_left_for_the_call_without_it() -> None:
    refused = ProviderError("no endpoint supports response_format", status=404)
    stream_fn = Meter(claim(), Books(), Tariff()).counted(ScriptedModel([refused]))

    final = (await events_of(stream_fn))[-1]

    assert isinstance(final, StreamError)
    assert final.error.error_message == "no endpoint supports response_format"


def test_one_kind_of_error_is_told_once_in_a_while() -> None:
    now = 0.0
    errors = ModelErrors(clock=lambda: now)
    with capture_logs() as logs:
        for _ in range(3):
            errors.tell(MODEL, "reply", 401, "no such key")
        errors.tell(MODEL, "reply", 503, "busy")
        now = SAY_SECONDS
        errors.tell(MODEL, "judge", 401, "no such key")

    assert [(one["status"], one["left_out"]) for one in logs] == [(401, 0), (503, 0), (401, 2)]
