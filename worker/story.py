"""The `story` agent: ink moves the story; models only say what free text means, and tell it.

What a player writes passes a referee, who may point at an open choice, then ink and the dice, then
a narrator, then a judge of the variables that the story opens to one. Without any model the same
story is played by words and choices alone.
"""

import asyncio

from agent_core import AssistantMessage, Message, UserMessage
from shared.encoding import JsonObject
from shared.errors import NotFound
from shared.records import CatalogEntry
from worker.agents import Answer, RunningTask, TaskFailed
from worker.context import TaskContext
from worker.ink.engine import Choice, InkEngine
from worker.ink.errors import ChoiceNotFoundError, InkError, SaveInvalidError
from worker.ink.library import StoryLibrary
from worker.ink.throws import Throw
from worker.judge import Verdict, judge
from worker.narration import begin_turn, end_turn, written
from worker.narration import tell as tell_message
from worker.referee import Ruling, rule
from worker.story_calls import StoryCalls
from worker.story_narrator import context_for, tell
from worker.story_scene import Dice, Scene, as_json, begin, change, open_scene, take


class StoryAgent:
    """Plays compiled ink stories.

    A session's state is `{"ink": the save, "scene": the text ink told last, "ended": bool}`.
    """

    entry = CatalogEntry(
        "agent", "story", "Interactive story", "Plays a story written in ink, with free text"
    )

    def __init__(self) -> None:
        self._library = StoryLibrary(())

    async def run(self, task: RunningTask) -> Answer:
        """Answer an action; raises TaskFailed."""
        try:
            return await self._answer(task, task.action["type"])
        except ChoiceNotFoundError as error:
            raise TaskFailed("choice_not_found", "this choice is not open") from error
        except SaveInvalidError as error:
            raise TaskFailed("save_invalid", str(error)) from error
        except InkError as error:
            raise TaskFailed("story_failed", str(error)) from error

    async def _answer(self, task: RunningTask, kind: str) -> Answer:
        if kind not in {"start", "say", "choose", "continue"}:
            raise TaskFailed("action_unknown", f"a story has no action {kind!r}")
        begun = task.state.get("ink") is not None
        if kind == "start" or (kind == "continue" and not begun):
            return _start(task, await begin(await self._engine(task), task.task_id))
        if not begun:
            raise TaskFailed("story_not_begun", "the story has not begun: `continue` begins it")
        if kind == "say":
            return await self._say(task)
        scene = await open_scene(await self._engine(task), task.state)
        if kind == "choose":
            return await _choose(task, scene, scene.choice(task.action["choice_id"]))
        return await _continue(task, scene)

    async def _say(self, task: RunningTask) -> Answer:
        before = await open_scene(await self._engine(task), task.state)
        context = await context_for(task, before.rules, task.action["text"])
        return await _play_out(task, before, context)

    async def _engine(self, task: RunningTask) -> InkEngine:
        """The version of the story that the session began with; raises TaskFailed or InkError."""
        if task.story_hash is None:
            raise TaskFailed("story_missing", "this session has no story")
        engine = self._library.held(task.story_hash)
        if engine is not None:
            return engine
        try:
            compiled = await task.resources.read_story(task.story_hash)
        except NotFound as error:
            raise TaskFailed("story_missing", "this version of the story is not kept") from error
        return await asyncio.to_thread(self._library.engine, task.story_hash, lambda _: compiled)


AGENTS = [lambda settings: StoryAgent()]


def _start(task: RunningTask, scene: Scene) -> Answer:
    begin_turn(task)
    return _told(task, scene, [], scene.turn.text)


async def _continue(task: RunningTask, scene: Scene) -> Answer:
    scene, _ = await take(scene, None, Dice(task.task_id))
    begin_turn(task)
    # After a finished turn there is nothing new: the player is shown the scene again.
    return _told(task, scene, [], scene.text)


