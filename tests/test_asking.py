"""How a question is to be answered: what may be said of it is what the decoders know."""

from dataclasses import fields
from typing import get_type_hints

import pytest

from latentrag import conditions
from latentrag.asking import Asking, HowToAnswer
from latentrag.errors import InputError
from latentrag.options import DecodingOptions
from latentrag.rag import Rag
from tests.test_rag import FakeRetriever
from tests.toy import ToyGenerator, passages


def a_rag() -> Rag:
    return Rag(FakeRetriever(passages(4)), ToyGenerator(4, seed=11), k=3, defaults={"max_tokens": 4})


def test_every_option_of_decoding_may_be_said_with_its_own_type() -> None:
    names = {"Where": conditions.Where, "DecodingOptions": DecodingOptions}
    said = get_type_hints(HowToAnswer, localns=names)
    of_decoding = get_type_hints(DecodingOptions)
    own = {field.name for field in fields(Asking)} - {"options"}
    assert said.keys() == own | (of_decoding.keys() - {"DEFAULT"})
    assert {name: said[name] for name in said.keys() - own} == {name: of_decoding[name] for name in said.keys() - own}


def test_what_is_left_out_is_the_model_s() -> None:
    rag = a_rag()
    assert rag.asking() == Asking(3, "sequence", DecodingOptions(max_tokens=4))
    said = rag.asking(k=2, variant="token", num_beams=2, without=["a", "a"])
    assert said == Asking(2, "token", DecodingOptions(num_beams=2, max_tokens=4), without=("a", "a"))
    assert said.k_left == 1
    assert rag.asking(k=None, variant=None) == rag.asking()
    assert hash(rag.asking(stop=("a",))) == hash(rag.asking(stop=("a",)))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"decoding": "slow"}, "needed 'exact', 'thorough' or 'fast'"),
        ({"decoding": "fast", "variant": "token"}, "RAG-Token has one decoder"),
        ({"decoding": "fast", "sample": True}, "sample"),
        ({"variant": "both"}, "needed 'sequence' or 'token'"),
        ({"num_beem": 3}, "num_beem"),
    ],
)
def test_what_cannot_be_is_one_line(how, message: str) -> None:
    with pytest.raises(InputError) as caught:
        a_rag().asking(**how)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
