"""OpenAI's chat format, which litellm speaks, too: requests from messages, what answers hold."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from agent_core.content import ImageContent, TextContent, ThinkingContent, plain_text
from agent_core.errors import ProviderError
from agent_core.messages import (
    AssistantMessage,
    LlmMessage,
    ToolResultMessage,
    Usage,
    UserMessage,
)
from agent_core.models import Model
from agent_core.partial_json import as_text
from agent_core.streaming import LlmContext, StreamOptions
from agent_core.tools import AgentTool

_MOST_TOKENS = 2**31 - 1
"""No call has so many; who reports more has counted something else."""

_LONGEST_CALL_ID = 40
"""Characters that OpenAI takes."""

_MISTRALS_CALL_ID = re.compile(r"[A-Za-z0-9]{9}")


def chat_messages(
    model: Model, context: LlmContext, *, signed_thinking: bool
) -> list[dict[str, Any]]:
    """Return the system prompt and the messages that say anything to this model; images only for
    one that can see.

    `signed_thinking` gives thinking back to the model that signed it, in litellm's form.
    """
    chat: list[dict[str, Any]] = []
    if context.system_prompt:
        chat.append({"role": "system", "content": context.system_prompt})
    # Tool messages hold text only, so the images of a batch of results follow as the user's.
    seen: list[ImageContent] = []
    for message in context.messages:
        if seen and not isinstance(message, ToolResultMessage):
            chat.append(_images_of_tools(model, seen))
            seen = []
        said = _chat_message(model, message, signed_thinking=signed_thinking)
        if said is not None:
            if model.provider == "deepseek" and context.tools:
                said |= _thinking_given_back(model, message)
            chat.append(said)
        if isinstance(message, ToolResultMessage):
            seen += [block for block in message.content if isinstance(block, ImageContent)]
    if seen:
        chat.append(_images_of_tools(model, seen))
    return chat


def _chat_message(
    model: Model, message: LlmMessage, *, signed_thinking: bool
) -> dict[str, Any] | None:
    if isinstance(message, UserMessage):
        return {"role": "user", "content": _user_parts(model, message)}
    if isinstance(message, ToolResultMessage):
        text = plain_text(message.content)
        return {
            "role": "tool",
            "tool_call_id": _call_id(model, message.tool_call_id),
            "content": text or "(see the image)" if message.content else "(no output)",
        }
    chat = _assistant(model, message)
    # A signature is worth something only to the model that gave it.
    if signed_thinking and (message.model, message.provider) == (model.id, model.provider):
        signed = _signed_thinking(message)
        if signed:
            chat["thinking_blocks"] = signed
    # Nothing is left of an answer that was cut off in its thinking, and Mistral refuses such ones.
    says_nothing = chat.keys() == {"role", "content"} and not chat["content"]
    return None if says_nothing else chat


def _user_parts(model: Model, message: UserMessage) -> str | list[dict[str, Any]]:
    if isinstance(message.content, str):
        return message.content
    if all(isinstance(block, TextContent) for block in message.content):
        return plain_text(message.content)
    return [
        {"type": "text", "text": block.text}
        if isinstance(block, TextContent)
        else _image(model, block)
        for block in message.content
    ]


def _image(model: Model, image: ImageContent) -> dict[str, Any]:
    if not model.images:
        return {"type": "text", "text": "(an image, which this model cannot see)"}
    url = image.url or f"data:{image.mime_type};base64,{image.data}"
    return {"type": "image_url", "image_url": {"url": url}}


def _images_of_tools(model: Model, images: Sequence[ImageContent]) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": "Images from the tool results:"}]
    return {"role": "user", "content": parts + [_image(model, image) for image in images]}


def _assistant(model: Model, message: AssistantMessage) -> dict[str, Any]:
    calls = message.tool_calls
    chat: dict[str, Any] = {"role": "assistant", "content": message.text or (None if calls else "")}
    if calls:
        chat["tool_calls"] = [
            {
                "id": _call_id(model, call.id),
                "type": "function",
                "function": {"name": call.name, "arguments": as_text(call.arguments)},
            }
            for call in calls
        ]
    return chat


def _call_id(model: Model, call_id: str) -> str:
    """The id of a call as this model takes it: another may have given it, in a form of its own.

    It comes of the id alone, so that a call and its result have the same.
    """
    if model.provider == "mistral" or model.id.startswith("mistral/"):
        return call_id if _MISTRALS_CALL_ID.fullmatch(call_id) else _digest(call_id)[:9]
    # In ids of Gemini's calls litellm keeps the signatures that Gemini wants back.
    signed = "__thought__" in call_id and (model.provider == "gemini" or "gemini" in model.id)
    if signed or len(call_id) <= _LONGEST_CALL_ID:
        return call_id
    return f"call_{_digest(call_id)[:24]}"


def _digest(call_id: str) -> str:
    return hashlib.sha256(call_id.encode("utf-8", "replace")).hexdigest()


def _signed_thinking(message: AssistantMessage) -> list[dict[str, Any]]:
    return [
        {"type": "thinking", "thinking": block.thinking, "signature": block.signature}
        for block in message.content
        if isinstance(block, ThinkingContent) and block.signature
    ]


def _thinking_given_back(model: Model, message: LlmMessage) -> dict[str, Any]:
    """What DeepSeek wants with each answer of a conversation with tools, or else refuses it.

    A blank is the least that it takes, where the model did not think or it was another's thinking.
    https://api-docs.deepseek.com/guides/thinking_mode
    """
    if not isinstance(message, AssistantMessage):
        return {}
    thought = ""
    if message.provider == model.provider:
        blocks = (block for block in message.content if isinstance(block, ThinkingContent))
        thought = "".join(block.thinking for block in blocks)
    return {"reasoning_content": thought or " "}


def tool_definitions(tools: Sequence[AgentTool]) -> list[dict[str, Any]]:
    """Return the tools as functions."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": _parameters(tool),
            },
        }
        for tool in tools
    ]


