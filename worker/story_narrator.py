"""What the narrator is told: the story's text and the dice are the truth, it only tells them."""

from agent_core import AssistantMessage, LlmContext, UserMessage
from agent_core.context_budget import ContextBudget
from agent_core.context_notes import noted
from worker.agents import RunningTask
from worker.context import TaskContext, context_of
from worker.ink.engine import Choice
from worker.ink.throws import Throw
from worker.memories import MEMORY_MARKS
from worker.narration import written
from worker.story_calls import StoryCalls
from worker.story_prompts import PLAYER_MARKS, SCENE_CHARACTERS, clip, facts, listed, quoted, told
from worker.story_rules import StoryRules
from worker.story_scene import Scene

_BUDGET = ContextBudget(memories=300, asides=300)
"""A player's words are deeds rather than questions; what they bear on is worth the same."""

_LOOK_BACK = 64
"""How many messages the narrator's window is looked for in, more than it can hold."""

NARRATOR = f"""\
You narrate an interactive story. What the story's own text and the dice say is the truth: you tell
it and contradict nothing of it.

- Write in the second person, in the tense and the tone of the scene.
- If there is new text of the story, tell all that happens in it, with its names and what is said in
  it, joined to what the player wrote. Add no event to it.
- If there is none, the player did something that no choice provides for. Answer in two to four
  sentences: what they notice, what others say, what comes of a small deed. Invent no place, person,
  object or event that would change the story, and leave every choice open.
- If a throw decided, tell its success or failure as it fell, without numbers.
- Make no choice for the player, list none, and never say that one was made.
- Never step out of the story to instruct or to explain. Write the narration alone, no headings.

{PLAYER_MARKS}

{MEMORY_MARKS}"""


async def context_for(
    task: RunningTask, rules: StoryRules, said: str, *, with_memories: bool = True
) -> TaskContext:
    """What the narrator knows when it tells what came of a player's words, the moment aside.

    Raises TaskFailed.
    """
    return await context_of(
        task,
        UserMessage(said),
        instructions=f"{NARRATOR}\n\n{facts(rules)}",
        history=told(task.history[-_LOOK_BACK:]),
        usual="strong",
        budget=_BUDGET,
        with_memories=with_memories,
    )


async def tell(
    calls: StoryCalls,
    context: TaskContext,
    *,
    before: Scene,
    after: Scene,
    deed: str,
    choice: Choice | None,
    throw: Throw | None,
) -> AssistantMessage:
    """Tell what came of a player's words, in the narrator's or else in the story's own.

    Args:
        before, after: the same scene twice where no choice was taken.
        deed: what the player wrote.

    Raises AbortedError, and what the journal raises.
    """
    built = context.built
    moment = UserMessage(_moment(before, after, deed, choice, throw), built.said.timestamp)
    asked = [*built.messages, noted(moment, built.note)]
    told_to = LlmContext(system_prompt=built.system_prompt, messages=built.convert(asked))
    otherwise = written(_plainly(after, choice), "ink")
    return await calls.narrate(told_to, otherwise, model=context.model)


def _moment(
    before: Scene,
    after: Scene,
    deed: str,
    choice: Choice | None,
    throw: Throw | None,
) -> str:
    parts = [f"The scene so far:\n{clip(before.text, SCENE_CHARACTERS)}"]
    if choice is not None:
        parts.append(f"What the player did, in the story's words: {choice.text}")
    if throw is not None:
        parts.append(f"A throw decided: {_outcome(throw)}.")
    if choice is None:
        parts.append("There is no new text of the story.")
    else:
        new = clip(after.turn.text, SCENE_CHARACTERS)
        parts.append(f"The new text of the story:\n{new or '(none)'}")
    parts.append(f"What stays open:\n{listed(after.turn.choices)}")
    parts.append(quoted(deed))
    return "\n\n".join(parts)


def _outcome(throw: Throw) -> str:
    stat = f" with {throw.check.stat}" if throw.check.stat else ""
    fell = "success" if throw.success else "failure"
    return f"{throw.total:g}{stat} against {throw.check.dc}, a {fell}"


def _plainly(scene: Scene, choice: Choice | None) -> str:
    """What is told without a narrator: ink's words, or a shrug and what could be done instead."""
    if choice is not None:
        return scene.turn.text or scene.text
    if scene.turn.ended:
        return scene.rules.shrug
    return f"{scene.rules.shrug}\n\n{listed(scene.turn.choices)}"