async def _choose(task: RunningTask, before: Scene, choice: Choice) -> Answer:
    scene, throw = await take(before, choice, Dice(task.task_id))
    calls = StoryCalls(task)
    if not before.rules.narrate_choices:
        said = UserMessage(choice.text)
        begin_turn(task, said)
        decision = _decision(calls, choice=choice, throw=throw)
        return _told(task, scene, [said], scene.turn.text, decision)
    context = await context_for(task, before.rules, choice.text, with_memories=False)
    said = context.built.said
    begin_turn(task, said)
    message = await tell(
        calls, context, before=before, after=scene, deed=choice.text, choice=choice, throw=throw
    )
    end_turn(task, [said], message)
    return _answer_of(scene, message.text, _decision(calls, choice=choice, throw=throw))


async def _play_out(task: RunningTask, before: Scene, context: TaskContext) -> Answer:
    """A player's own words on their whole way."""
    words = task.action["text"]
    said, calls = context.built.said, StoryCalls(task)
    begin_turn(task, said)
    ruling, after, throw = await _moved(calls, task, before)
    message = await tell(
        calls,
        context,
        before=before,
        after=after,
        deed=words,
        choice=ruling.choice,
        throw=throw,
    )
    scene, verdict = await _judged(calls, after, words, message)
    end_turn(task, [said], message)
    public = scene.engine.public_names
    decision = _decision(calls, ruling=ruling, throw=throw, verdict=verdict, public=public)
    return _answer_of(scene, message.text, decision)


async def _moved(
    calls: StoryCalls, task: RunningTask, before: Scene
) -> tuple[Ruling, Scene, Throw | None]:
    """What the referee rules, and where ink and the dice go by it."""
    if not before.turn.choices:
        return Ruling(None, 1.0, "words"), before, None
    dice = Dice(task.task_id)
    ruling = await rule(calls, before, task.action["text"], _told_last(task))
    if ruling.choice is not None:
        return ruling, *await take(before, ruling.choice, dice)
    if ruling.check is not None:
        return ruling, before, dice.throw(ruling.check, before.turn.variables)
    return ruling, before, None


async def _judged(
    calls: StoryCalls, scene: Scene, words: str, message: AssistantMessage
) -> tuple[Scene, Verdict | None]:
    """The scene with what the judge changes, where the story has one and there is a reason."""
    # What no model told has nothing in it that ink does not know.
    if not scene.rules.judged or message.provider == "fireside" or scene.turn.ended:
        return scene, None
    verdict = await judge(calls, scene, words, message.text)
    return await change(scene, verdict.changes), verdict


def _told_last(task: RunningTask) -> str:
    answers = (one for one in reversed(task.history) if isinstance(one, AssistantMessage))
    return next((answer.text for answer in answers), "")


def _told(
    task: RunningTask,
    scene: Scene,
    said: list[Message],
    text: str,
    decision: JsonObject | None = None,
) -> Answer:
    """Tell ink's own words. A turn may have none: it then leaves no message behind."""
    message = written(text, "ink")
    if text:
        tell_message(task, message)
    end_turn(task, said, message)
    return _answer_of(scene, text, decision)


def _answer_of(scene: Scene, text: str, decision: JsonObject | None) -> Answer:
    return Answer(
        text=text,
        state=scene.private,
        public=scene.public,
        choices=scene.choices,
        decision=decision,
    )


def _decision(
    calls: StoryCalls,
    *,
    choice: Choice | None = None,
    ruling: Ruling | None = None,
    throw: Throw | None = None,
    verdict: Verdict | None = None,
    public: tuple[str, ...] = (),
) -> JsonObject:
    """What was decided, by whom, and what it took."""
    taken = choice if ruling is None else ruling.choice
    return {
        "choice": None if taken is None else as_json(taken),
        "referee": None if ruling is None else ruling.to_dict(),
        "check": None if throw is None else throw.to_dict(),
        "judge": None if verdict is None else verdict.to_dict(public),
        "calls": calls.made,
    }
