"""`python -m bench.cost --data FILE`: what replies in long conversations cost, and what they see.

Each reply of conversations of the LoCoMo format is built by the context builder, and the exact
texts of its request are priced: with the whole history, with the last 50 messages, and as Fireside
builds it; with the provider's cache warm (the request before is still there) and cold. Then the
same for one user who has had all conversations one after the other, up to 5,000 turns (`--turns`).
Beside the dollars stands the share of the evidence that a request for each question holds. No model
is called.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from agent_core import (
    AssistantMessage,
    Message,
    Model,
    ModelCost,
    TextContent,
    Usage,
    UserMessage,
    get_model,
)
from agent_core.chat_format import chat_messages
from agent_core.context_budget import ContextBudget, fitted
from agent_core.context_builder import ContextBuilder, ContextParts
from agent_core.context_notes import Summary, note_of
from agent_core.streaming import LlmContext
from bench.locomo import (
    Conversation,
    DataError,
    Question,
    Sitting,
    Turn,
    add_data_options,
    read_given,
)
from bench.memory import choose_embedder, own_database
from bench.provider_cache import Meter, Request, counted_by, tokens_of
from bench.recalling import (
    Reader,
    Remembered,
    read_blocking,
    sensed,
    worded,
)
from shared.errors import PricesError
from shared.prices import PriceTable, load_prices
from worker.minilm import EmbeddingsMissingError

STRONG = "openai/gpt-5.4"
CHEAP = "openai/gpt-5-nano"

SYSTEM_TOKENS = 450
SOUL_TOKENS = 600
SUMMARY_TOKENS = 200
CHAIN_TURNS = 5_000
SLIDING = 50
BIN = 250
"""Turns of the chained user whose inputs are told together."""

GOAL_TOKENS = 2_700
"""Input that a reply should not exceed."""

OURS, WHOLE, LAST = "fireside", "whole history", "last 50, sliding"
KEPT, KEPT_TOKENS = "memories kept", 800
"""Another way to show memories, for comparison: where they were shown first, until the window is
cut."""

SUMMARY_EVERY = 8
"""Messages after which a summary is made anew, beside the replies."""

_FILLER = "You answer as a person would and keep to what was said before, kindly and in few words. "

_ANY = Model("any", "openai")

BUDGET = ContextBudget()
"""What the worker's companion has."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """A message of a transcript and the turns that it was made of, by key."""

    message: Message
    turns: tuple[tuple[str, Turn, Sitting], ...] = ()

    @property
    def text(self) -> str:
        if isinstance(self.message, AssistantMessage):
            return self.message.text
        return str(self.message.content)

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(key for key, _, _ in self.turns)


@dataclass(frozen=True, slots=True)
class Shown:
    """The texts of a request, and the keys of the turns whose words stand in them."""

    texts: Sequence[str]
    keys: frozenset[str]


class Way(Protocol):
    """A way to build requests for one user's messages."""

    def request(self, said: Spoken, *, keep: bool = True) -> Shown:
        """The request for a message, which then is part of the transcript, if it is kept."""

    def hear(self, spoken: Spoken) -> None:
        """Take a message into the transcript."""


class LastMessages:
    """The newest messages and nothing else; all of them without a number."""

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._texts: list[str] = []
        self._keys: list[frozenset[str]] = []

    def request(self, said: Spoken, *, keep: bool = True) -> Shown:
        start = 0 if self._most is None else max(0, len(self._texts) + 1 - self._most)
        texts = [f"{filler(SYSTEM_TOKENS)}\n\n{filler(SOUL_TOKENS)}", *self._texts[start:]]
        keys = frozenset[str]().union(*self._keys[start:])
        if keep:
            self.hear(said)
        return Shown([*texts, said.text], keys)

    def hear(self, spoken: Spoken) -> None:
        self._texts.append(spoken.text)
        self._keys.append(spoken.keys)


