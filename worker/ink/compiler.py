"""From `.ink` text to compiled JSON: inkjs's compiler inside an embedded JavaScript engine.

Takes texts by name and reads no story file itself, so an INCLUDE reaches nothing but what was
given. A large story takes about a second: compile in another process (`worker.ink.cell`), or at
least on another thread.
"""

import functools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import quickjs

from worker.ink.errors import CompilerBrokenError, Problem, Severity, StoryInvalidError

BUNDLE: Final = Path(__file__).parent / "vendor" / "inkjs" / "ink-full.js"

# Far below the 8 MB that a thread has by default, so that the engine's own guard notices first.
_STACK_BYTES: Final = 4 << 20
_INT32: Final = range(-(2**31), 2**31)

# JavaScript prints 3.0 as 3, and ink would then divide whole numbers. Whole floats therefore leave
# the writer as marked strings. No other string of a compiled story can look so: text begins with ^.
_FLOAT_WRITER: Final = re.compile(r"WriteFloat\((\w)\)\{")
_MARK_FLOAT: Final = (
    r"WriteFloat(\1){if(Number.isInteger(\1)&&Math.abs(\1)<1e21)"
    r'{this.StartNewObject(!1);this._addToCurrentObject("@@F"+\1+".0");return}'
)
_MARKED_FLOAT: Final = re.compile(r'"@@F(-?\d+\.0)"')

_GLUE: Final = """
globalThis.console = {log() {}, warn() {}, error() {}, trace() {}};
function compileInk(main, filesJson) {
  const files = JSON.parse(filesJson), messages = [];
  const reader = {
    ResolveInkFilename: (name) => name,
    LoadInkFileContents: (name) => {
      if (!Object.hasOwn(files, name)) throw new Error("no such file beside the story");
      return files[name];
    },
  };
  const report = (text, kind) => messages.push([kind, text]);
  let compiled = null;
  try {
    const options = new inkjs.CompilerOptions(main, [], false, report, reader);
    compiled = new inkjs.Compiler(files[main], options).Compile().ToJson();
  } catch (error) {
    if (!messages.some(([kind]) => kind === 2)) {
      report(error === null ? "out of memory" : String(error.message || error), 2);
    }
  }
  return JSON.stringify({compiled, messages});
}
"""

_SEVERITIES: Final[Mapping[int, Severity]] = {0: "note", 1: "warning", 2: "error"}
_MESSAGE: Final = re.compile(
    r"(?:ERROR|WARNING|TODO): (?:'(?P<file>[^'\n]*)' )?(?:line (?P<line>\d+): )?(?P<text>.*)",
    re.DOTALL,
)


@dataclass(frozen=True)
class CompiledStory:
    """A story ready to be played; `problems` holds warnings and the author's TODO notes only."""

    json: str
    problems: tuple[Problem, ...]


def compile_story(
    files: Mapping[str, str],
    main: str = "story.ink",
    *,
    seconds: float = 20.0,
    memory_bytes: int = 512 << 20,
) -> CompiledStory:
    """Compile the story whose first file is `main`; `files` has all of its texts by name.

    `seconds` are of this process's CPU time. Raises StoryInvalidError with at least one problem, or
    CompilerBrokenError when the vendored bundle cannot be used.
    """
    texts = {name: text.removeprefix("\ufeff") for name, text in files.items()}
    _refuse_bad_names(texts, main)
    context = _context(memory_bytes)
    context.set_time_limit(seconds)
    try:
        answer = json.loads(context.get("compileInk")(main, json.dumps(texts)))
    except quickjs.JSException as error:
        message = _why_stopped(str(error)) + f" (limits: {seconds:g} s, {memory_bytes >> 20} MiB)"
        raise _invalid((Problem("error", message, main),)) from None
    problems = tuple(_problem(kind, text, main) for kind, text in answer["messages"])
    if answer["compiled"] is None or any(p.severity == "error" for p in problems):
        raise _invalid(problems)
    compiled = _MARKED_FLOAT.sub(r"\1", answer["compiled"])
    if too_large := tuple(_large_numbers(compiled, texts)):
        raise _invalid(too_large + problems)
    return CompiledStory(compiled, problems)


def patched_bundle(source: str) -> str:
    """Return inkjs's source with a float writer that keeps 3.0 a float.

    Raises CompilerBrokenError when the writer is not found exactly once.
    """
    patched, found = _FLOAT_WRITER.subn(_MARK_FLOAT, source)
    if found != 1:
        raise CompilerBrokenError(f"{BUNDLE.name}: expected one float writer, found {found}")
    return patched


@functools.cache
def _bundle() -> str:
    return patched_bundle(BUNDLE.read_text(encoding="utf-8"))


# A context may only be used on the thread that made it, and building one takes 16 ms, so each
# compilation has its own.
def _context(memory_bytes: int) -> Any:
    context = quickjs.Context()
    context.set_max_stack_size(_STACK_BYTES)
    context.set_memory_limit(memory_bytes)
    try:
        context.eval(_bundle())
        context.eval(_GLUE)
    except quickjs.JSException as error:
        raise CompilerBrokenError(f"{BUNDLE.name} cannot be loaded: {error}") from error
    return context


def _refuse_bad_names(texts: Mapping[str, str], main: str) -> None:
    if main not in texts:
        raise _invalid((Problem("error", "the story's main file is missing", main),))
    for name in texts:
        if _leaves_folder(name):
            raise _invalid((Problem("error", "a file outside of the story's folder", name),))


def _leaves_folder(name: str) -> bool:
    parts = name.split("/")
    return "\\" in name or ":" in name or any(part in {"", ".", ".."} for part in parts)


def _why_stopped(message: str) -> str:
    if "interrupted" in message:
        return "compiling takes too long"
    if "out of memory" in message:
        return "compiling takes too much memory"
    if "stack" in message.lower():
        return "the story is nested too deep to compile"
    return f"the compiler failed: {message}"


def _problem(kind: int, message: str, main: str) -> Problem:
    match = _MESSAGE.fullmatch(message)
    if match is None:
        return Problem(_SEVERITIES[kind], _why_stopped(" ".join(message.split())), main)
    text = " ".join(match["text"].replace("Error:Error: ", "").split())
    line = int(match["line"]) if match["line"] else None
    return Problem(_SEVERITIES[kind], text, match["file"] or main, line)


def _invalid(problems: tuple[Problem, ...]) -> StoryInvalidError:
    errors = [str(problem) for problem in problems if problem.severity == "error"]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return StoryInvalidError(errors[0] + more, problems)


# The runtime panics on whole numbers beyond 32 bits.
def _large_numbers(compiled: str, texts: Mapping[str, str]) -> Iterator[Problem]:
    for number in sorted(set(_whole_numbers(json.loads(compiled)))):
        if number not in _INT32:
            file, line = _place_of(str(abs(number)), texts)
            yield Problem("error", f"{number} does not fit into ink's 32-bit numbers", file, line)


def _whole_numbers(root: Any) -> Iterator[int]:
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting.extend(node)
        elif isinstance(node, dict):
            waiting.extend(node.values())
        elif type(node) is int:
            yield node


def _place_of(digits: str, texts: Mapping[str, str]) -> tuple[str | None, int | None]:
    for name, text in texts.items():
        if match := re.search(rf"\b{digits}\b", text):
            return name, text.count("\n", 0, match.start()) + 1
    return None, None
