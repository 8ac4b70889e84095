"""Baselines for which passage an answer came from: attention, and what the generator says when it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from latentrag.decoding.classify import label_log_likelihoods
from latentrag.generator.chat import ChatTemplate
from latentrag.generator.prompt import PromptTemplate
from latentrag.protocols import Prompted
from latentrag.types import Passage

_CITING = """\
[1] Harbours: A harbour is a place on the coast where ships lie safe from wind and waves.
[2] Lighthouses: A lighthouse is a tower with a light that guides ships at night. The tallest one of Norway is that of \
Kjeungskjær.
[3] Norway: Norway is a country in Northern Europe. Its capital is Oslo.
Question: What is the capital of Norway? Answer: Oslo
Number of the passage that says so: 3

[1] Bees: A honey bee lives in a hive with many thousand others. Its larvae are fed for six days.
[2] Honey: Honey is a sweet food that bees make from nectar. It keeps for years.
[3] Wax: Beeswax is secreted by glands of worker bees.
Question: What do bees make honey from? Answer: nectar
Number of the passage that says so: 2

[1] Copper: Copper is a chemical element with the symbol Cu. It conducts heat and electricity well.
[2] Bronze: Bronze is an alloy of copper, with about twelve per cent of tin.
[3] Zinc: Zinc is a chemical element with the symbol Zn.
Question: What is the symbol of copper? Answer: Cu
Number of the passage that says so: 1

"""
_INSTRUCTION = "Below are numbered passages, a question and its answer. Say by its number alone which passage says so."


class AskedCitation:
    """The generator reads all passages, numbered by prior, the question and its answer, and is asked for the number of
    the passage that says so: a chat model by an instruction, a base model after three worked examples."""

    def __init__(self, generator: Prompted) -> None:
        template = generator.template
        asked: PromptTemplate
        if isinstance(template, ChatTemplate):
            asked = template.told(_INSTRUCTION, asked="Question: {question}")
        else:
            question = "Question: {question}\nNumber of the passage that says so:"
            asked = PromptTemplate(preamble=_CITING, question=question, end=template.end)
        self.generator = generator.with_template(asked)

    def log_p(self, x: str, y: str, passages: Sequence[Passage]) -> list[float]:
        """Of the number of each passage, among these numbers, nats."""
        numbered = tuple(
            replace(passage, title=f"[{number}] {passage.title}") for number, passage in enumerate(passages, start=1)
        )
        prepared = self.generator.prepare([f"{x} Answer: {y}"], [[numbered]])
        labels = [str(number) for number in range(1, len(passages) + 1)]
        prior = torch.zeros(1, 1)
        log_p, _, _ = label_log_likelihoods(self.generator, prepared, prior, labels, variant="sequence")
        return [float(each) for each in torch.log_softmax(log_p[0], dim=0)]


class Attention:
    """How much the answer attends to each passage when the generator reads all of them in one prompt, worst prior
    first, so that the best stands next to the question, as they are usually read.

    The mass on a passage's tokens (its title's included) from the positions that predict the answer's tokens, averaged
    over these, all layers and all heads.

    Args:
        folder: of a causal model of transformers.
    """

    def __init__(self, folder: Path, template: PromptTemplate) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.template = template
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model: Any = AutoModel.from_pretrained(
            folder, local_files_only=True, attn_implementation="eager", dtype=torch.float32
        ).eval()

    @torch.no_grad()
    def mass(self, x: str, y: str, passages: Sequence[Passage]) -> list[float]:
        """On each passage."""
        worst_first = tuple(reversed(passages))
        ends = [len(self.template.preamble)]
        ends += [len(str(self.template.read(worst_first[: i + 1]))) for i in range(len(passages))]
        prompt = str(self.template.render(x, worst_first))
        encoded = self.tokenizer(prompt + self.template.say(y), return_offsets_mapping=True, return_tensors="pt")
        places = encoded.pop("offset_mapping")[0].tolist()
        first = next(i for i, (_, end) in enumerate(places) if end > len(prompt))
        rows = self.model(**encoded, output_attentions=True, use_cache=False).attentions
        predicting = slice(first - 1, len(places) - 1)
        mean = torch.stack([layer[0, :, predicting].float().mean(dim=(0, 1)) for layer in rows]).mean(dim=0)  # (S,)
        spans = [
            [i for i, (begin, end) in enumerate(places) if start <= begin < stop and end > begin]
            for start, stop in pairwise(ends)
        ]
        return [float(mean[span].sum()) for span in reversed(spans)]
