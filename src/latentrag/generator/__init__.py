"""p_θ(y|x,z): any transformers encoder–decoder or causal language model behind one protocol, and a table of kinds to
which other packages add theirs."""

from latentrag.generator.base import SETTINGS_FILE
from latentrag.generator.causal import CausalGenerator
from latentrag.generator.kinds import GENERATOR_KINDS, load_generator
from latentrag.generator.prompt import InputTemplate, PromptTemplate
from latentrag.generator.seq2seq import Seq2SeqGenerator
from latentrag.generator.tuning import Lora

__all__ = [
    "GENERATOR_KINDS",
    "SETTINGS_FILE",
    "CausalGenerator",
    "InputTemplate",
    "Lora",
    "PromptTemplate",
    "Seq2SeqGenerator",
    "load_generator",
]
