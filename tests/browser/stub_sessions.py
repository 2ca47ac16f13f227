"""What the stub gateway keeps and plays: sessions with a log, a transcript and a scripted worker.

It speaks the contract's frames and survives every restart of the stub's gateway, as Postgres and
the workers would.
"""

import asyncio
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import count
from typing import Any, TypeAlias

from tests.waiting import until

Json: TypeAlias = dict[str, Any]

AGENTS: list[Json] = [
    {
        "name": "story",
        "title": "Interactive story",
        "description": "Plays a story, with free text",
        "stories": [
            {
                "name": "night-ferry",
                "title": "The Night Ferry",
                "description": "The last boat over the sound, a passenger who was never there, "
                "and a bell that rings by itself.",
            },
            {
                "name": "salt-garden",
                "title": "The Salt Garden",
                "description": "Your aunt has left you an island. It is not as empty as the "
                "lawyer said.",
            },
            {
                "name": "snow-line",
                "title": "Above the Snow Line",
                "description": "Three days to the pass, two of them with provisions.",
            },
        ],
    },
    {
        "name": "companion",
        "title": "Companion",
        "description": "Somebody to talk to, who remembers what you say.",
        "stories": [],
    },
]

OPENING = """\
The ferry leaves at eleven, or when the captain has finished his soup; tonight it is the soup.
You stand at the rail and count the lamps of the harbour as they go out. *Nine. Eight.* Somebody \
beside you is counting, too, half a breath behind.
"You should not have come on this one," she says. Her coat is wet; it has not rained for a week."""

SCENES = [
    "She laughs without a sound, as one laughs in a library. Then she points over your shoulder, "
    "and when you have looked and turned back there is only the rail, and a *wet* place on it.",
    "Below deck it smells of diesel and oranges. On the third step the bell rings, once. "
    "Nobody is near the rope.\nIt is still swinging when you reach it.",
    "The captain looks up from his plate. He has laid two spoons.",
]

NARRATION = (
    "You say it into the wind, and the wind keeps most of it. What is left reaches her, and she "
    "tilts her head as if at a tune that she has not heard since she was small.\n\n"
    "Far out \N{WATER WAVE}, below the line where the lamps end, something answers: one stroke of "
    "a bell, *na\u00efve* and clear. \N{DEAF PERSON}\N{ZERO WIDTH JOINER}\N{FEMALE SIGN} The deck "
    "hums with it, and then the deck is quiet."
)

CHAT = (
    "That is a fine thing to be asked at this hour. Let me think about it for a moment, since you "
    "seem to mean it.\n\nI would keep the **blue** one, and let the others go where they want. "
    "You told me that you never liked them *that* much."
)


NOTE: Json = {
    "window": 2,
    "grown": 0,
    "memories": [
        {"id": "m1", "text": "You (7 May 2026): I never liked the <b>red</b> ones."},
        {"id": "m2", "text": "You (9 May 2026): My sister Ida paints boats."},
    ],
    "left_out": [
        {"what": "memories", "why": "budget", "count": 3},
        {"what": "messages", "why": "window", "count": 1200},
        {"what": "memories", "why": "shown", "count": 1, "ids": ["m3"]},
    ],
}
"""What the server notes on a companion's user's message."""


def choices(step: int) -> list[Json]:
    """What can be chosen after a step of the story."""
    if step >= len(SCENES):
        return []
    return [
        {"id": f"{step}.ask", "text": "Ask her who she is waiting for", "tags": []},
        {
            "id": f"{step}.hatch",
            "text": "Climb down and look for the bell",
            "tags": ["dc:12", "stat:wits"],
        },
        {"id": f"{step}.captain", "text": "Go and knock at the captain's door", "tags": []},
    ]


@dataclass
class Task:
    id: str
    action: Json
    client_action_id: str | None
    attempt: int = 0
    messages: list[Json] = field(default_factory=list)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    killed: asyncio.Event = field(default_factory=asyncio.Event)
    text: str = ""
    status: str = "queued"


HELD_SECONDS = 600.0
"""How long an answer waits that is held up: longer than a test."""


@dataclass
class Settings:
    """What the tests change while the stub runs."""

    pause: float = 0.015
    pieces: int | None = None
    """After so many pieces an answer waits until this is another number."""
    key: str | None = None
    lost_acks: int = 0
    failure: str | None = None
    refusal: Json | None = None


