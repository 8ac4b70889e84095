"""Retrievers and chat models of other frameworks over a ``Rag`` in this process.

    latentrag.integrations.langchain     LatentRagRetriever, ChatLatentRag
    latentrag.integrations.llama_index   LatentRagRetriever, LatentRagLLM
    latentrag.integrations.haystack      LatentRagRetriever, LatentRagChatGenerator

Each module imports its framework, and nothing else of ours does; the extras `langchain`, `llama-index` and `haystack`
install them. Where the model is served, the frameworks' own OpenAI classes ask the server: see docs/clients.
"""

from latentrag.errors import LatentRagError


class MissingFrameworkError(LatentRagError, ImportError):
    """A framework that is not installed, or not as a whole."""

    def __init__(self, extra: str, cause: ImportError) -> None:
        super().__init__(f"this needs {extra} ({cause}); run `pip install 'latentrag[{extra}]'`")
