"""Tools made of functions, and the arguments models give them."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from agent_core import (
    AgentTool,
    AgentToolResult,
    ToolArgumentsError,
    ToolCall,
    ToolContext,
    ToolDefinitionError,
    tool,
)
from agent_core.arguments import validated_arguments
from agent_core.json_schema import fit
from agent_core.partial_json import partial_arguments, whole_arguments
from tests.agent_core.agents import text_of


class Point(BaseModel):
    x: int
    y: int = 0


@tool(effect="pure", name="plan_route", label="Plan", execution_mode="sequential", timeout=3)
async def route(
    start: Point,
    stops: Annotated[list[str], Field(description="names of places")],
    mode: Literal["foot", "boat"] = "foot",
    *,
    ctx: ToolContext,
) -> dict[str, Any]:
    """Plan a route.

    In two lines.
    """
    return {"x": start.x, "stops": stops, "mode": mode, "data": ctx.data}


async def run(made: AgentTool, context: ToolContext | None = None, **arguments: Any) -> Any:
    params = validated_arguments(made, ToolCall("c1", made.name, arguments))
    return await made.execute("c1", params, context or ToolContext(), lambda _: None)


def test_a_function_describes_its_tool() -> None:
    assert (route.name, route.label, route.effect) == ("plan_route", "Plan", "pure")
    assert route.description == "Plan a route.\n\nIn two lines."
    assert (route.execution_mode, route.timeout) == ("sequential", 3)
    schema = route.schema
    assert schema["required"] == ["start", "stops"]
    assert schema["properties"]["stops"]["description"] == "names of places"
    assert "ctx" not in schema["properties"]
    assert "title" not in schema
    assert route.schema is schema


def closure(default: Any, name: str = "counted") -> AgentTool:
    @tool(name=name)
    async def count(start: Any = default) -> str:
        return str(start)

    return count


@pytest.mark.parametrize("default", [1, "x", None, [1]])
async def test_a_tool_that_is_made_anew_for_each_run_keeps_its_own_function(default: Any) -> None:
    first, second = closure(default), closure(default)

    assert first.execute is not second.execute
    assert first.schema == second.schema
    assert text_of(await run(second)) == str(default)


def test_the_parameters_of_tools_are_made_once_for_all_that_have_the_same() -> None:
    assert closure(1).parameters is closure(1).parameters
    assert closure(1).schema is closure(1).schema


@pytest.mark.parametrize(("one", "other"), [(1, True), (1, 1.0), (0.0, -0.0), ((1,), (True,))])
def test_defaults_that_are_equal_but_not_the_same_are_told_apart(one: Any, other: Any) -> None:
    assert one == other
    assert closure(one).schema["properties"]["start"]["default"] is not True
    assert repr(closure(one).schema) != repr(closure(other).schema)


def test_tools_of_different_names_have_parameters_of_their_own() -> None:
    assert closure(1).parameters is not closure(1, "other").parameters


async def test_arguments_are_checked_and_mended() -> None:
    result = await run(
        route, ToolContext(data=7), start='{"x": "5"}', stops='["mill"]', mode="boat", extra=1
    )

    assert result.details == {"x": 5, "stops": ["mill"], "mode": "boat", "data": 7}
    assert text_of(result) == '{"x": 5, "stops": ["mill"], "mode": "boat", "data": 7}'


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, "start: Field required"),
        ({"start": {"x": "far"}, "stops": []}, "start.x: Input should be a valid integer"),
        ({"start": {"x": 1}, "stops": "mill"}, "stops: Input should be a valid list"),
        ({"start": {"x": 1}, "stops": [], "mode": "sled"}, "mode: Input should be 'foot' or"),
        ({"start": '{"x": "far"}', "stops": []}, "start.x: Input should be a valid integer"),
    ],
)
def test_wrong_arguments_are_told_to_the_model(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(ToolArgumentsError) as caught:
        validated_arguments(route, ToolCall("c1", "plan_route", arguments))

    lines = str(caught.value).splitlines()
    assert lines[0] == 'Validation failed for tool "plan_route":'
    assert any(line.startswith(f"  - {problem}") for line in lines)
    assert "Received arguments:" in lines


def test_arguments_that_are_no_json_are_told() -> None:
    call = ToolCall("c1", "plan_route", {}, '{"start": ' + "x" * 5_000)

    with pytest.raises(ToolArgumentsError, match="must be a JSON object") as caught:
        validated_arguments(route, call)

    assert len(str(caught.value)) < 2_300
    assert "(5010 characters)" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ['{"n": 1e999}', '{"n": [-1e999]}', '{"n": NaN}', '{"n": Infinity}', r'"{\"n\": 1e999}"'],
)
def test_a_number_that_json_can_not_hold_never_gets_into_a_message(text: str) -> None:
    arguments, raw = whole_arguments(text)

    assert (arguments, raw) == ({}, text)
    with pytest.raises(ToolArgumentsError, match="root: has a number that is not finite"):
        validated_arguments(route, ToolCall("c1", "plan_route", arguments, raw))
    assert partial_arguments(text[:-1]) == {}


@pytest.mark.parametrize(
    "number", [2**64, -(2**63) - 1, 10**400], ids=["above", "below", "far above"]
)
def test_a_whole_number_that_can_not_be_stored_never_gets_into_a_message(number: int) -> None:
    text = f'{{"n": [{number}], "id": "{number}"}}'
    arguments, raw = whole_arguments(text)

    assert (arguments, raw) == ({}, text)
    with pytest.raises(ToolArgumentsError, match="root: has a whole number of more than 64 bits"):
        validated_arguments(route, ToolCall("c1", "plan_route", arguments, raw))
    assert partial_arguments(text[:-1]) == {}


@pytest.mark.parametrize("number", [2**64 - 1, -(2**63), 1e300])
def test_numbers_that_can_be_stored_are_as_they_are(number: float) -> None:
    arguments = {"n": number, "id": "9" * 50}

    assert whole_arguments(json.dumps(arguments)) == (arguments, None)


@pytest.mark.parametrize("text", ["[1e999]x", "5", r'{"a": "\ud83d"}', "null"])
def test_what_else_is_no_object_is_told_as_that(text: str) -> None:
    arguments, raw = whole_arguments(text)

    with pytest.raises(ToolArgumentsError, match="root: must be a JSON object"):
        validated_arguments(route, ToolCall("c1", "plan_route", arguments, raw))


async def test_what_a_function_may_return() -> None:
    @tool
    async def give(what: str) -> Any:
        """Give."""
        return {"text": "words", "none": None, "result": AgentToolResult.error("no")}[what]

    assert text_of(await run(give, what="text")) == "words"
    assert text_of(await run(give, what="none")) == "Done"
    assert (await run(give, what="result")).is_error


def plain(x: int) -> str:
    return str(x)


async def untyped(x) -> str:  # type: ignore[no-untyped-def]
    return str(x)


async def many(*numbers: int) -> str:
    return str(numbers)


async def unknown(x: Missing) -> str:  # type: ignore[name-defined]  # noqa: F821
    return str(x)


async def private(_x: int) -> str:
    return str(_x)


async def configured(model_config: int) -> str:
    return str(model_config)


async def by_place(x: int, /) -> str:
    return str(x)


async def odd(x: asyncio.Event) -> str:
    return str(x)


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (private, "no parameter that a model gives can be named '_x'"),
        (configured, "no parameter that a model gives can be named 'model_config'"),
        (by_place, "parameter 'x' can't be given by its name"),
        (odd, "tool 'odd': Unable to generate pydantic-core schema"),
        (plain, "must be an async function"),
        (untyped, "parameter 'x' has no type"),
        (many, "must name each of its parameters"),
        (unknown, "cannot resolve annotations"),
    ],
)
def test_a_function_that_makes_no_tool(function: Any, problem: str) -> None:
    with pytest.raises(ToolDefinitionError, match=problem):
        tool(function)


async def test_a_context_may_be_optional() -> None:
    @tool
    async def whose(ctx: ToolContext | None = None) -> str:
        """Tell whose."""
        return "nobody's" if ctx is None else str(ctx.data)

    assert whose.schema["properties"] == {}
    assert text_of(await run(whose, ToolContext(data="mine"))) == "mine"


def test_a_tool_without_a_docstring_is_described_by_its_name() -> None:
    @tool
    async def wave() -> str:
        return "o/"

    assert wave.description == "wave"


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "n": {"type": "integer", "minimum": 1, "maximum": 9},
        "x": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        "on": {"type": "boolean"},
        "name": {"type": "string", "minLength": 2, "maxLength": 5, "pattern": "^a"},
        "list": {"type": "array", "items": {"$ref": "#/$defs/item"}, "minItems": 1, "maxItems": 2},
        "map": {"type": "object", "additionalProperties": {"type": "integer"}},
        "kind": {"enum": ["a", "b", 3]},
        "fixed": {"const": "yes"},
        "either": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        "one": {"oneOf": [{"type": "integer"}, {"type": "null"}]},
        "both": {"allOf": [{"type": "integer"}, {"minimum": 3}]},
        "maybe": {"type": ["integer", "null"]},
        "far": {"type": "integer"},
        "never": False,
        "empty": {"type": "array", "items": False},
        "odd": {"type": "tensor"},
        "marks": {
            "type": "object",
            "patternProperties": {"^[a-z]+$": {"type": "integer"}, "^low": {"maximum": 3}},
            "additionalProperties": False,
        },
        "same": {"$ref": "#/properties/either/anyOf/1"},
        "none": {"$ref": "#/properties/either/anyOf/2"},
        "old": {"type": "number", "minimum": 0, "exclusiveMinimum": True},
        "pair": {"type": "array", "prefixItems": [{"type": "string"}, {}], "items": False},
    },
    "additionalProperties": False,
    "$defs": {"item": {"type": "integer"}, "loop": {"$ref": "#/$defs/loop"}},
}


@pytest.mark.parametrize(
    ("given", "fitted"),
    [
        ({"same": "5", "none": "any", "old": 0.5}, {"same": 5, "none": "any", "old": 0.5}),
        ({"n": "5"}, {"n": 5}),
        ({"n": 5.0}, {"n": 5}),
        ({"far": "1" * 400}, {"far": int("1" * 400)}),
        ({"x": "0.5"}, {"x": 0.5}),
        ({"on": "True"}, {"on": True}),
        ({"name": "abc"}, {"name": "abc"}),
        ({"list": '["1", 2]'}, {"list": [1, 2]}),
        ({"map": '{"a": "1"}'}, {"map": {"a": 1}}),
        ({"kind": 3}, {"kind": 3}),
        ({"fixed": "yes"}, {"fixed": "yes"}),
        ({"either": 5}, {"either": 5}),
        ({"either": True}, {"either": "true"}),
        ({"one": "7"}, {"one": 7}),
        ({"one": "null"}, {"one": None}),
        ({"both": "4"}, {"both": 4}),
        ({"maybe": None}, {"maybe": None}),
        ({"maybe": "4"}, {"maybe": 4}),
        ({"marks": {"a": "4", "low": 3}}, {"marks": {"a": 4, "low": 3}}),
        ({"pair": [1, 2]}, {"pair": ["1", 2]}),
        ({"pair": []}, {"pair": []}),
    ],
)
def test_values_are_fitted(given: Any, fitted: Any) -> None:
    value, problems = fit(given, SCHEMA)

    assert problems == []
    assert value == fitted
    assert list(map(type, value.values())) == list(map(type, fitted.values()))


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ([], "root: must be object"),
        ({"n": 0}, "n: must be >= 1"),
        ({"n": 10}, "n: must be <= 9"),
        ({"n": 1.5}, "n: must be integer"),
        ({"n": "many"}, "n: must be integer"),
        ({"n": '"5"'}, "n: must be integer"),
        ({"n": True}, "n: must be integer"),
        ({"x": 0}, "x: must be > 0"),
        ({"x": 1}, "x: must be < 1"),
        ({"on": "perhaps"}, "on: must be boolean"),
        ({"name": "a"}, "name: must have a length of at least 2"),
        ({"name": "abcdef"}, "name: must have a length of at most 5"),
        ({"name": "bcd"}, "name: must match pattern ^a"),
        ({"name": None}, "name: must be string"),
        ({"list": []}, "list: must have items, at least 1"),
        ({"list": [1, 2, 3]}, "list: must have items, at most 2"),
        ({"list": [1, {}]}, "list[1]: must be integer"),
        ({"map": {"a": "b"}}, "map.a: must be integer"),
        ({"map": "[1]"}, "map: must be object"),
        ({"kind": "c"}, 'kind: must be one of "a", "b", 3'),
        ({"fixed": "no"}, 'fixed: must be "yes"'),
        ({"either": []}, "either: must match one of the allowed forms"),
        ({"one": "x"}, "one: must match one of the allowed forms"),
        ({"both": 2}, "both: must be >= 3"),
        ({"never": 1}, "never: is not a known property"),
        ({"empty": [1]}, "empty[0]: is not allowed"),
        ({"odd": 1}, "odd: must be tensor"),
        ({"extra": 1}, "extra: is not a known property"),
        ({"marks": {"A": 1}}, "marks.A: is not a known property"),
        ({"marks": {"a": "b"}}, "marks.a: must be integer"),
        ({"marks": {"low": 4}}, "marks.low: must be <= 3"),
        ({"same": "many"}, "same: must be integer"),
        ({"old": -1}, "old: must be >= 0"),
        ({"pair": ["a", "b", "c"]}, "pair[2]: is not allowed"),
    ],
)
def test_what_does_not_fit_is_told_by_its_path(given: Any, problem: str) -> None:
    assert problem in fit(given, SCHEMA)[1]


@pytest.mark.parametrize("given", ["Infinity", "-Infinity", "NaN", "1e999", math.inf, math.nan])
@pytest.mark.parametrize("name", ["n", "x", "either", "extra"])
def test_a_number_without_an_end_is_a_problem_of_its_argument(name: str, given: Any) -> None:
    wanted = SCHEMA["properties"] | {"either": {"anyOf": [{"type": "integer"}, {"const": "far"}]}}
    value, problems = fit({name: given}, {"type": "object", "properties": wanted})

    if isinstance(given, str) and name == "extra":
        assert (value, problems) == ({"extra": given}, [])
    else:
        assert [problem.split(":")[0] for problem in problems] == [name]
    if isinstance(given, float):
        assert problems == [f"{name}: must be a finite number"]


@pytest.mark.parametrize(
    ("pattern", "given", "fits"),
    [
        (r"^\p{Lu}\p{L}+$", "Élan", True),  # Python's `re` does not know these
        (r"^\p{Lu}\p{L}+$", "élan", False),
        (r"^(?!no)\w+$", "yes", True),  # and others do not know to look ahead
        (r"^(?!no)\w+$", "nothing", False),
        (r"^(a+)+$", "a" * 60 + "b", False),  # steps without number for whoever goes back
        (r"(unclosed", "anything", True),
        ("a{99999999999}", "anything", True),
        (5, "anything", True),
    ],
)
def test_patterns_are_checked_where_they_can_be_read(pattern: Any, given: str, fits: bool) -> None:
    _, problems = fit(given, {"type": "string", "pattern": pattern})

    assert problems == ([] if fits else [f"root: must match pattern {pattern}"])


class Counted(dict[str, Any]):
    """Definitions of a schema that count how often they are asked for."""

    asked = 0

    def get(self, name: str, default: Any = None) -> Any:
        self.asked += 1
        return super().get(name, default)


KINDS = ("and", "or", "xor", "eq", "ne")


def formula(depth: int, leaf: Any = "x") -> Any:
    """Operations in operations, of the last kind."""
    return {"op": KINDS[-1], "l": formula(depth - 1, leaf), "r": "y"} if depth else leaf


def formulas(*, told_apart: bool, named: bool = False) -> tuple[dict[str, Any], Counted]:
    """The schema of a formula; its kinds differ by `op`, or only far within."""
    inner = {"$ref": "#/$defs/formula"}
    kinds = {
        kind: {
            "type": "object",
            "properties": {"l": inner, "r": inner, "op": {"const": kind} if told_apart else {}},
            "required": ["op", "l", "r"],
        }
        for kind in KINDS
    }
    definitions = Counted(kinds)
    branches = [{"$ref": f"#/$defs/{kind}"} for kind in KINDS] if named else [*kinds.values()]
    definitions["formula"] = {"anyOf": [*branches, {"type": "string"}]}
    return {"$defs": definitions} | inner, definitions


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(("leaf", "wrong"), [("x", False), (5, False), ([], True)])
def test_forms_are_told_apart_before_they_are_looked_into(
    leaf: Any, wrong: bool, named: bool
) -> None:
    schema, definitions = formulas(told_apart=True, named=named)
    fitted, problems = fit(formula(5, leaf), schema)

    told = ["root: must match one of the allowed forms"]
    assert problems == (told if wrong else [])
    assert wrong or fitted == formula(5, str(leaf))
    assert definitions.asked < 1_000


def test_a_mended_value_is_not_passed_over_for_what_it_was() -> None:
    number = {"type": "object", "properties": {"n": {"type": "integer", "const": 5}}}
    text = {"type": "object", "properties": {"n": {"allOf": [{"type": "integer"}], "const": 6}}}
    schema = {"anyOf": [number, text, {"type": "null"}]}

    assert fit({"n": "5"}, schema) == ({"n": 5}, [])
    assert fit({"n": "6"}, schema) == ({"n": 6}, [])
    assert fit('{"n": "6"}', schema) == ({"n": 6}, [])
    assert fit("", schema) == (None, [])
    assert fit({"n": "7"}, schema)[1] == ["root: must match one of the allowed forms"]


def test_a_value_that_would_take_for_ever_is_not_checked() -> None:
    schema, definitions = formulas(told_apart=False)

    assert fit(formula(7, 5), schema) == (formula(7, 5), ["root: is too complex to be checked"])
    assert definitions.asked < 50_000


def test_a_long_value_is_checked_whole() -> None:
    many = [{"at": number} for number in range(10_000)]
    item = {"type": "object", "properties": {"at": {"type": "integer"}}, "required": ["at"]}
    schema = {"anyOf": [{"type": "array", "items": {"anyOf": [item, {"type": "null"}]}}, False]}

    assert fit(many, schema) == (many, [])
    assert fit(json.dumps(many), schema) == (many, [])


def test_a_schema_that_goes_in_circles_ends() -> None:
    schema = SCHEMA | {"properties": {"x": {"$ref": "#/$defs/loop"}}}

    assert "x: is nested too deeply" in fit({"x": 1}, schema)[1]
    assert fit({"x": 1}, {"properties": {"x": {"$ref": "#/nowhere/0"}}})[1] == []