class Session:
    """One session, and the worker that plays it."""

    def __init__(self, wanted: Json, settings: Settings) -> None:
        self.id = str(uuid.uuid4())
        self.agent: str = wanted["agent"]
        self.story: str | None = wanted.get("story")
        self.title: str = wanted.get("title", "")
        self.key: str | None = wanted.get("key")
        self.events: list[Json] = []
        self.first_seq = 1
        self.messages: list[Json] = []
        self.view: Json = {"state": {}, "choices": []}
        self.tasks: dict[str, Task] = {}
        self.waiting: asyncio.Queue[Task] = asyncio.Queue()
        self.running: Task | None = None
        self.listeners: set[asyncio.Queue[Json]] = set()
        self.step = 0
        self.accepted = 0
        self._settings = settings
        self._numbers = count(1)
        self.updated_at = now()
        self.worker = asyncio.create_task(self._work())

    @property
    def head_seq(self) -> int:
        return self.events[-1]["seq"] if self.events else 0

    @property
    def status(self) -> str:
        if self.running is not None:
            return "running"
        return "queued" if self.waiting.qsize() else "idle"

    def body(self) -> Json:
        return {
            "id": self.id,
            "key": self.key,
            "agent": self.agent,
            "story": self.story,
            "title": self.title,
            "status": self.status,
            "head_seq": self.head_seq,
            "first_seq": self.first_seq,
            **self.view,
            "created_at": self.updated_at,
            "updated_at": self.updated_at,
        }

    def accept(self, action: Json, client_action_id: str | None = None) -> Task:
        """Take an action; one whose id is known is the same task again."""
        for task in self.tasks.values():
            if client_action_id is not None and task.client_action_id == client_action_id:
                return task
        task = Task(str(uuid.uuid4()), action, client_action_id)
        self.tasks[task.id] = task
        self.accepted += 1
        data = {"action": action, "client_action_id": client_action_id, "position": 0}
        self.emit(task, "task_queued", data)
        self.waiting.put_nowait(task)
        return task

    def emit(self, task: Task, kind: str, data: Json) -> None:
        """Append an event to the log and tell those who listen."""
        self.updated_at = now()
        frame = {
            "seq": next(self._numbers),
            "type": kind,
            "task_id": task.id,
            "at": self.updated_at,
            "data": data,
        }
        self.events.append(frame)
        self.tell(frame)

    def tell(self, frame: Json) -> None:
        for listener in self.listeners:
            listener.put_nowait(frame)

    def forget(self) -> None:
        """Forget all events but the last one, as retention does."""
        self.events = self.events[-1:]
        self.first_seq = self.head_seq

    def text_so_far(self) -> Json | None:
        """The delta that a client which joins in the middle gets first."""
        task = self.running
        if task is None or not task.text:
            return None
        return delta(task, 0, task.text)

    async def _work(self) -> None:
        while True:
            task = await self.waiting.get()
            if task.cancelled.is_set():
                task.status = "cancelled"
                self.emit(task, "task_cancelled", {})
                continue
            self.running = task
            while not await self._attempt(task):
                pass
            self.running = None

    async def _attempt(self, task: Task) -> bool:
        """Run the task once; False where its worker was killed."""
        task.attempt += 1
        task.killed.clear()
        task.text = ""
        kind = "task_started" if task.attempt == 1 else "task_restarted"
        self.emit(task, kind, {"attempt": task.attempt})
        if task.attempt == 1:
            self.emit(task, "agent_start", {})
            self._say_user(task)
        if self._settings.failure is not None:
            error = {"code": "model_failed", "message": self._settings.failure}
            self._settings.failure = None
            self._end(task, "failed", {"error": error})
            return True
        check = self._move(task)
        if task.action["type"] == "say" and self.story is None and "roll" in task.action["text"]:
            self._roll(task)
        if not await self._write(task, self._answer(task)):
            return not task.killed.is_set()
        self._complete(task, check)
        return True

    def _say_user(self, task: Task) -> None:
        words = task.action.get("text")
        if task.action["type"] == "choose":
            named = [c["text"] for c in self.view["choices"] if c["id"] == task.action["choice_id"]]
            words = named[0] if named else None
        if words is not None:
            note = NOTE if self.story is None else None
            details = {} if note is None else {"details": {"context": note}}
            self._message(task, {"role": "user", "content": words, **details})

    def _move(self, task: Task) -> Json | None:
        if task.attempt > 1 or task.action["type"] != "choose":
            return None
        self.step += 1
        if not task.action["choice_id"].endswith("hatch"):
            return None
        return {"stat": "wits", "dc": 12, "roll": 14, "modifier": 2, "total": 16, "success": True}

    def _answer(self, task: Task) -> str:
        if task.action["type"] == "start":
            return OPENING if self.story else "Good evening! I have put the kettle on."
        if self.story is None:
            return CHAT
        if task.action["type"] == "say":
            return NARRATION
        return SCENES[min(self.step, len(SCENES)) - 1]

    def _roll(self, task: Task) -> None:
        call = {"type": "tool_call", "id": "call-1", "name": "roll_dice"}
        call["arguments"] = {"sides": 20}  # type: ignore[assignment] # JSON
        self._message(task, {"role": "assistant", "content": [call]})
        start = {"tool_call_id": "call-1", "tool_name": "roll_dice", "args": {"sides": 20}}
        self.emit(task, "tool_execution_start", start)
        self.emit(task, "tool_execution_end", {**start, "is_error": False})
        result = {"role": "tool_result", "tool_call_id": "call-1", "tool_name": "roll_dice"}
        self._message(task, {**result, "content": [text_block("17")], "is_error": False})

    async def _write(self, task: Task, text: str) -> bool:
        """Stream a message; False where it was cut off."""
        number = len(task.messages)
        empty = {"role": "assistant", "content": []}
        self.emit(task, "message_start", {"message": empty, "number": number})
        written = task.action["type"] in {"start", "choose"} and self.story is not None
        for told, piece in enumerate([] if written else pieces(text)):
            await until(partial(self._may_tell, task, told), seconds=HELD_SECONDS)
            self.tell(delta(task, len(task.text), piece))
            task.text += piece
            await asyncio.sleep(self._settings.pause)
            if task.killed.is_set():
                return False
            if task.cancelled.is_set():
                self._message(task, said(task.text), started=True)
                self._end(task, "cancelled", {})
                return False
        self._message(task, said(text), started=True)
        return True

    def _may_tell(self, task: Task, told: int) -> bool:
        most = self._settings.pieces
        return most is None or told < most or task.killed.is_set() or task.cancelled.is_set()

    def _message(self, task: Task, message: Json, *, started: bool = False) -> None:
        data = {"message": message, "number": len(task.messages)}
        if not started:
            self.emit(task, "message_start", data)
        task.messages.append(message)
        task.text = ""
        self.emit(task, "message_end", data)

    def _complete(self, task: Task, check: Json | None) -> None:
        self.emit(task, "agent_end", {})
        if self.story is not None:
            over = self.step >= len(SCENES)
            variables = {"place": "On deck", "wits": 2, "nerve": 3 - self.step, "has_key": over}
            state = {"scene": "", "ended": over, "variables": variables}
            self.view = {"state": state, "choices": choices(self.step)}
        self.emit(task, "state_changed", self.view)
        first = len(self.messages)
        result = {
            "text": "",
            "messages": list(range(first, first + len(task.messages))),
            "decision": {"check": check},
            **self.view,
        }
        self._end(task, "completed", {"result": result})

    def _end(self, task: Task, status: str, data: Json) -> None:
        task.status = status
        parent = len(self.messages) - 1
        self.messages += [
            {
                "id": parent + 1 + index,
                "parent": parent + index if parent + index >= 0 else None,
                "task_id": task.id,
                "message": message,
                "created_at": now(),
            }
            for index, message in enumerate(task.messages)
        ]
        self.emit(task, f"task_{status}", data)


def delta(task: Task, offset: int, text: str) -> Json:
    return {
        "type": "message_update",
        "task_id": task.id,
        "attempt": task.attempt,
        "message": len(task.messages),
        "offset": offset,
        "delta": text,
    }


def pieces(text: str) -> Iterator[str]:
    """A text in pieces of uneven size that also end between the parts of one sign."""
    sizes = (3, 7, 1, 11, 5)
    start = 0
    for size in (sizes[index % len(sizes)] for index in range(len(text))):
        if start >= len(text):
            return
        yield text[start : start + size]
        start += size


def text_block(text: str) -> Json:
    return {"type": "text", "text": text}


def said(text: str) -> Json:
    return {"role": "assistant", "content": [text_block(text)], "stop_reason": "stop"}


def now() -> str:
    return datetime.now(UTC).isoformat()
