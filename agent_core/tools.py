"""Tools: what an agent may do, described to the model and run by us."""

from __future__ import annotations

import copy
import inspect
import json
import types
import typing
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from agent_core.abort import AbortSignal
from agent_core.errors import DuplicateToolError, ToolDefinitionError
from agent_core.journal import Effect
from agent_core.results import AgentToolResult

if TYPE_CHECKING:
    from pydantic import BaseModel

ExecutionMode = Literal["parallel", "sequential"]

_KEPT_MODELS = 1000
"""A tool may be made anew for each run, from a closure. The pydantic model of its parameters takes
a millisecond and 50 KB, so it is made once for all that have the same."""

ToolUpdate: TypeAlias = Callable[[AgentToolResult], None]
"""Told by a tool while it runs: a partial result for those who watch."""


@dataclass(slots=True)
class ToolContext:
    """What surrounds a call, without being a parameter of it.

    `data` is the caller's own. `signal` is set by abort. `idempotency_key` is the same when a
    journalled call is repeated. `permissions` are the names that a tool's `permission` must be
    among. A caller gives one context for a whole run; each call gets a copy.
    """

    signal: AbortSignal = field(default_factory=AbortSignal)
    data: Any = None
    idempotency_key: str | None = None
    permissions: frozenset[str] = frozenset()

    def allows(self, tool: AgentTool) -> bool:
        """Whether the tool may be offered and run here."""
        return tool.permission is None or tool.permission in self.permissions

    def for_call(self, signal: AbortSignal, idempotency_key: str | None) -> ToolContext:
        """Return a copy for one call."""
        context = copy.copy(self)
        context.signal = signal
        context.idempotency_key = idempotency_key
        return context


ToolExecute: TypeAlias = Callable[[str, Any, ToolContext, ToolUpdate], Awaitable[AgentToolResult]]
"""`execute(tool_call_id, params, context, on_update)`."""


@dataclass(slots=True)
class AgentTool:
    """A tool.

    `parameters` is a pydantic model (`execute` gets an instance) or a JSON schema (`execute`
    gets a dict). `effect` is what repeating a call would do; a tool that does not say is taken
    for one that touches the world. `timeout` is in seconds, None leaves it to the run. One tool
    with `execution_mode="sequential"` makes its whole batch run one by one.
    """

    name: str
    label: str
    description: str
    parameters: type[BaseModel] | Mapping[str, Any]
    execute: ToolExecute
    execution_mode: ExecutionMode | None = None
    permission: str | None = None
    effect: Effect = "external"
    timeout: float | None = None

    @property
    def schema(self) -> Mapping[str, Any]:
        """The parameters as a JSON schema."""
        if isinstance(self.parameters, Mapping):
            return self.parameters
        return _schema_of(self.parameters)


def check_names(tools: Sequence[AgentTool]) -> None:
    """Raise DuplicateToolError if two tools have one name."""
    seen: set[str] = set()
    for each in tools:
        if each.name in seen:
            raise DuplicateToolError(f"two tools are named {each.name!r}")
        seen.add(each.name)


@overload
def tool(function: Callable[..., Awaitable[Any]], /) -> AgentTool: ...


@overload
def tool(
    *,
    name: str | None = None,
    label: str | None = None,
    description: str | None = None,
    execution_mode: ExecutionMode | None = None,
    permission: str | None = None,
    effect: Effect = "external",
    timeout: float | None = None,
) -> Callable[[Callable[..., Awaitable[Any]]], AgentTool]: ...


def tool(
    function: Callable[..., Awaitable[Any]] | None = None,
    /,
    *,
    name: str | None = None,
    label: str | None = None,
    description: str | None = None,
    execution_mode: ExecutionMode | None = None,
    permission: str | None = None,
    effect: Effect = "external",
    timeout: float | None = None,
) -> AgentTool | Callable[[Callable[..., Awaitable[Any]]], AgentTool]:
    """Make a typed async function into a tool; its docstring is the description.

    A parameter annotated with ToolContext gets the context and is not shown to the model. The
    function may return an AgentToolResult, a string, or anything JSON, which becomes text.
    """

    def make(wrapped: Callable[..., Awaitable[Any]]) -> AgentTool:
        called = name or wrapped.__name__
        parameters, context_name = _parameters_of(wrapped, called)
        return AgentTool(
            name=called,
            label=label or called,
            description=description or inspect.getdoc(wrapped) or called,
            parameters=parameters,
            execute=_execute_of(wrapped, context_name),
            execution_mode=execution_mode,
            permission=permission,
            effect=effect,
            timeout=timeout,
        )

    return make if function is None else make(function)


