"""The ways to a vector: MiniLM on this machine, a provider's model through litellm, or hashing."""

import asyncio
import hashlib
import math
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol, TypeVar

from agent_core.litellm_stream import embed_litellm
from shared.errors import FiresideError, SettingsError
from shared.settings import Settings
from worker.minilm import EmbeddingsMissingError, MiniLm

_T = TypeVar("_T")

_REFUSED = {400, 413, 422}
"""What servers answer to a text that is too long for their model."""

_SHORT = 100
"""Characters of a text that is too long for none."""


class EmbeddingsAway(FiresideError):
    """The embedding model gave no vectors; memories are found by their words until it does."""


class EmbeddingsChanged(FiresideError):
    """The model's vectors are not comparable with those that memories have."""


class Embedder(Protocol):
    """Makes vectors of unit length. `name` says whose they are: only those of one compare."""

    @property
    def name(self) -> str:
        """The model and its version."""

    async def embed(self, texts: Sequence[str]) -> list[str]:
        """The vectors of texts, in their order, as `[0.1,...]`; raises EmbeddingsAway.

        Never keeps the loop busy for longer than a few milliseconds.
        """


class MiniLmEmbedder:
    """MiniLM in a thread of its own; one run at a time, for one run fills a processor."""

    name = MiniLm.name

    def __init__(self) -> None:
        self._model = MiniLm()
        self._alone = asyncio.Lock()

    async def embed(self, texts: Sequence[str]) -> list[str]:
        """See Embedder."""
        async with self._alone:
            return await asyncio.to_thread(self._embed, texts)

    def _embed(self, texts: Sequence[str]) -> list[str]:
        return [as_text(vector.tolist()) for vector in self._model.embed_all(texts)]


class LitellmEmbedder:
    """A provider's embedding model.

    Some take no text that is longer than their window, and nothing else with it. Of such a text the
    vector is that of its beginning, as it is with models that cut it off themselves.
    """

    def __init__(self, model: str, *, url: str | None = None, api_key: str | None = None) -> None:
        self.name = model
        self._url = url
        self._api_key = api_key

    async def embed(self, texts: Sequence[str]) -> list[str]:
        """See Embedder."""
        try:
            vectors = await embed_litellm(
                self.name, texts, base_url=self._url, api_key=self._api_key
            )
        except Exception as error:  # noqa: BLE001 - providers fail in ways of their own
            if getattr(error, "status_code", None) in _REFUSED:
                if len(texts) > 1:
                    half = len(texts) // 2
                    return [*await self.embed(texts[:half]), *await self.embed(texts[half:])]
                if len(texts[0]) > _SHORT:
                    return await self.embed([texts[0][: len(texts[0]) // 2]])
            raise EmbeddingsAway(f"{self.name}: {type(error).__name__}") from None
        if len(vectors) != len(texts) or not all(vectors):
            raise EmbeddingsAway(f"{self.name}: {len(vectors)} vectors for {len(texts)} texts")
        return await _one_by_one(as_text, vectors)


class HashingEmbedder:
    """Words and their parts thrown into 384 places: no model, no download, a hint of likeness.

    Feature hashing (Weinberger et al. 2009) of words and of their runs of three letters.
    """

    name = "hashing-384"
    dimension = 384

    async def embed(self, texts: Sequence[str]) -> list[str]:
        """See Embedder."""
        return await _one_by_one(lambda text: as_text(self._vector(text)), texts)

    def _vector(self, text: str) -> list[float]:
        vector = [0.0] * self.dimension
        for feature, weight in _features(text):
            digest = hashlib.blake2b(feature.encode(errors="replace"), digest_size=4).digest()
            number = int.from_bytes(digest, "big")
            vector[number % self.dimension] += weight if number >> 31 else -weight
        return vector


async def _one_by_one(made: Callable[[_T], str], given: Sequence[_T]) -> list[str]:
    """What is made of each; others have the loop in between, for one may take a millisecond."""
    found = []
    for one in given:
        found.append(made(one))
        await asyncio.sleep(0)
    return found


def _features(text: str) -> list[tuple[str, float]]:
    words = re.findall(r"\w+", text.casefold())
    parts = [f"<{word}>"[at : at + 3] for word in words for at in range(len(word))]
    joined = [f"{one} {two}" for one, two in pairwise(words)]
    return [
        *((word, 1.0) for word in words),
        *((part, 0.3) for part in parts),
        *((pair, 0.5) for pair in joined),
    ]


def as_text(vector: Sequence[float]) -> str:
    """A vector brought to unit length, as Postgres reads it."""
    numbers = [number if math.isfinite(number) else 0.0 for number in vector]
    length = math.sqrt(sum(number * number for number in numbers)) or 1.0
    return "[" + ",".join(f"{number / length:.5g}" for number in numbers) + "]"


def dimension_of(vector: str) -> int:
    """How many numbers a vector has."""
    return vector.count(",") + 1


def embedder_of(settings: Settings) -> Embedder:
    """The embedder that the settings name.

    Raises:
        SettingsError: it is none, or its packages are not installed.
    """
    name = settings.embeddings
    if name == "hashing":
        return HashingEmbedder()
    if name == "minilm":
        try:
            return MiniLmEmbedder()
        except EmbeddingsMissingError as error:
            raise SettingsError(f"FIRESIDE_EMBEDDINGS: {error}") from error
    if "/" not in name:
        raise SettingsError(
            "FIRESIDE_EMBEDDINGS: must be minilm, hashing or provider/model, for example "
            "openai/text-embedding-3-small"
        )
    key = settings.embeddings_api_key
    return LitellmEmbedder(
        name,
        url=settings.embeddings_url,
        api_key=None if key is None else key.get_secret_value(),
    )
