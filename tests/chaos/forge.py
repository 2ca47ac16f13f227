"""Makes histories as a correct server would leave them, to be spoilt on purpose by tests."""

from dataclasses import dataclass, field
from typing import Any

from tests.chaos.history import (
    Action,
    Answer,
    Call,
    Connection,
    EventRow,
    Frame,
    History,
    Letter,
    MessageRow,
    SessionRow,
    Tables,
    TaskRow,
)

WORKERS = ["worker-0", "worker-1", "worker-2"]


@dataclass(slots=True)
class Forger:
    """Writes the history of one session as its tasks are run, one after the other.

    Every write takes 0.1 s of the forged clock.
    """

    player: str = "p0"
    now: float = 1000.0
    notes: list[str] = field(default_factory=list)
    choices: int = 0
    actions: list[Action] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    letters: list[Letter] = field(default_factory=list)
    tasks: list[TaskRow] = field(default_factory=list)
    events: list[EventRow] = field(default_factory=list)
    messages: list[MessageRow] = field(default_factory=list)

    @property
    def session_id(self) -> str:
        return f"session-{self.player}"

    def accept(self, **fields: Any) -> TaskRow:
        """A client's action becomes a task: sent, answered, queued."""
        key = f"{self.player}-a{len(self.actions)}"
        defaults: dict[str, Any] = {"kind": "say", "on_busy": "enqueue", "turns": 1}
        mark = "" if fields.get("kind") == "choose" else f"#{key}#"
        action = Action(key=key, player=self.player, mark=mark, **(defaults | fields))
        self.actions.append(action)
        sent, seq = self._tick(), len(self.tasks) + 1
        task = TaskRow(
            self.session_id, seq, f"task-{key}", key, "queued", action.on_busy, self._next_seq
        )
        self.tasks.append(task)
        self._tell(task, "task_queued", {"position": 0})
        self.answers.append(Answer(key, sent, self._tick(), "accepted", task.id))
        return task

    def run(
        self,
        task: TaskRow,
        status: str = "completed",
        *,
        takeovers: int = 0,
        unheard: bool = False,
        joined: tuple[TaskRow, ...] = (),
        worker: str = "worker-0",
        cancel_requested: bool = False,
    ) -> None:
        """A task runs to its end, taken over so often, with what joined it.

        Args:
            unheard: its first attempt died before its first write.
        """
        action = self._action(task)
        if unheard:
            self._tell(task, "task_restarted", {"attempt": 2})
        else:
            self._tell(task, "task_started", {"attempt": 1})
        self._tell(task, "agent_start", {})
        said = [{"role": "user", "content": f"Well, {action.mark or 'a choice'} it is."}]
        for number in range(takeovers):
            self._call(action, 0, worker, "aborted")
            worker = WORKERS[(WORKERS.index(worker) + 1) % len(WORKERS)]
            self._tell(task, "task_restarted", {"attempt": number + 2 + unheard})
        if status == "completed":
            said += self._answers(action, worker)
            for other in joined:
                said.append({"role": "user", "content": self._action(other).mark})
                said += self._answers(self._action(other), worker)
        for number, message in enumerate(said):
            owner = next((o.id for o in joined if self._action(o).mark in str(message)), None)
            extra: Frame = {} if owner is None or message["role"] != "user" else {"joined": owner}
            self._tell(task, "message_end", {"message": message, "number": number, **extra})
        self._end(task, status, said, joined, cancel_requested=cancel_requested)

    def cancel_queued(self, task: TaskRow) -> None:
        """A task ends before it has begun."""
        self._close(task, "cancelled", {}, cancel_requested=True)

    def _answers(self, action: Action, worker: str) -> list[Frame]:
        said: list[Frame] = []
        for turn in range(action.turns):
            self._call(action, turn, worker, "completed")
            said.append({"role": "assistant", "content": [{"type": "text", "text": "Yes."}]})
            if turn == 0:
                said += [self._posted(mark) for mark in action.letters]
                self.notes += action.notes
        return said

    def _posted(self, mark: str) -> Frame:
        self.letters.append(Letter(mark, f"key of {mark}"))
        return {
            "role": "tool_result",
            "tool_name": "post_letter",
            "is_error": False,
            "details": {"mark": mark},
            "content": [{"type": "text", "text": "posted"}],
        }

    def _call(self, action: Action, turn: int, worker: str, end: str) -> None:
        began = self._tick()
        self.calls.append(Call(worker, action.key, turn, began, self._tick(), end))

    def _end(
        self,
        task: TaskRow,
        status: str,
        said: list[Frame],
        joined: tuple[TaskRow, ...],
        *,
        cancel_requested: bool,
    ) -> None:
        for message in said:
            no = len(self.messages) + 1
            row = MessageRow(self.session_id, no, no - 1 or None, task.id, message)
            self.messages.append(row)
        if status == "completed" and self._action(task).kind == "choose":
            self.choices += 1
        data: Frame = {"result": {"text": "Yes."}} if status == "completed" else {"error": {}}
        self._close(task, status, data, cancel_requested=cancel_requested)
        for other in joined:
            result: Frame = {"text": "Yes.", "joined": task.id}
            self._close(other, status, {"result": result} if status == "completed" else result)

    def _close(
        self, task: TaskRow, status: str, data: Frame, *, cancel_requested: bool = False
    ) -> None:
        self._tell(task, f"task_{status}", data)
        self.tasks[task.seq - 1] = TaskRow(
            task.session_id,
            task.seq,
            task.id,
            task.client_action_id,
            status,
            task.on_busy,
            task.queued_seq,
            cancel_requested,
        )

    def _action(self, task: TaskRow) -> Action:
        return next(action for action in self.actions if action.key == task.client_action_id)

    @property
    def _next_seq(self) -> int:
        return len(self.events) + 1

    def _tell(self, task: TaskRow, kind: str, data: Frame) -> None:
        row = EventRow(self.session_id, self._next_seq, task.id, kind, data, self._tick())
        self.events.append(row)

    def _tick(self) -> float:
        self.now = round(self.now + 0.1, 3)
        return self.now

    def connection(self, after: int | None, upto: int | None = None) -> Connection:
        """A WebSocket that got all events behind `after`, or all from the third on."""
        begin = 2 if after is None else after
        frames: list[Frame] = [
            {"seq": event.seq, "type": event.type, "task_id": event.task_id, "data": event.data}
            for event in self.events[begin:upto]
        ]
        return Connection(self.session_id, after, frames)

    def history(self, *connections: Connection) -> History:
        """All of it; with one whole connection where none is given."""
        row = SessionRow(
            id=self.session_id,
            next_event=len(self.events) + 1,
            open_tasks=0,
            head_message=len(self.messages) or None,
            state={"notes": list(self.notes)},
            view={"state": {"variables": {"depth": self.choices}}, "choices": []},
        )
        return History(
            players={self.player: self.session_id},
            workers=WORKERS,
            actions=self.actions,
            answers=self.answers,
            connections=list(connections) or [self.connection(0)],
            calls=self.calls,
            letters=self.letters,
            tables=Tables([row], self.tasks, self.events, self.messages),
        )