class Built:
    """Fireside's own: the context builder, with recall of what its window does not show.

    `summaries` is what the summaries used that were made beside the replies.
    """

    def __init__(self, reader: Reader, budget: ContextBudget) -> None:
        self._builder = ContextBuilder(budget)
        self._remembered = Remembered(reader)
        self._history: list[Message] = []
        self._said: list[Spoken] = []
        self._known: list[Summary] = []
        self.summaries = Usage()

    def request(self, said: Spoken, *, keep: bool = True) -> Shown:
        assert isinstance(said.message, UserMessage)
        start, _ = self._builder.shown(self._history)
        window = frozenset[str]().union(*(one.keys for one in self._said[start:]))
        parts = ContextParts(
            instructions=filler(SYSTEM_TOKENS),
            soul=filler(SOUL_TOKENS),
            summaries=self._known[-3:],
            history=self._history,
        )
        recalled = self._remembered.best(said.text, window)
        built = self._builder.build(said.message, parts, recalled)
        messages = built.convert([*built.messages, built.said])
        chat = chat_messages(_ANY, LlmContext(built.system_prompt, messages), signed_thinking=False)
        shown = Shown([str(one["content"]) for one in chat], self._keys_in(built.said))
        if keep:
            self._hear(replace(said, message=built.said))
        return shown

    def hear(self, spoken: Spoken) -> None:
        self._hear(spoken)

    def _keys_in(self, said: UserMessage) -> frozenset[str]:
        note = note_of(said)
        assert note is not None
        total = len(self._history)
        noted = [note_of(message) for message in self._history[total - note.kept :]]
        memories = [memory.id for one in [*noted, note] if one for memory in one.memories]
        window = (one.keys for one in self._said[total - note.window :])
        return frozenset(memories).union(*window)

    def _hear(self, spoken: Spoken) -> None:
        self._history.append(spoken.message)
        self._said.append(spoken)
        for key, turn, sitting in spoken.turns:
            self._remembered.add(key, turn, sitting)
        if len(self._history) % SUMMARY_EVERY == 0:
            self._summarise()

    def _summarise(self) -> None:
        """A summary of the size that one has. What it says counts as nobody's evidence."""
        newest = " ".join(one.text for one in self._said[-SUMMARY_EVERY:])
        before = self._known[-1].text if self._known else ""
        number = len(self._history)
        self._known.append(
            Summary(str(number), fitted(f"{newest} {before}", SUMMARY_TOKENS), number)
        )
        asked = tokens_of(newest) + tokens_of(before) + 150
        self.summaries += Usage(input=asked, output=SUMMARY_TOKENS)


@cache
def filler(tokens: int) -> str:
    """A text of so many tokens."""
    text = ""
    while tokens_of(text) < tokens:
        text += _FILLER
    return text.strip()


@dataclass
class Replies:
    """What replies used, warm and cold, and at which turn each stood."""

    warm: list[Usage] = field(default_factory=list)
    cold: list[Usage] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    summaries: Usage = field(default_factory=Usage)
    shares: list[float] = field(default_factory=list)


def spoken_in(conversation: Conversation, round_no: int = 0) -> Iterator[Spoken]:
    """The messages of a conversation; what one says in a row is one message."""
    run: list[tuple[str, Turn, Sitting]] = []
    for sitting in conversation.sittings:
        for turn in sitting.turns:
            if run and run[-1][1].speaker != turn.speaker:
                yield _message(conversation, run)
                run = []
            run.append((f"{round_no}/{conversation.id}/{turn.id}", turn, sitting))
    if run:
        yield _message(conversation, run)


def _message(conversation: Conversation, run: Sequence[tuple[str, Turn, Sitting]]) -> Spoken:
    text = "\n".join(turn.text for _, turn, _ in run)
    if run[0][1].speaker == conversation.speakers[0]:
        return Spoken(UserMessage(text, 0), tuple(run))
    return Spoken(AssistantMessage([TextContent(text)], timestamp=0), tuple(run))


def replay(way: Way, messages: Sequence[Spoken], model: Model, replies: Replies) -> None:
    """Build and price the request of every answer that follows the user's words."""
    warm, cold = Meter(model, warm=True), Meter(model, warm=False)
    turn = 0
    following: Sequence[Spoken | None] = [*messages[1:], None]
    for one, answer in zip(messages, following, strict=True):
        turn += len(one.turns)
        if not isinstance(one.message, UserMessage) or answer is None:
            way.hear(one)
            continue
        request = Request(way.request(one).texts, answer.text)
        replies.warm.append(warm.usage(request))
        replies.cold.append(cold.usage(request))
        replies.turns.append(turn)
    if isinstance(way, Built):
        replies.summaries += way.summaries


