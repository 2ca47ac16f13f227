"""All that a seed decides: who says what and how, what the model answers, what is struck when."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from tests.chaos.history import Action

Way: TypeAlias = Literal["post", "socket", "post+post", "post+socket", "socket+socket"]
"""How an action is sent; with a plus it is sent over two connections at once."""

WAYS: Mapping[Way, int] = {
    "post": 3,
    "socket": 3,
    "post+post": 2,
    "post+socket": 2,
    "socket+socket": 1,
}

MODES: Mapping[str, int] = {
    "enqueue": 10,
    "interrupt": 2,
    "steer": 3,
    "follow_up": 2,
    "collect": 3,
    "reject": 2,
}
"""What an action asks for while another one runs, and how often it does."""

WORKERS, GATEWAYS = 3, 2

FAULTS: Mapping[str, tuple[str, int]] = {
    "kill": ("worker", 13),
    "freeze": ("worker", 3),
    "term": ("worker", 2),
    "gateway_kill": ("gateway", 8),
    "gateway_freeze": ("gateway", 2),
    "gateway_term": ("gateway", 1),
    "wipe": ("redis", 3),
    "redis_restart": ("redis", 2),
    "blackout": ("fleet", 1),
    "postgres_stop": ("postgres", 5),
}
"""Each kind of fault with what it strikes and how many of forty it is."""

FIRST = ("kill", "gateway_kill", "postgres_stop", "freeze", "wipe", "blackout")
"""What also a short run has."""

HOLDS: Mapping[str, tuple[float, float]] = {
    "freeze": (3.4, 4.6),  # longer than a lease
    "gateway_freeze": (0.5, 3.0),
    "redis_restart": (0.0, 1.5),
    "blackout": (1.0, 2.0),
    "postgres_stop": (0.0, 0.5),
}
"""Seconds for which a fault lasts, where it does."""

BENIGN: Sequence[dict[str, Any]] = (
    {"kind": "status", "status": 429, "retry_after": 0.2},
    {"kind": "status", "status": 500},
    {"kind": "status", "status": 503},
    {"kind": "close"},
    {"kind": "close", "after": 0},
    {"kind": "hang"},
)
"""What the model does wrong before its first word; it is asked again."""

FATAL: Sequence[dict[str, Any]] = (
    {"kind": "close", "after": 2},
    {"kind": "garbage", "after": 1},
    {"kind": "malformed", "after": 1},
    {"kind": "error_event", "after": 1},
    {"kind": "hang", "after": 1},
)
"""What the model does wrong in mid-stream; the task fails, and the session goes on."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault, `gap` seconds after the one before it on the same target was over."""

    kind: str
    target: str
    gap: float
    hold: float = 0.0


@dataclass(frozen=True, slots=True)
class Move:
    """An action and its client's way with it: sent by `way`, `think` seconds after the one before,
    and not before the share `at` of all faults has struck.

    `drops`: the socket that it is sent on is cut before the answer can come.
    """

    action: Action
    text: str
    at: float
    think: float
    way: Way
    drops: bool = False


@dataclass(frozen=True, slots=True)
class Role:
    """What one player does: a session of an agent, and moves in it.

    `drops` are numbers of frames after which the player's socket is cut, one after the other.
    """

    name: str
    agent: str
    story: str | None
    moves: Sequence[Move]
    drops: Sequence[int]


@dataclass(frozen=True, slots=True)
class Plan:
    """One seed's run. `rules` are the model's, `lanes` the faults of each target in their order."""

    seed: int
    roles: Sequence[Role]
    rules: Sequence[dict[str, Any]]
    lanes: Mapping[str, Sequence[Fault]]
    model_faults: int = 0

    @property
    def actions(self) -> list[Action]:
        """All that is meant to be done."""
        return [move.action for role in self.roles for move in role.moves]

    @property
    def faults(self) -> int:
        """How many faults strike processes and servers."""
        return sum(len(lane) for lane in self.lanes.values())


def make_plan(
    seed: int,
    *,
    actions: int,
    faults: int,
    modes: Mapping[str, int] = MODES,
    model_faults: float = 0.14,
) -> Plan:
    """The plan of a seed.

    Args:
        faults: how many faults strike processes and servers.
        modes: the `on_busy` that actions have, with how often.
        model_faults: the share of the model's answers that go wrong.
    """
    rng = random.Random(seed)
    lanes = _lanes(random.Random(rng.random()), faults)
    writer = _Writer(random.Random(rng.random()), modes, model_faults)
    roles = _roles(random.Random(rng.random()), writer, actions)
    return Plan(seed, roles, writer.rules, lanes, writer.faults)


def _kinds(faults: int) -> list[str]:
    """At least one of each kind as far as they go, the rest by how many of forty they are."""
    kinds = [*FIRST, *(kind for kind in FAULTS if kind not in FIRST)][:faults]
    while len(kinds) < faults:
        rarest = min(FAULTS, key=lambda kind: kinds.count(kind) / FAULTS[kind][1])
        kinds.append(rarest)
    return kinds


def _lanes(rng: random.Random, faults: int) -> dict[str, list[Fault]]:
    """The faults in a random order, each lane with random pauses."""
    kinds = _kinds(faults)
    rng.shuffle(kinds)
    lanes: dict[str, list[Fault]] = {}
    turn = {"worker": rng.randrange(WORKERS), "gateway": rng.randrange(GATEWAYS)}
    for kind in kinds:
        target = FAULTS[kind][0]
        lane = target
        if target in turn:
            turn[target] += 1
            lane = f"{target}-{turn[target] % (WORKERS if target == 'worker' else GATEWAYS)}"
        hold = round(rng.uniform(*HOLDS[kind]), 2) if kind in HOLDS else 0.0
        lanes.setdefault(lane, []).append(Fault(kind, lane, 0.0, hold))
    gaps = {"worker": (0.5, 3.0), "gateway": (1.0, 5.0)}
    return {
        lane: [
            Fault(
                one.kind,
                one.target,
                round(rng.uniform(*gaps.get(lane.partition("-")[0], (2.0, 9.0))), 2),
                one.hold,
            )
            for one in kinds_of
        ]
        for lane, kinds_of in lanes.items()
    }


