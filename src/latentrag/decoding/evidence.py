"""From a hypothesis to tokens with texts and posteriors."""

from collections.abc import Sequence

from latentrag.decoding.decoded import Decoded
from latentrag.decoding.rescore import as_targets
from latentrag.model import Evidence, Read
from latentrag.protocols import Scores
from latentrag.types import Token, Variant


def evidence_of(hypothesis: Decoded, read: Read[Scores], b: int) -> Evidence:
    """What is known of one hypothesis for question ``b``, as a batch of one."""
    return Evidence(
        latents=[read.retrieved.latents[b]],
        log_p_eta=read.log_p_eta[b : b + 1],
        log_p_theta=hypothesis.log_p_theta[None],
        targets=as_targets([hypothesis.ids], device=read.log_p_eta.device),
        version=read.retrieved.version,
    )


def tokens_of(
    generator: Scores, evidence: Evidence, b: int, variant: Variant, *, finished: bool = True
) -> tuple[Token, ...]:
    """The tokens of y without the end token, whose posterior is in the sources."""
    length = int(evidence.targets.mask[b].sum())
    ids = evidence.targets.ids[b, :length].tolist()
    _, of_passages = evidence.of_passages(b, evidence.posterior_of_tokens(variant)[b])  # (P, T)
    posterior = of_passages.T.tolist()
    log_p = evidence.log_p_of_tokens(variant)[b].tolist()
    texts = generator.token_texts(ids)
    shown = length - 1 if finished else length
    return tuple(Token(texts[i], log_p[i], tuple(posterior[i])) for i in range(shown))


def before_stop(text: str, stop: Sequence[str]) -> str:
    """The text up to the first stop string."""
    found = [position for position in (text.find(each) for each in stop) if position >= 0]
    return text[: min(found)].rstrip() if found else text


def cut_at_stop(tokens: tuple[Token, ...], stop: Sequence[str]) -> tuple[Token, ...]:
    """The tokens whose text lies before the first stop string, the last one shortened where it reaches into it."""
    room = len(before_stop("".join(token.text for token in tokens), stop))
    kept = []
    for token in tokens:
        if room <= 0 and token.text:
            break
        kept.append(Token(token.text[:room], token.log_prob, token.posterior))
        room -= len(token.text)
    return tuple(kept)