def ask(way: Way, questions: Sequence[tuple[str, Question]], replies: Replies) -> None:
    """The share of each question's evidence that its request would hold.

    Args:
        questions: each with what its turns' keys begin with.
    """
    for prefix, question in questions:
        shown = way.request(Spoken(UserMessage(question.text, 0)), keep=False).keys
        # What was said again in a later round is the same.
        keys = {f"0/{key.partition('/')[2]}" for key in shown}
        evidence = {f"{prefix}{turn}" for turn in question.evidence}
        replies.shares.append(len(evidence & keys) / len(evidence))


def chained(conversations: Sequence[Conversation], turns: int) -> list[Spoken]:
    """One conversation after the other, and from the first again, up to so many turns."""
    chain: list[Spoken] = []
    left, round_no = turns if any(one.turns for one in conversations) else 0, 0
    while left > 0:
        for conversation in conversations:
            for spoken in spoken_in(conversation, round_no):
                left -= len(spoken.turns)
                if left < 0:
                    return chain
                chain.append(spoken)
        round_no += 1
    return chain


def check(conversations: Sequence[Conversation], turns: int, name: str) -> None:
    """Raise DataError where there would be nothing to price.

    Args:
        turns: those of the chained user.
        name: the file's.
    """
    if not any(one.turns for one in conversations):
        raise DataError(f"{name} has no turns")
    if not any(_has_reply(list(spoken_in(one))) for one in conversations):
        raise DataError(f"{name} has no replies: nothing follows what the first speaker says")
    if not _has_reply(chained(conversations, turns)):
        raise DataError(f"the first {turns} turns of {name} have no reply; give more by --turns")


def _has_reply(messages: Sequence[Spoken]) -> bool:
    return any(isinstance(one.message, UserMessage) for one in messages[:-1])


@dataclass(frozen=True)
class Prices:
    """The models and what their tokens cost."""

    strong: Model
    cheap: Model

    def row(self, replies: Replies) -> dict[str, Any]:
        """The figures of one way."""
        count = len(replies.warm)
        totals = [usage.total_tokens for usage in replies.warm]
        beside = 1_000 * self.cheap.price(replies.summaries).cost / count
        return {
            "replies": count,
            "warm_usd": round(self._per_1000(replies.warm) + beside, 3),
            "warm_input_usd": round(self._per_1000(replies.warm, output=False), 3),
            "cold_usd": round(self._per_1000(replies.cold) + beside, 3),
            "summaries_usd": round(beside, 3),
            "input_mean": round(statistics.fmean(totals)),
            "input_p95": sorted(totals)[int(0.95 * (count - 1))],
            "input_max": max(totals),
            "cached_share": round(sum(one.cache_read for one in replies.warm) / sum(totals), 4),
            "over_goal": round(sum(total > GOAL_TOKENS for total in totals) / count, 4),
            "coverage": round(statistics.fmean(replies.shares), 4) if replies.shares else None,
        }

    def _per_1000(self, usages: Sequence[Usage], *, output: bool = True) -> float:
        priced = [usage if output else replace(usage, output=0) for usage in usages]
        return 1_000 * statistics.fmean(self.strong.price(usage).cost for usage in priced)


