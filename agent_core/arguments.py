"""Checking a call's arguments against its tool; what is wrong is said for the model to mend."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from agent_core.content import ToolCall
from agent_core.errors import ToolArgumentsError
from agent_core.json_schema import fit
from agent_core.partial_json import check_numbers
from agent_core.tools import AgentTool

if TYPE_CHECKING:
    from pydantic import BaseModel

_MAX_SHOWN = 2_000


def validated_arguments(tool: AgentTool, call: ToolCall) -> Any:
    """Return what `tool.execute` takes as params; raises ToolArgumentsError.

    That is an instance of the tool's pydantic model, or a dict where it has a JSON schema.
    Slips such as "5" for 5 are corrected.
    """
    if call.raw is not None:
        raise _failure(call, [f"root: {_why_unread(call.raw)}"], call.raw)
    # What a tool does to its params must not change what the model has said.
    call = replace(call, arguments=copy.deepcopy(call.arguments))
    if isinstance(tool.parameters, Mapping):
        params, problems = fit(call.arguments, tool.schema)
        if problems:
            raise _failure(call, problems)
        return params
    return _validated_model(tool.parameters, tool, call)


def _why_unread(raw: str) -> str:
    """What is wrong with arguments that `whole_arguments` could not read."""
    try:
        value = json.loads(raw)  # reads any number
        value = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return "must be a JSON object"
    try:
        check_numbers(value)
    except ValueError as error:
        return str(error)
    return "must be a JSON object"


def _validated_model(model: type[BaseModel], tool: AgentTool, call: ToolCall) -> BaseModel:
    from pydantic import ValidationError  # noqa: PLC0415 - heavy, and only needed for tools

    try:
        return model.model_validate(call.arguments)
    except ValidationError as error:
        mended, _ = fit(call.arguments, tool.schema)
        if mended == call.arguments:
            raise _failure(call, _problems(error)) from error
    try:
        return model.model_validate(mended)
    except ValidationError as error:
        raise _failure(call, _problems(error)) from error


def _problems(error: Any) -> list[str]:
    return [
        f"{'.'.join(map(str, problem['loc'])) or 'root'}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_context=False, include_input=False)
    ]


def _failure(
    call: ToolCall, problems: list[str], received: str | None = None
) -> ToolArgumentsError:
    shown = (
        json.dumps(call.arguments, indent=2, ensure_ascii=False) if received is None else received
    )
    if len(shown) > _MAX_SHOWN:
        shown = f"{shown[:_MAX_SHOWN]}... ({len(shown)} characters)"
    lines = "\n".join(f"  - {problem}" for problem in problems)
    return ToolArgumentsError(
        f'Validation failed for tool "{call.name}":\n{lines}\n\nReceived arguments:\n{shown}'
    )