def _parameters(tool: AgentTool) -> dict[str, Any]:
    schema = dict(tool.schema)
    if schema.get("type") == "object":
        schema.setdefault("properties", {})  # OpenAI refuses an object without
    return schema


def sampling(model: Model, options: StreamOptions) -> dict[str, Any]:
    """Return temperature and the cap of the answer, which is always there."""
    temperature = model.temperature if options.temperature is None else options.temperature
    cap = model.max_tokens if options.max_tokens is None else options.max_tokens
    chosen: dict[str, Any] = {"max_tokens": min(cap, model.max_tokens)}
    if temperature is not None:
        chosen["temperature"] = temperature
    return chosen


def said_in(content: object) -> tuple[str, str]:
    """Read the content of an answer: its text and its thinking.

    Mistral's models that think send lists of parts; parts of other kinds are passed over.

    Raises:
        ProviderError: it is neither a text nor a list of parts.
    """
    if isinstance(content, str) or content is None:
        return content or "", ""
    if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
        shown = json.dumps(content)[:200]
        raise ProviderError(
            f"The server sent as content what is neither a text nor parts of one: {shown}"
        )
    said = {"text": "", "thinking": ""}
    for part in content:
        kind = part.get("type")
        if kind in said:
            said[kind] += said_in(part.get(kind))[0]
    return said["text"], said["thinking"]


def usage_of(usage: Mapping[str, Any]) -> Usage:
    """Read a usage; `input` is without what was read from or written to the cache."""
    prompt = _count(usage, "prompt_tokens")
    output = _count(usage, "completion_tokens")
    details = usage.get("prompt_tokens_details") or {}
    read = _count(details, "cached_tokens") or _count(usage, "prompt_cache_hit_tokens")
    write = _count(details, "cache_write_tokens") or _count(usage, "cache_creation_input_tokens")
    total = _count(usage, "total_tokens") or prompt + output
    thought = _count(usage.get("completion_tokens_details") or {}, "reasoning_tokens")
    if total == prompt + output + thought:
        output += thought  # xAI charges for thinking, but does not count it to the answer
    return Usage(max(0, prompt - read - write), output, read, write, total)


def _count(usage: Mapping[str, Any], name: str) -> int:
    value = usage.get(name)
    # Some count in floats; what is no count at all could not be stored, or would be paid back.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return 0
    return int(value) if 0 <= value <= _MOST_TOKENS else 0
