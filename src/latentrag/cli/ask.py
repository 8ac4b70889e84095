"""`latentrag ask` and `latentrag classify`."""

from __future__ import annotations

from typing import Annotated

import typer

from latentrag.cli import arguments as arg
from latentrag.cli.output import print_json, working
from latentrag.config import DEMO


def ask(
    question: Annotated[str, typer.Argument(help="In quotes.")],
    memory: arg.MemoryName = DEMO,
    model: arg.ModelName = None,
    encoder: arg.EncoderName = None,
    generator: arg.GeneratorName = None,
    passage_encoder: arg.PassageEncoderName = None,
    retriever: arg.RetrieverName = None,
    k: arg.NumPassages = None,
    variant: arg.VariantName = None,
    decoding: arg.DecodingName = "exact",
    beams: Annotated[int | None, typer.Option(help="Hypotheses kept alive, or samples drawn.")] = None,
    best: Annotated[int | None, typer.Option(help="Answers to find, the best first; usually one.")] = None,
    max_tokens: arg.MaxTokens = None,
    min_tokens: Annotated[int | None, typer.Option(help="Shortest answer.")] = None,
    no_repeat_ngram: Annotated[int | None, typer.Option(help="No run of so many tokens twice; 0: no limit.")] = None,
    length_penalty: Annotated[float | None, typer.Option(help="Above 0: longer answers rank higher.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Cut the answer before this text; may be repeated.")] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Draw answers at random instead of searching.")] = False,
    temperature: Annotated[float | None, typer.Option(help="With --sample: below 1 sharper, above 1 flatter.")] = None,
    top_k: Annotated[int | None, typer.Option(help="With --sample: among so many tokens; 0: all.")] = None,
    top_p: Annotated[float | None, typer.Option(help="With --sample: among tokens of this total probability.")] = None,
    seed: Annotated[int | None, typer.Option(help="With --sample: the same answers again.")] = None,
    without: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="As if this passage had not been retrieved; may be repeated.")
    ] = None,
    as_of: arg.AsOf = None,
    dtype: arg.DtypeName = "auto",
    as_json: arg.AsJson = False,
) -> None:
    """Answer a question, with the answer's probability and sources."""
    arg.check_text(question, "question")
    source = arg.model_source(model, encoder=encoder, generator=generator, passage_encoder=passage_encoder)
    rag = arg.open_rag(source, memory=memory, version=as_of, retriever=retriever, dtype=dtype)
    with working("answering"):
        answer = rag.answer(
            question,
            k=k,
            variant=variant,
            decoding=decoding,
            num_beams=beams,
            num_best=best,
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            no_repeat_ngram_size=no_repeat_ngram,
            length_penalty=length_penalty,
            stop=tuple(stop) if stop else None,
            sample=sample or None,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            without=tuple(without or ()),
        )
    if as_json:
        from latentrag.records import answer_record

        print_json(answer_record(answer))
    else:
        from latentrag.cli.render import show_answer, terminal

        show_answer(answer, terminal())


def classify(
    question: Annotated[str, typer.Argument(help="What to classify, in quotes.")],
    labels: Annotated[list[str], typer.Argument(help="Two or more, each in quotes.")],
    memory: arg.MemoryName = DEMO,
    model: arg.ModelName = None,
    encoder: arg.EncoderName = None,
    generator: arg.GeneratorName = None,
    passage_encoder: arg.PassageEncoderName = None,
    retriever: arg.RetrieverName = None,
    k: arg.NumPassages = None,
    variant: arg.VariantName = None,
    as_of: arg.AsOf = None,
    dtype: arg.DtypeName = "auto",
    as_json: arg.AsJson = False,
) -> None:
    """Choose among labels, with the probability of each."""
    arg.check_text(question, "question")
    for label in labels:
        arg.check_text(label, "label")
    source = arg.model_source(model, encoder=encoder, generator=generator, passage_encoder=passage_encoder)
    rag = arg.open_rag(source, memory=memory, version=as_of, retriever=retriever, dtype=dtype)
    with working("comparing the labels"):
        found = rag.classify(question, labels, k=k, variant=variant)
    if as_json:
        from latentrag.records import classification_record

        print_json(classification_record(found))
    else:
        from latentrag.cli.render import show_classification, terminal

        show_classification(found, terminal())
