"""Models measured on questions with answers: was the answer retrieved, was it given, and how sure is that?

``run.evaluate`` measures a model, ``compare.compare`` two of its runs; ``metrics`` has the tables of tasks and metrics.
"""