def _parameters_of(
    function: Callable[..., Awaitable[Any]], name: str
) -> tuple[type[BaseModel], str | None]:
    if not inspect.iscoroutinefunction(function):
        raise ToolDefinitionError(f"tool {name!r} must be an async function")
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise ToolDefinitionError(f"tool {name!r}: cannot resolve annotations: {error}") from error
    fields: dict[str, Any] = {}
    context_name = None
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
            raise ToolDefinitionError(f"tool {name!r} must name each of its parameters")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ToolDefinitionError(
                f"tool {name!r}: parameter {parameter.name!r} can't be given by its name"
            )
        if parameter.name not in hints:
            raise ToolDefinitionError(f"tool {name!r}: parameter {parameter.name!r} has no type")
        hint = hints[parameter.name]
        if _is_context(hint):
            context_name = parameter.name
            continue
        if parameter.name.startswith("_") or parameter.name == "model_config":
            raise ToolDefinitionError(
                f"tool {name!r}: no parameter that a model gives can be named {parameter.name!r}"
            )
        required = parameter.default is parameter.empty
        fields[parameter.name] = (hint, ... if required else parameter.default)
    try:
        return _known_model(name, _identity(fields)), context_name
    except TypeError:  # a default or an annotation that has no hash
        return _model(name, fields), context_name


def _is_context(hint: Any) -> bool:
    """Whether an annotation is ToolContext, alone or as one of several."""
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        return any(map(_is_context, typing.get_args(hint)))
    return isinstance(hint, type) and issubclass(hint, ToolContext)


_Identity: TypeAlias = tuple[tuple[str, Any, type, str, Any], ...]


def _identity(fields: Mapping[str, tuple[Any, Any]]) -> _Identity:
    # Beside the default its type and text: 1 and True are equal, and not the same default.
    return tuple(
        (name, hint, type(default), repr(default), default)
        for name, (hint, default) in fields.items()
    )


@lru_cache(maxsize=_KEPT_MODELS)
def _known_model(name: str, identity: _Identity) -> type[BaseModel]:
    return _model(name, {field: (hint, default) for field, hint, _, _, default in identity})


def _model(name: str, fields: dict[str, Any]) -> type[BaseModel]:
    # Heavy, and only needed for tools.
    from pydantic import PydanticUserError, create_model  # noqa: PLC0415

    try:
        return create_model(name, **fields)
    except PydanticUserError as error:
        raise ToolDefinitionError(f"tool {name!r}: {error}") from error


@lru_cache(maxsize=_KEPT_MODELS)
def _schema_of(model: type[BaseModel]) -> Mapping[str, Any]:
    schema: Mapping[str, Any] = _without_titles(model.model_json_schema())
    return schema


def _execute_of(function: Callable[..., Awaitable[Any]], context_name: str | None) -> ToolExecute:
    async def execute(
        tool_call_id: str,
        params: BaseModel,
        context: ToolContext,
        on_update: ToolUpdate,
    ) -> AgentToolResult:
        arguments = {name: getattr(params, name) for name in type(params).model_fields}
        if context_name is not None:
            arguments[context_name] = context
        return _as_result(await function(**arguments))

    return execute


def _as_result(value: Any) -> AgentToolResult:
    if isinstance(value, AgentToolResult):
        return value
    if isinstance(value, str):
        return AgentToolResult.text(value)
    if value is None:
        return AgentToolResult.text("Done")
    from pydantic_core import to_jsonable_python  # noqa: PLC0415 - see above

    plain = to_jsonable_python(value)
    return AgentToolResult.text(json.dumps(plain, ensure_ascii=False), details=plain)


def _without_titles(schema: Any) -> Any:
    # pydantic titles each field with its own name: tokens that tell the model nothing. A title
    # that is not a string is a property of that name.
    if isinstance(schema, dict):
        return {
            key: _without_titles(value)
            for key, value in schema.items()
            if not (key == "title" and isinstance(value, str))
        }
    if isinstance(schema, list):
        return [_without_titles(item) for item in schema]
    return schema
