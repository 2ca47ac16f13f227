"""Whether the process that makes vectors of memories can run here."""

from collections.abc import Mapping

from worker.minilm import missing_package


def words_alone(environment: Mapping[str, str]) -> str:
    """Why memories are to be found by their words alone; "" where vectors can be made."""
    named = environment.get("FIRESIDE_EMBEDDINGS") or "minilm"
    if named == "none":
        return "FIRESIDE_EMBEDDINGS is none"
    if named == "minilm" and (missing := missing_package()):
        return f"{missing} is not installed (the extra `embeddings`)"
    return ""
