"""Retrievers: x → the passages of a memory, with the logits of p_η(z|x)."""

from latentrag.retriever.bm25 import BM25Retriever
from latentrag.retriever.dense import DenseRetriever
from latentrag.retriever.hybrid import HybridRetriever
from latentrag.retriever.refreshing import RefreshingRetriever
from latentrag.retriever.table import RETRIEVERS

__all__ = ["RETRIEVERS", "BM25Retriever", "DenseRetriever", "HybridRetriever", "RefreshingRetriever"]
