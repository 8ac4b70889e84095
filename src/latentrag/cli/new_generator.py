"""`latentrag new-generator`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentrag.cli import arguments as arg
from latentrag.cli.output import print_json, print_line, working


def new_generator(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    encoder: Annotated[
        str, typer.Option(help="A BERT encoder: a folder or hub id; of a model, and of demo, its query encoder.")
    ],
    layers: Annotated[int, typer.Option(help="Layers of the decoder.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the weights that begin at random.")] = 0,
    as_json: arg.AsJson = False,
) -> None:
    """Make a small encoder-decoder for experiments, warm-started from an encoder, to be trained as generator.

    The encoder's weights are copied to the encoder and, as far as they fit, to the decoder. It cannot write
    anything sensible before it is trained.
    """
    from latentrag.addresses import model_place
    from latentrag.assemble import FILE_NAME
    from latentrag.generator.new_seq2seq import check_free, new_seq2seq, save_new

    check_free(out)
    source = model_place(encoder)
    if (Path(source) / FILE_NAME).is_file():
        source = Path(source) / "query_encoder"
    with working("making the generator"):
        generator = new_seq2seq(source, num_layers=layers, seed=seed)
        save_new(generator, out)
    num_parameters = generator.model.num_parameters()
    if as_json:
        record = {"encoder": encoder, "layers": layers, "seed": seed, "parameters": num_parameters}
        print_json({"generator": str(out), **record})
        return
    print_line(f"{out}: {num_parameters / 1e6:.1f} million parameters, {layers} decoder layers, from {encoder}")
