"""The embedding model of the extra `embeddings`, by the names that benchmarks know it by."""

from worker.minilm import EmbeddingsMissingError
from worker.minilm import MiniLm as Embedder

__all__ = ["Embedder", "EmbeddingsMissingError"]
