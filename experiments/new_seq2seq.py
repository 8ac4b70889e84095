"""A small encoder–decoder for experiments, whose weights begin as those of a pretrained encoder (BERT's kind).

    python experiments/new_seq2seq.py --encoder FOLDER [--layers 3] [--seed 0] OUT

It is to be trained as a generator (`latentrag train --generator OUT`); before, it writes nothing sensible.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentrag import io
from latentrag.errors import InputError, LatentRagError, ModelError
from latentrag.generator import Seq2SeqGenerator
from latentrag.pretrained import build, one_line, quiet, read_config, read_json, read_weights, resolve

_BEGIN, _END, _PAD, _UNKNOWN = "[CLS]", "[SEP]", "[PAD]", "[UNK]"


def new_seq2seq(encoder: str | Path, *, num_layers: int = 3, seed: int = 0) -> Seq2SeqGenerator:
    """An untrained generator: the given encoder, and a decoder warm-started from it (Rothe et al. 2020, BERT2BERT).

    Word, position and type embeddings, self-attention and feed-forward layers of the decoder are copies of the
    encoder's; its layers come from as far apart as they can, the first and the last among them (Shleifer and Rush
    2020). Cross-attention and the transform before the output layer are random. The output layer is tied to the
    decoder's word embeddings. y begins after [CLS] and ends with [SEP].

    Args:
        encoder: folder or hub id of a BERT encoder, in the layout of transformers or sentence-transformers.
        num_layers: of the decoder, at most the encoder's.
        seed: of the random weights.
    Raises: ModelError if the encoder cannot be read or is not of BERT's kind; InputError for num_layers.
    """
    folder = _transformer_folder(resolve(encoder))
    config = read_config(folder)
    if config.model_type != "bert":
        raise ModelError(f"{folder} has model_type={config.model_type!r}, needed 'bert'; name a BERT encoder")
    if not 1 <= num_layers <= config.num_hidden_layers:
        raise InputError(
            f"num_layers={num_layers} cannot be copied from the {config.num_hidden_layers} layers of {folder}; "
            f"choose 1 to {config.num_hidden_layers}"
        )
    tokenizer = _tokenizer(folder, config)
    return Seq2SeqGenerator(_model(folder, config, tokenizer, num_layers=num_layers, seed=seed), tokenizer)


def save_new(generator: Seq2SeqGenerator, folder: Path) -> None:
    """Write the generator to a folder that is free, whole or not at all.

    Raises: InputError if something is there already or the place cannot be written.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder} exists already; name a new folder")
    try:
        with io.replacing_folder(folder) as scratch:
            generator.save(scratch)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror or error}); choose another place") from error


def _model(folder: Path, config: Any, tokenizer: Any, *, num_layers: int, seed: int) -> Any:
    from transformers import BertModel, EncoderDecoderConfig, EncoderDecoderModel, GenerationConfig

    # Without the pooler, which sentence encoders often lack.
    warm = build(BertModel, config, read_weights(folder), folder=folder, dtype=torch.float32, add_pooling_layer=False)
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "decoder_start_token_id": tokenizer.bos_token_id,
    }
    decoder = {"num_hidden_layers": num_layers, "is_decoder": True, "add_cross_attention": True}
    pair = EncoderDecoderConfig(
        encoder=config.to_dict(),
        decoder={**config.to_dict(), **decoder, "tie_word_embeddings": True},
        # Of both parts; the pair's own configuration has no place for it, and our generator looks there.
        max_position_embeddings=config.max_position_embeddings,
        **special,
    )
    with torch.random.fork_rng(devices=[]), quiet():
        torch.default_generator.manual_seed(seed)
        model = EncoderDecoderModel(config=pair)
    weights = warm.state_dict()
    _copy(weights, model.encoder, fresh="pooler.")
    _copy(_of_layers(weights, config.num_hidden_layers, num_layers), model.decoder.bert, fresh=".crossattention.")
    model.generation_config = GenerationConfig(**special)
    return model.eval()


def _copy(weights: Mapping[str, Tensor], module: Any, *, fresh: str) -> None:
    """Load all weights of a module but those whose names hold ``fresh``, which stay as they are."""
    found = module.load_state_dict(weights, strict=False)
    unset = [name for name in found.missing_keys if fresh not in name]
    assert not unset, unset
    assert not found.unexpected_keys, found.unexpected_keys


def _of_layers(weights: Mapping[str, Tensor], num_all: int, num_kept: int) -> dict[str, Tensor]:
    """The embeddings, and ``num_kept`` of the layers, evenly spaced from the first to the last and renumbered."""
    spaced = torch.linspace(0, num_all - 1, num_kept).round().int().tolist()
    numbers = {f"encoder.layer.{old}.": f"encoder.layer.{new}." for new, old in enumerate(spaced)}
    kept = {name: value for name, value in weights.items() if name.startswith("embeddings.")}
    for old, new in numbers.items():
        kept |= {new + name.removeprefix(old): value for name, value in weights.items() if name.startswith(old)}
    return kept


def _transformer_folder(folder: Path) -> Path:
    """Where the weights are: sentence-transformers may keep them in a folder of their own, its first module's."""
    if not (folder / "modules.json").exists():
        return folder
    try:
        return folder / str(read_json(folder / "modules.json")[0]["path"])
    except (KeyError, IndexError, TypeError) as error:
        raise ModelError(f"{folder / 'modules.json'} is not a list of modules; fetch the file again") from error


def _tokenizer(folder: Path, config: Any) -> Any:
    """The encoder's tokenizer, with [CLS] and [SEP] as the begin and end of a text."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no tokenizer.json; put the encoder's there")
    try:
        backend = Tokenizer.from_str(path.read_text("utf-8"))
    except Exception as error:  # the library raises nothing narrower
        raise ModelError(f"{path} is no tokenizer ({one_line(error)}); fetch the file again") from error
    missing = [name for name in (_BEGIN, _END, _PAD, _UNKNOWN) if backend.token_to_id(name) is None]
    if missing:
        raise ModelError(f"{path} has no {', '.join(missing)}; needed a tokenizer of BERT's kind")
    if backend.get_vocab_size() > config.vocab_size:
        raise ModelError(
            f"{path} has {backend.get_vocab_size()} tokens, but the encoder has {config.vocab_size}; "
            "needed the tokenizer it was trained with"
        )
    backend.no_truncation()
    backend.no_padding()
    backend.decoder = _decoder()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=_BEGIN,
        eos_token=_END,
        cls_token=_BEGIN,
        sep_token=_END,
        pad_token=_PAD,
        unk_token=_UNKNOWN,
        model_max_length=config.max_position_embeddings,
    )


def _decoder() -> Any:
    """Word pieces to text. BERT splits off every hyphen and apostrophe; most stand inside a word."""
    from tokenizers import decoders

    joined = [decoders.Replace(f" {mark} ", mark) for mark in ("-", "'")]
    return decoders.Sequence([decoders.WordPiece(cleanup=True), decoders.Fuse(), *joined])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--encoder", required=True, help="folder or hub id of a BERT encoder")
    parser.add_argument("--layers", type=int, default=3, help="layers of the decoder")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the weights that are not copied")
    given = parser.parse_args()
    try:
        generator = new_seq2seq(given.encoder, num_layers=given.layers, seed=given.seed)
        save_new(generator, given.out)
    except LatentRagError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    print(f"{given.out}: {generator.model.num_parameters() / 1e6:.1f} million parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
