"""Models measured: was the answer retrieved, was it given, and how sure is that?

``run.evaluate`` measures a model on a task, ``retrieval.evaluate_retrieval`` its retriever alone, ``compare.compare``
two runs. ``metrics`` has the tables of metrics and decoders, ``training.tasks`` that of tasks.
"""