def _roles(rng: random.Random, writer: "_Writer", actions: int) -> list[Role]:
    count = max(4, actions // 10)
    shares = [actions // count + (number < actions % count) for number in range(count)]
    stories = 1 if count < 8 else 2
    companions = max(1, count // 6)
    roles = []
    for number, share in enumerate(shares):
        name = f"p{number}"
        if number < stories:
            agent, story = "story", "well"
        else:
            agent, story = "companion" if number < stories + companions else "tinker", None
        moves = [
            writer.move(agent, name, index, at=0.95 * (index + rng.random()) / share)
            for index in range(share)
        ]
        drops = [rng.randint(1, 40) for _ in range(max(1, share // 2))] if writer.wild else []
        roles.append(Role(name, agent, story, moves, drops))
    return roles


@dataclass(slots=True)
class _Writer:
    """Writes actions with the model's rules for them."""

    rng: random.Random
    modes: Mapping[str, int]
    model_faults: float
    rules: list[dict[str, Any]] = field(default_factory=list)
    faults: int = 0

    @property
    def wild(self) -> bool:
        """Whether anything is to go wrong at all."""
        return self.model_faults > 0

    def move(self, agent: str, player: str, index: int, *, at: float) -> Move:
        """An action of a player; one that minds what runs comes soon after the one before."""
        rng = self.rng
        key = f"{player}-a{index}"
        # A first action has nothing to be steered into; a choice needs the scene that it is in.
        mode = "enqueue" if index == 0 else rng.choices(list(self.modes), [*self.modes.values()])[0]
        at = round(at, 3) if mode == "enqueue" else 0.0
        think = round(rng.uniform(0.02, 0.6), 3)
        way = rng.choices(list(WAYS), list(WAYS.values()))[0]
        drops = self.wild and rng.random() < 0.15
        if agent == "story" and rng.random() < 0.5:
            action = Action(key, player, "choose", "enqueue", "", 0)
            return Move(action, "", at, think, way, drops)
        mark = f"#{key}#"
        if agent == "story":
            action = self._story(key, player, mode, mark)
        else:
            action = self._say(key, player, mode, mark, agent)
        return Move(action, f"Well, {mark} it is.", at, think, way, drops)

    def _story(self, key: str, player: str, mode: str, mark: str) -> Action:
        ruling = '{"choice": null, "confidence": 0.9, "check": null, "reason": "none"}'
        said = {"user": mark}
        self.rules += [
            {
                "name": f"{key}/referee",
                "match": said | {"system": "You are the referee"},
                "reply": self._reply(ruling)[0],
            },
            {
                "name": f"{key}/narrator",
                "match": said | {"system": "You narrate"},
                "reply": self._reply("The water is dark, and you listen.")[0],
            },
        ]
        return Action(key, player, "say", mode, mark, 2)

    def _say(self, key: str, player: str, mode: str, mark: str, agent: str) -> Action:
        rng = self.rng
        rounds = rng.choices([0, 1, 2], [4, 4, 2])[0]
        letters: list[str] = []
        notes: list[str] = []
        turns: list[dict[str, Any]] = []
        may_fail = False
        for number in range(rounds + 1):
            words = f"This is turn {number} of {rounds}, and it goes on for a while."
            reply, fatal = self._reply(words, fatal=True)
            may_fail = may_fail or fatal
            if number < rounds:
                calls = self._calls(agent, f"{mark}{number}", letters, notes)
                reply = reply | {"tool_calls": calls}
            turns.append(reply)
        self.rules.append({"name": key, "match": {"user": mark}, "turns": turns})
        return Action(
            key=key,
            player=player,
            kind="say",
            on_busy=mode,
            mark=mark,
            turns=len(turns),
            letters=tuple(letters),
            notes=tuple(notes),
            may_fail=may_fail,
            is_cancelled=self.wild and rng.random() < 0.03,
        )

    def _calls(
        self, agent: str, mark: str, letters: list[str], notes: list[str]
    ) -> list[dict[str, Any]]:
        """Calls of tools: pure ones for a companion, of each effect for a tinker."""
        rng = self.rng
        if agent == "companion":
            return [{"name": "roll_dice", "arguments": {"sides": 6}}]
        calls: list[dict[str, Any]] = []
        for number in range(rng.randint(1, 3)):
            place = f"{mark}.{number}"
            tool = rng.choice(["post_letter", "take_note", "think_aloud"])
            calls.append({"name": tool, "arguments": {"mark": place}})
            if tool == "post_letter":
                letters.append(place)
            elif tool == "take_note":
                notes.append(place)
        return calls

    def _reply(self, words: str, *, fatal: bool = False) -> tuple[dict[str, Any], bool]:
        """An answer with its times, perhaps with a fault; and whether that ends the task."""
        rng = self.rng
        reply: dict[str, Any] = {
            "text": words,
            "ttft": round(rng.uniform(0.02, 0.3), 3),
            "duration": round(rng.uniform(0.1, 1.0), 3),
        }
        if rng.random() >= self.model_faults:
            return reply, False
        self.faults += 1
        ends = fatal and rng.random() < 0.2
        fault = rng.choice(FATAL if ends else BENIGN)
        return reply | {"fault": {**fault, "times": 1 if ends else rng.randint(1, 2)}}, ends
