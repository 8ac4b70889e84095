"""Questions with answers made from a memory's passages, for those who have documents and no questions."""

from latentrag.questions.run import Made, make_questions
from latentrag.questions.writing import Prompt, Writer

__all__ = ["Made", "Prompt", "Writer", "make_questions"]
