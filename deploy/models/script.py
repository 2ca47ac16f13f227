"""The language in which the scripted model is told what to answer.

A script is a list of rules; the first rule that matches a request and is not spent answers it. A
rule gives one `reply`, or `turns`: the reply for each model call since the user last spoke. The
same replies can stand in the user's own text as `[[script: {...}]]` or `[[script: [{...},
{...}]]]`, which needs no shared state. Times are seconds; positions (`after`) count content
chunks.
"""

import json
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

MARK = "[[script:"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Limited(_Part):
    """A fault that strikes the first `times` requests its reply answers (None: all of them)."""

    times: PositiveInt | None = None


class StatusFault(Limited):
    """An HTTP error instead of an answer, with the JSON body that OpenAI gives."""

    kind: Literal["status"]
    status: int = Field(ge=400, le=599)
    retry_after: NonNegativeFloat | None = None
    message: str = "scripted error"
    code: str | None = None


class HangFault(Limited):
    """Silence before chunk `after` (None: before the HTTP headers) until `POST /_release` or the
    client leaves.
    """

    kind: Literal["hang"]
    after: NonNegativeInt | None = None


class CloseFault(Limited):
    """The connection is closed after `after` chunks (None: before the HTTP headers): half a
    stream.
    """

    kind: Literal["close"]
    after: NonNegativeInt | None = None


class MalformedFault(Limited):
    """An event that is not JSON before chunk `after`; the rest follows."""

    kind: Literal["malformed"]
    after: NonNegativeInt = 0


class GarbageFault(Limited):
    """Bytes that are neither an event nor UTF-8 after `after` chunks, then the end."""

    kind: Literal["garbage"]
    after: NonNegativeInt = 0


class ErrorEventFault(Limited):
    """An event that carries an error object after `after` chunks, then the end, as providers do
    in mid-stream.
    """

    kind: Literal["error_event"]
    after: NonNegativeInt = 0
    message: str = "scripted error"
    code: str | None = "server_error"


class ContentTypeFault(Limited):
    """Status 200 with a page of HTML, as a proxy in between may answer."""

    kind: Literal["content_type"]
    value: str = "text/html"


class NoDoneFault(Limited):
    """A stream that ends properly but without `[DONE]`."""

    kind: Literal["no_done"]


class NoFinishFault(Limited):
    """A stream that ends after its content: no finish reason, no usage, no `[DONE]`."""

    kind: Literal["no_finish"]


class NoUsageFault(Limited):
    """A whole stream that does not tell its usage, though it was asked to."""

    kind: Literal["no_usage"]


class EmptyFault(Limited):
    """Status 200 and nothing in the body."""

    kind: Literal["empty"]


Fault = Annotated[
    StatusFault
    | HangFault
    | CloseFault
    | MalformedFault
    | GarbageFault
    | ErrorEventFault
    | ContentTypeFault
    | NoDoneFault
    | NoFinishFault
    | NoUsageFault
    | EmptyFault,
    Field(discriminator="kind"),
]


class ToolCall(_Part):
    """One call of a tool. A string as `arguments` is sent as it is, so that it may be broken
    JSON; an `index` other than the call's place is sent as some gateways do.
    """

    name: str
    arguments: dict[str, JsonValue] | str = Field(default_factory=dict)
    id: str | None = None
    index: NonNegativeInt | None = None

    @property
    def encoded(self) -> str:
        """The arguments as the string that goes over the wire."""
        if isinstance(self.arguments, str):
            return self.arguments
        return json.dumps(self.arguments, ensure_ascii=False)


class Usage(_Part):
    """Token counts to report; those left out are estimated."""

    prompt_tokens: NonNegativeInt | None = None
    completion_tokens: NonNegativeInt | None = None
    cached_tokens: NonNegativeInt | None = None
    reasoning_tokens: NonNegativeInt | None = None


class Reply(_Part):
    """One answer: text (split by `split`) or chunks as they are, tool calls, timing, and perhaps
    a fault.

    Neither text, chunks nor tool calls: the default answer to the request. `{user}` in `text` is
    replaced by the last user message, `{n}` by the request's number. Chunk i leaves at `ttft` + i
    * `delay`, or spread over `duration` with the end at `ttft` + `duration`.
    """

    text: str | None = None
    chunks: list[str] | None = None
    split: Literal["words", "chars", "whole"] = "words"
    reasoning: str | None = None
    tool_calls: list[ToolCall] = Field(default_factory=list)
    finish_reason: str | None = None
    usage: Usage | None = None
    ttft: NonNegativeFloat = 0.0
    delay: NonNegativeFloat = 0.0
    duration: NonNegativeFloat | None = None
    fault: Fault | None = None

    @model_validator(mode="after")
    def _one_content(self) -> Self:
        if self.text is not None and self.chunks is not None:
            raise ValueError("give text or chunks, not both")
        return self


class Match(_Part):
    """What a request must be for a rule to answer it; conditions left out do not matter.

    `user`, `system`: a part of the last user message, of the system messages. `nth`: the nth
    request (from 1) that meets the other conditions.
    """

    user: str | None = None
    system: str | None = None
    model: str | None = None
    key: str | None = None
    tools: bool | None = None
    json_mode: bool | None = Field(default=None, alias="json")
    stream: bool | None = None
    after_tool: bool | None = None
    nth: PositiveInt | None = None


class Rule(_Part):
    """Answers matching requests with `reply` or `turns`, at most `times` of them."""

    name: str | None = None
    match: Match = Match()
    reply: Reply | None = None
    turns: list[Reply] = Field(default_factory=list)
    times: PositiveInt | None = None

    @model_validator(mode="after")
    def _some_reply(self) -> Self:
        if (self.reply is None) == (not self.turns):
            raise ValueError("a rule has either a reply or turns")
        return self

    def at(self, turn: int) -> Reply:
        """Return the reply for the model call number `turn` (from 0) since the user last spoke."""
        return self.reply or self.turns[min(turn, len(self.turns) - 1)]


class Script(_Part):
    """The rules in their order; `append` puts them behind those that are there instead of in
    their place.
    """

    rules: list[Rule]
    append: bool = False


class Profile(_Part):
    """Every request without a rule is answered with `chunks` chunks `tok{i} ` over `duration`
    after `ttft`.

    `tool`: a request that offers tools and has no tool result since the user spoke gets a call of
    the first tool before. `on` false: back to the default answers.
    """

    ttft: NonNegativeFloat = 0.2
    chunks: int = Field(default=50, ge=1, le=100_000)
    duration: NonNegativeFloat = 1.0
    tool: bool = False
    on: bool = True


def inline_rule(text: str) -> Rule | None:
    """Return the rule that a user's text carries, if any; ValueError (pydantic's included) if it
    is broken.
    """
    start = text.find(MARK)
    if start < 0:
        return None
    rest = text[start + len(MARK) :].lstrip()
    value, end = json.JSONDecoder().raw_decode(rest)
    if not rest[end:].lstrip().startswith("]]"):
        raise ValueError("an inline script ends with ]]")
    turns = value if isinstance(value, list) else [value]
    return Rule.model_validate({"name": "inline", "turns": turns})
