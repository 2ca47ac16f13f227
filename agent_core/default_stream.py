"""The stream function that agents use if they are given none: it picks the way by `model.api`."""

from __future__ import annotations

from collections.abc import AsyncIterator

from agent_core.models import Model
from agent_core.streaming import AssistantMessageEvent, LlmContext, StreamOptions


def stream_model(
    model: Model, context: LlmContext, options: StreamOptions
) -> AsyncIterator[AssistantMessageEvent]:
    """Call a model: through litellm, or directly where it speaks OpenAI's protocol."""
    # Both ways import heavy packages, so each is imported when it is first used.
    if model.api == "openai":
        from agent_core.openai_stream import stream_openai  # noqa: PLC0415

        return stream_openai(model, context, options)
    from agent_core.litellm_stream import stream_litellm  # noqa: PLC0415

    return stream_litellm(model, context, options)