def by_turns(replies: Replies) -> list[dict[str, int]]:
    """The mean and the largest input of each BIN turns; `to` is the last turn of a bin."""
    bins: dict[int, list[int]] = {}
    for usage, at in zip(replies.warm, replies.turns, strict=True):
        bins.setdefault(max(0, at - 1) // BIN, []).append(usage.total_tokens)
    return [
        {"to": (number + 1) * BIN, "mean": round(statistics.fmean(found)), "max": max(found)}
        for number, found in sorted(bins.items())
    ]


def near(replies: Replies, turn: int, within: int = 100) -> int | None:
    """The mean input of the replies around a turn; None where there is none."""
    found = [
        usage.total_tokens
        for usage, at in zip(replies.warm, replies.turns, strict=True)
        if abs(at - turn) <= within
    ]
    return round(statistics.fmean(found)) if found else None


def ways(reader: Reader, budget: ContextBudget) -> dict[str, Callable[[], Way]]:
    """What is compared, by name."""
    return {
        WHOLE: LastMessages,
        LAST: lambda: LastMessages(SLIDING),
        OURS: lambda: Built(reader, budget),
        KEPT: lambda: Built(reader, replace(budget, kept=KEPT_TOKENS)),
    }


def measure(
    conversations: Sequence[Conversation],
    reader: Reader,
    prices: Prices,
    budget: ContextBudget,
    turns: int = CHAIN_TURNS,
) -> dict[str, Any]:
    """All figures; `turns` are those of the chained user."""
    result: dict[str, Any] = {"conversations": {}, "chained": {}}
    chain = chained(conversations, turns)
    for name, make in ways(reader, budget).items():
        replies = Replies()
        for conversation in conversations:
            way = make()
            replay(way, list(spoken_in(conversation)), prices.strong, replies)
            ask(way, questions_of([conversation]), replies)
        result["conversations"][name] = prices.row(replies)
        if name == KEPT:
            continue
        replies, way = Replies(), make()
        replay(way, chain, prices.strong, replies)
        ask(way, questions_of(conversations), replies)
        result["chained"][name] = prices.row(replies) | {
            "input_at_200": near(replies, 200),
            "input_at_end": near(replies, replies.turns[-1]),
            "input_by_turns": by_turns(replies),
        }
        print(f"{name}: done", file=sys.stderr)
    return result | {"shows": shows(result)}


def questions_of(conversations: Sequence[Conversation]) -> list[tuple[str, Question]]:
    return [(f"0/{one.id}/", question) for one in conversations for question in one.questions]


def shows(result: dict[str, Any]) -> dict[str, float | None]:
    """What is wanted of these figures, as numbers; None where a file is too short to say."""
    chain, single = result["chained"], result["conversations"]
    ours, whole, last = chain[OURS], chain[WHOLE], chain[LAST]
    return {
        "flat": _ratio(ours["input_at_end"], ours["input_at_200"], 3),
        "to_sliding": _ratio(ours["warm_usd"], last["warm_usd"], 3),
        "to_whole": _ratio(ours["warm_usd"], whole["warm_usd"], 4),
        "input_to_sliding": _ratio(ours["warm_input_usd"], last["warm_input_usd"], 3),
        "input_to_whole": _ratio(ours["warm_input_usd"], whole["warm_input_usd"], 4),
        "cached_share": ours["cached_share"],
        "input_mean": ours["input_mean"],
        "coverage": single[OURS]["coverage"],
        "chained_coverage": ours["coverage"],
    }


def _ratio(one: float | None, other: float | None, digits: int) -> float | None:
    return None if one is None or not other else round(one / other, digits)


def texts_of(conversations: Sequence[Conversation]) -> tuple[list[str], list[str]]:
    """The texts of a replay: those whose words alone matter, and those with a sense as well."""
    words, senses = [], []
    for conversation in conversations:
        for sitting in conversation.sittings:
            words += [worded(turn) for turn in sitting.turns]
            senses += [sensed(turn, sitting) for turn in sitting.turns]
        said = spoken_in(conversation)
        senses += [one.text for one in said if isinstance(one.message, UserMessage)]
        senses += [question.text for question in conversation.questions]
    return words, senses


def languages_of(conversations: Sequence[Conversation]) -> dict[str, str]:
    """The languages of these texts."""
    return {
        said: one.language for one in conversations for texts in texts_of([one]) for said in texts
    }


def table(result: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [
        f"{result['model']}, summaries by {result['cheap']}, prices of {result['prices']}; tokens "
        f"by {result['counted_by']}, vectors by {result['embeddings']}; no model was asked",
        "US dollars for 1,000 replies",
    ]
    for part in ("conversations", "chained"):
        lines += [
            "",
            f"{part:20}{'warm':>9}{'input':>9}{'cold':>9}{'tokens':>9}{'p95':>8}{'most':>8}"
            f"{'cached':>9}{'evidence':>10}",
        ]
        for name, row in result[part].items():
            lines.append(
                f"{name:20}{row['warm_usd']:9.2f}{row['warm_input_usd']:9.2f}{row['cold_usd']:9.2f}"
                f"{row['input_mean']:9}{row['input_p95']:8}{row['input_max']:8}"
                f"{100 * row['cached_share']:8.1f}%{_shown(row['coverage'], '9.1%'):>10}"
            )
    shown = result["shows"]
    return "\n".join(
        [
            *lines,
            "",
            "the chained user, warm, against the last 50 and the whole history: "
            f"{_shown(shown['to_sliding'], '.2f')} and {_shown(shown['to_whole'], '.3f')}, "
            f"input alone {_shown(shown['input_to_sliding'], '.2f')} and "
            f"{_shown(shown['input_to_whole'], '.3f')}",
            f"input at the end against that at turn 200: {_shown(shown['flat'], '.2f')}",
            "",
            *_binned(result["chained"][OURS]),
        ]
    )


def _binned(row: dict[str, Any]) -> list[str]:
    """The inputs of the chained user as they grow, for people."""
    return [
        f"the chained user's replies above {GOAL_TOKENS:,} tokens: {row['over_goal']:.1%}",
        f"input by {BIN} turns: mean, most",
        *(f"  to {one['to']:5}{one['mean']:9}{one['max']:8}" for one in row["input_by_turns"]),
    ]


def _shown(figure: float | None, form: str) -> str:
    return "-" if figure is None else format(figure, form)


def priced(name: str, prices: PriceTable) -> Model:
    """A model at its price of today; raises DataError where it has none."""
    price = prices.price(name, datetime.now(UTC).date())
    if price is None:
        raise DataError(f"there is no price for {name}")
    cost = ModelCost(
        float(price.input), float(price.output), float(price.cache_read), float(price.cache_write)
    )
    provider, _, model_id = name.partition("/")
    return get_model(provider, model_id, cost=cost)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cost", description=__doc__)
    add_data_options(parser)
    parser.add_argument("--model", default=STRONG, help="the model that answers")
    parser.add_argument("--cheap", default=CHEAP, help="the one that makes summaries")
    parser.add_argument("--prices", type=Path, help="a table of prices before the release's own")
    parser.add_argument("--embeddings", choices=["best", "minilm", "hashing"], default="best")
    parser.add_argument(
        "--turns", type=_count, default=CHAIN_TURNS, help="turns of the chained user, at most"
    )
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--out", type=Path, help="a file for the same")
    options = parser.parse_args()
    try:
        conversations = read_given(options)
        known = load_prices(options.prices)
        prices = Prices(priced(options.model, known), priced(options.cheap, known))
        embedder = choose_embedder(options.embeddings)
        check(conversations, options.turns, options.data.name)
    except (DataError, PricesError, EmbeddingsMissingError) as error:
        print(f"bench.cost: {error}", file=sys.stderr)
        return 1
    with own_database() as url:
        languages = languages_of(conversations)
        reader = read_blocking(*texts_of(conversations), url, embedder, languages)
    result = {
        "model": options.model,
        "cheap": options.cheap,
        "prices": next(iter(_versions(known, options.model)), ""),
        "counted_by": counted_by(),
        "embeddings": embedder.name,
    } | measure(conversations, reader, prices, BUDGET, options.turns)
    print(table(result))
    if options.json:
        print(json.dumps(result))
    if options.out is not None:
        options.out.write_text(json.dumps(result) + "\n")
    return 0


def _count(given: str) -> int:
    count = int(given)
    if count < 1:
        raise argparse.ArgumentTypeError("one turn at least")
    return count


def _versions(prices: PriceTable, model: str) -> Iterator[str]:
    price = prices.price(model, datetime.now(UTC).date())
    if price is not None:
        yield price.version


if __name__ == "__main__":
    sys.exit(main())
