"""p_θ(y|x,z): any transformers encoder–decoder or causal language model behind one protocol."""

from latentrag.generator.causal import CausalGenerator
from latentrag.generator.inputs import InputTemplate, PromptTemplate
from latentrag.generator.loading import load_generator
from latentrag.generator.seq2seq import Seq2SeqGenerator

__all__ = ["CausalGenerator", "InputTemplate", "PromptTemplate", "Seq2SeqGenerator", "load_generator"]
