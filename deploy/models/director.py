"""Which reply a request gets: the state of the scripted model's rules, profile and counts."""

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from pydantic import BaseModel, JsonValue, ValidationError

from deploy.models.performance import Performance, load, perform
from deploy.models.replies import default_reply, minimal
from deploy.models.request import BadRequestError, ChatRequest
from deploy.models.script import Match, Profile, Reply, Rule, Script, ToolCall, inline_rule

REMEMBERED = 512  # requests
LOGGED = 100_000  # calls

End: TypeAlias = Literal["completed", "failed", "aborted"]


class Counts(BaseModel):
    """What happened to requests: each is in flight, completed, failed (we answered with a fault)
    or aborted.
    """

    requests: int = 0
    completed: int = 0
    failed: int = 0
    aborted: int = 0
    in_flight: int = 0
    peak: int = 0
    tokens: int = 0

    def begin(self) -> None:
        """Count a request that has come."""
        self.requests += 1
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)


class Call(BaseModel):
    """A request in the log of calls: which rule answered it at which turn, and how that ended.

    Times are in seconds since 1970; `end` is None while the answer is under way. `usage` is what
    the provider reported: nothing unless the answer was given to its end.
    """

    n: int
    key: str
    rule: str
    turn: int
    began: float
    ended: float | None = None
    end: End | None = None
    usage: dict[str, JsonValue] | None = None


class Stats(Counts):
    """The counts of all, of each bearer key, and how often each named rule answered."""

    keys: dict[str, Counts] = {}
    rules: dict[str, int] = {}


@dataclass
class _Live:
    """A rule and how often it was met and used."""

    rule: Rule
    met: int = 0
    used: int = 0
    faults: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """A request that was answered; the body stays raw until somebody asks."""

    number: int
    key: str
    rule: str
    request: ChatRequest

    def as_json(self) -> dict[str, JsonValue]:
        """Return it for `GET /_requests`."""
        return {"n": self.number, "key": self.key, "rule": self.rule, "body": self.request.body}


class Director:
    """Chooses a performance for each request: inline script, rules, load profile, default, in
    this order.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget rules, profile, counts and requests; requests in flight go on and are counted no
        more.
        """
        self._live: list[_Live] = []
        self._inline_faults: dict[tuple[str, int], int] = {}
        self.profile: Profile | None = None
        self.stats = Stats(keys={}, rules={})
        self.seen: deque[Seen] = deque(maxlen=REMEMBERED)
        self.calls: dict[int, Call] = {}

    def follow(self, script: Script) -> None:
        """Take new rules."""
        kept = self._live if script.append else []
        self._live = [*kept, *(_Live(rule) for rule in script.rules)]

    def load_with(self, profile: Profile) -> None:
        """Take a load profile and count anew."""
        self.profile = profile if profile.on else None
        self.stats = Stats(keys={}, rules={})

    def direct(self, request: ChatRequest) -> Performance:
        """Choose the performance; BadRequestError if the request carries a broken script."""
        try:
            inline = inline_rule(request.last_user)
        except (ValidationError, ValueError) as error:
            raise BadRequestError(f"broken inline script: {error}") from error
        if inline is not None:
            return self._perform(request, inline, self._inline_strikes(inline, request), "inline")
        live = self._choose(request)
        if live is not None:
            name = live.rule.name or f"rule {self._live.index(live)}"
            return self._perform(request, live.rule, _strikes(live, request.turn), name)
        return self._unscripted(request)

    def ended(self, number: int, end: End, usage: JsonValue = None) -> None:
        """Note in the log how the answer to a request ended, and what usage it reported."""
        call = self.calls.get(number)
        if call is not None:
            call.ended, call.end = time.time(), end
            call.usage = usage if isinstance(usage, dict) else None

    def _unscripted(self, request: ChatRequest) -> Performance:
        profile = self.profile
        self._remember(request, "default" if profile is None else "profile")
        if profile is None:
            return perform(request, default_reply(request))
        if profile.tool and request.tools and not request.turn:
            tool = request.tools[0]
            arguments = minimal(tool.parameters)
            call = ToolCall(
                name=tool.name, arguments=arguments if isinstance(arguments, dict) else {}
            )
            return perform(request, Reply(tool_calls=[call], ttft=profile.ttft))
        return load(request, profile)

    def _perform(self, request: ChatRequest, rule: Rule, strikes: bool, name: str) -> Performance:
        self._remember(request, name)
        reply = rule.at(request.turn)
        changes: dict[str, object] = {}
        if reply.text is None and reply.chunks is None and not reply.tool_calls:
            default = default_reply(request)
            changes = {"text": default.text, "tool_calls": default.tool_calls}
        elif reply.text is not None and "{" in reply.text:
            filled = reply.text.replace("{user}", request.last_user)
            changes = {"text": filled.replace("{n}", str(request.number))}
        if not strikes:
            changes["fault"] = None
        return perform(request, reply.model_copy(update=changes) if changes else reply)

    def _remember(self, request: ChatRequest, rule: str) -> None:
        self.stats.rules[rule] = self.stats.rules.get(rule, 0) + 1
        self.seen.append(Seen(request.number, request.key, rule, request))
        if len(self.calls) >= LOGGED:
            del self.calls[next(iter(self.calls))]
        self.calls[request.number] = Call(
            n=request.number, key=request.key, rule=rule, turn=request.turn, began=time.time()
        )

    def _choose(self, request: ChatRequest) -> _Live | None:
        """Return the first rule that matches; every rule counts the requests that it would meet."""
        chosen: _Live | None = None
        for live in self._live:
            if not meets(live.rule.match, request):
                continue
            live.met += 1
            spent = live.rule.times is not None and live.used >= live.rule.times
            right = live.rule.match.nth in {None, live.met}
            if chosen is None and right and not spent:
                chosen = live
        if chosen is not None:
            chosen.used += 1
        return chosen

    def _inline_strikes(self, rule: Rule, request: ChatRequest) -> bool:
        """As `_strikes`, counted by the text that carries the script, since the rule is read anew
        each time.
        """
        fault = rule.at(request.turn).fault
        if fault is None or fault.times is None:
            return fault is not None
        place = (request.last_user, request.turn)
        self._inline_faults[place] = self._inline_faults.get(place, 0) + 1
        return self._inline_faults[place] <= fault.times


def _strikes(live: _Live, turn: int) -> bool:
    """Count one use of a reply's fault and tell whether it still strikes."""
    fault = live.rule.at(turn).fault
    if fault is None:
        return False
    place = min(turn, max(0, len(live.rule.turns) - 1))
    live.faults[place] = live.faults.get(place, 0) + 1
    return fault.times is None or live.faults[place] <= fault.times


def meets(match: Match, request: ChatRequest) -> bool:
    """Tell whether a request meets a rule's conditions, `nth` apart."""
    return (
        (match.user is None or match.user in request.last_user)
        and (match.system is None or match.system in request.system)
        and (match.model is None or match.model in request.model)
        and match.key in {None, request.key}
        and match.tools in {None, bool(request.tools)}
        and match.json_mode in {None, request.json_schema is not None}
        and match.stream in {None, request.stream}
        and match.after_tool in {None, request.after_tool}
    )
