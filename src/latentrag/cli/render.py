"""Answers, scores and classifications for people: 80 columns do, colour is a help and never needed.

Every text from outside goes through ``clean`` into a ``rich.text.Text``, which knows no markup.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Column, Table
from rich.text import Text

from latentrag.cli.output import clean

if TYPE_CHECKING:
    from latentrag.types import Answer, Classification, Conversation, NoPassage, Score, Source, Token

_COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red")
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_BAR_WIDTH = 8
_SHOWN_SOURCES = 10
_SHOWN_SHARE = 0.1
"""Passages with a prior or posterior of this much show more of their text."""
_LONG_TEXT = 180
_WIDEST = 10_000
_NARROW = 60
"""Columns below which there is no room for bars beside titles."""


class _Terminal(Console):
    """Leaves a broken pipe to the program, which ends quietly, where rich would exit with 1."""

    def on_broken_pipe(self) -> None:
        raise  # noqa: PLE0704  called while the BrokenPipeError is being handled


def terminal() -> Console:
    """Standard output, as rich writes to it: no markup, no emoji codes, no highlighting of its own."""
    return _Terminal(markup=False, emoji=False, highlight=False)


def show_question(question: str, console: Console, *, is_first: bool) -> None:
    """A heading, where there are several questions."""
    if not is_first:
        console.print()
    console.print(Rule(Text(clean(question)), align="left"))


def show_answer(answer: Answer, console: Console) -> None:
    """The answer, its probability, what memory contributed, the sources, the tokens, the other hypotheses."""
    console.print(Text(clean(answer.text) or "(an empty answer)", style="bold"))
    console.print()
    if answer.best_guess is not None:
        console.print(Text(f"Best guess: {clean(answer.best_guess) or '(an empty answer)'}"))
    if answer.confidence is not None:
        console.print(Text(f"It is right with a probability of {percent(answer.confidence)}."))
    console.print(_probability_sentence(answer))
    _show_missing(answer.missing, console)
    console.print()
    _show_sources(answer.sources, console, memory_version=answer.memory_version)
    _show_no_passage(answer.no_passage, console)
    _show_conversation(answer.conversation, console)
    _show_sentences(answer.sources, console, log_prob=answer.log_prob)
    if answer.tokens and len(answer.sources) > 1:
        console.print()
        _show_tokens(answer, console)
    if len(answer.hypotheses) > 1:
        console.print()
        console.print(Text("Other answers", style="bold"))
        table = Table.grid(Column(justify="right", no_wrap=True), Column(), padding=(0, 2))
        for each in answer.hypotheses[1:]:
            text = clean(each.text) or "(an empty answer)"
            table.add_row(
                Text(probability(each.log_prob), style="dim"), Text(text if each.finished else text + " … (cut off)")
            )
        console.print(Padding(table, (0, 0, 0, 1)))


def show_turn(answer: Answer, console: Console) -> None:
    """An answer within a conversation: its text, and in a line its probability, how the question was read, and where it
    comes from."""
    console.print(Text(clean(answer.text) or "(an empty answer)", style="bold"))
    said = [f"{probability(answer.log_prob)}"]
    if answer.confidence is not None:
        said.append(f"right with a probability of {percent(answer.confidence)}")
    if answer.best_guess is not None:
        said.append(f"best guess: {clean(answer.best_guess)}")
    if answer.conversation is not None:
        best = answer.conversation.best
        said.append(f"read {READ_AS[best.kind]} {percent(best.posterior)}")
    top = sorted(answer.sources, key=lambda source: -source.posterior)[:2]
    said += [f"{_name(source)} {percent(source.posterior)}" for source in top]
    console.print(Text(" · ".join(said), style="dim"))
    _show_missing(answer.missing, console)


READ_AS: Mapping[str, str] = {
    "last": "alone",
    "before": "with the turn before",
    "all": "with all turns",
    "rewrite": "as rewritten",
}
"""Kinds of readings of a conversation's last question."""


def _show_conversation(conversation: Conversation | None, console: Console) -> None:
    """How the question was read, the most probable reading first, and what of the conversation was not read."""
    if conversation is None:
        return
    learned = "" if conversation.trained else ", by the default weights"
    console.print()
    console.print(Text(f"How the question was read{learned}: before and after the answer is known", style="bold"))
    table = Table.grid(Column(justify="right"), Column(justify="right"), Column(), Column(ratio=1), padding=(0, 2))
    for each in sorted(conversation.readings, key=lambda reading: -reading.posterior):
        text = " / ".join(map(clean, each.text.split("\n")))
        text += f" ({each.num_dropped} turns left out)" * bool(each.num_dropped)
        table.add_row(percent(each.prior), percent(each.posterior), READ_AS[each.kind], Text(text, style="dim"))
    console.print(Padding(table, (0, 0, 0, 1)))
    if conversation.num_dropped:
        console.print(Text(f"The generator did not read the first {conversation.num_dropped} turns."))


def show_scores(scores: Sequence[Score], console: Console, *, header: bool) -> None:
    """A row for each score. Widths do not depend on the rows, so that batch fits under batch."""
    table = Table(
        Column("log p(y|x)", justify="right", width=10),
        Column("closed book", justify="right", width=11),
        Column("gain", justify="right", width=7),
        Column("tokens", justify="right", width=6),
        Column("x → y, main passage", ratio=1),
        box=None,
        pad_edge=False,
        expand=True,
        show_header=header,
        header_style="bold",
    )
    for score in scores:
        best = max(score.sources, key=lambda source: source.posterior)
        text = Text.assemble(clean(score.x), (" → ", "dim"), (clean(score.y), "bold"), "\n")
        share, name = best.posterior, _name(best)
        if score.no_passage is not None and score.no_passage.posterior > share:
            share, name = score.no_passage.posterior, "no passage"
        text.append(f"{percent(share)} {name}", style="dim")
        if best.sentences:
            most = min(best.sentences, key=lambda each: each.log_prob_without)
            change = most.log_prob_without - score.log_likelihood
            text.append(f"\n{change:+.2f} without “{clean(best.passage.text[most.start : most.end])}”", style="dim")
        if score.missing:
            text.append(f"\n{_incomplete(score.missing)}")
        gain = score.log_likelihood - score.closed_book_log_likelihood
        numbers = (f"{score.log_likelihood:.3f}", f"{score.closed_book_log_likelihood:.3f}", f"{gain:+.2f}")
        table.add_row(*(Text(number) for number in numbers), Text(str(score.num_tokens)), text)
    console.print(table)


def show_classification(found: Classification, console: Console) -> None:
    """The labels with their probabilities, and the passages' share in the most probable one."""
    table = Table.grid(Column(), Column(), Column(justify="right", no_wrap=True), padding=(0, 2))
    for rank, label in enumerate(found.labels):
        style = "bold" if rank == 0 else ""
        table.add_row(
            Text(clean(label.text), style=style),
            _bar(label.probability, console),
            Text(percent(label.probability), style=style),
        )
    console.print(table)
    _show_missing(found.missing, console)
    console.print()
    _show_sources(found.sources, console, memory_version=found.memory_version)
    _show_no_passage(found.no_passage, console)


def show_facts(facts: Iterable[tuple[str, str]], console: Console) -> None:
    """Names and values, one a line."""
    table = Table.grid(Column(no_wrap=True), Column(), padding=(0, 2))
    for name, value in facts:
        table.add_row(Text(clean(name), style="bold"), Text(clean(value)))
    console.print(table)


def show_rows(header: Sequence[str], rows: Iterable[Sequence[str]], console: Console) -> None:
    """A plain table; the last column is text, the others are aligned to the right.

    Only the last column is wrapped, and only in a terminal: where that does not do, lines are longer than it is wide.
    """
    lines = [[Text(clean(value)) for value in row] for row in rows]
    *numbers, last = header
    columns = [
        Column(name, justify="right", no_wrap=True, min_width=max(len(name), *(line[i].cell_len for line in lines)))
        for i, name in enumerate(numbers)
    ]
    table = Table(*columns, Column(last, min_width=len(last)), box=None, pad_edge=False, header_style="bold")
    for line in lines:
        table.add_row(*line)
    least, most = console.measure(table, options=console.options.update(width=_WIDEST))
    console.width = max(least, min(most, console.width)) if console.is_terminal else most
    console.print(table)


def probability(log_prob: float) -> str:
    """exp(log_prob) for people: 12.3 %, then 1 in 4,500, then 1 in 10^12."""
    if log_prob >= math.log(0.001):
        return percent(math.exp(log_prob))
    if math.isinf(log_prob):
        return "0 %"
    if log_prob >= math.log(1e-9):
        odds = math.exp(-log_prob)
        step = 10 ** (len(str(int(odds))) - 2)
        return f"1 in {round(odds / step) * step:,}"
    return f"1 in 10^{round(-log_prob / math.log(10))}"


def percent(share: float) -> str:
    """A share of the whole, never rounded to a certainty that it is not."""
    if 0 < share < 0.0005:
        return "<0.1 %"
    if 0.9995 <= share < 1:
        return ">99.9 %"
    return f"{100 * share:.1f} %"


def contribution(log_prob: float, closed_book_log_prob: float) -> str:
    """What the passages did to the answer's probability, in words and nats."""
    gain = log_prob - closed_book_log_prob
    if not math.isfinite(gain):
        return "which no factor compares"  # one of them is zero
    if abs(gain) < 0.05:
        return f"the passages make no difference ({gain:+.2f} nats)"
    direction = "more" if gain > 0 else "less"
    return f"the passages make it {_times(abs(gain))} times {direction} probable ({gain:+.1f} nats)"


def _times(log_factor: float) -> str:
    if log_factor < math.log(10):
        return f"{math.exp(log_factor):.1f}"
    if log_factor < math.log(1e6):
        return f"{round(math.exp(log_factor)):,}"
    return f"10^{round(log_factor / math.log(10))}"


def _probability_sentence(answer: Answer) -> Text:
    model = "RAG-Sequence" if answer.variant == "sequence" else "RAG-Token"
    how = "" if answer.decoding == "exact" else f", {answer.decoding} decoding"
    # Fast Decoding leaves passages out of the sum (§2.5).
    least = "at least " if answer.decoding == "fast" else ""
    text = Text.assemble(f"Probability {least}", (probability(answer.log_prob), "bold"), f" ({model}{how}). ")
    text.append(
        f"Without any passage the model gives this answer {probability(answer.closed_book_log_prob)}: "
        f"{contribution(answer.log_prob, answer.closed_book_log_prob)}."
    )
    if not answer.hypotheses[0].finished:
        text.append(" It was cut off: the probability is that of all answers that begin so.")
    return text


def _show_sources(sources: Sequence[Source], console: Console, *, memory_version: int) -> None:
    """Prior and posterior of every passage. Of many, the ones that matter, in the order of the prior."""
    shown = sorted(range(len(sources)), key=lambda k: -max(sources[k].prior, sources[k].posterior))
    shown = sorted(shown[:_SHOWN_SOURCES])
    is_narrow = console.width < _NARROW
    bars = ("prior", "", "posterior", "")
    numbers = ("prior", "post.") if is_narrow else bars
    table = Table(
        Column("", justify="right", no_wrap=True),
        *(Column(name, justify="left" if name and not is_narrow else "right", no_wrap=True) for name in numbers),
        Column("passage" if is_narrow else f"passage (memory version {memory_version})"),
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    for k in shown:
        source = sources[k]
        shares = [_bar(source.prior, console), Text(percent(source.prior))]
        shares += [_bar(source.posterior, console, style=_colour(k)), Text(percent(source.posterior))]
        table.add_row(
            Text(str(k + 1), style=_colour(k)), *(shares[1::2] if is_narrow else shares), _passage(source, _colour(k))
        )
    console.print(table)
    others = [sources[k] for k in range(len(sources)) if k not in shown]
    if others:
        prior, posterior = sum(s.prior for s in others), sum(s.posterior for s in others)
        console.print(
            Text(f"and {len(others)} more: prior {percent(prior)}, posterior {percent(posterior)}", style="dim")
        )


def _show_no_passage(share: NoPassage | None, console: Console) -> None:
    if share is not None:
        console.print(Text(f"no passage: prior {percent(share.prior)}, posterior {percent(share.posterior)}"))


def _show_missing(missing: Sequence[str], console: Console) -> None:
    if missing:
        console.print(Text(_incomplete(missing), style="bold"))


def _incomplete(missing: Sequence[str]) -> str:
    """What a reader has to know of an answer to which parts of the memory had nothing to say."""
    return f"Incomplete: {clean(', '.join(missing))} did not answer, so passages there could not be found."


def _passage(source: Source, style: str) -> Table:
    """Title, whole, and text; one line of text where the passage hardly matters."""
    matters = max(source.prior, source.posterior) >= _SHOWN_SHARE
    text = clean(source.passage.text)
    if matters and len(text) > _LONG_TEXT:
        text = text[:_LONG_TEXT].rsplit(" ", 1)[0] + " …"
    cell = Table.grid(Column(overflow="ellipsis", no_wrap=not matters))
    cell.add_row(Text(_name(source), style=f"bold {style}", no_wrap=False, overflow="fold"))
    if matters and len(_experts(source)) > 1:
        cell.add_row(Text(_sum(_experts(source)), style="dim"))
    cell.add_row(Text(text, style="dim"))
    return cell


def _experts(source: Source) -> dict[str, float]:
    """The parts of a passage's logit; that of "no passage" is in none."""
    return {name: value for name, value in source.parts.items() if name != "null"}


def _sum(parts: Mapping[str, float]) -> str:
    """logit 14.4 = dense 12.1 + bm25 2.3."""
    said = "".join(f" {'−' if value < 0 else '+'} {clean(name)} {abs(value):.1f}" for name, value in parts.items())
    return f"logit {sum(parts.values()):.1f} = {said.removeprefix(' + ').strip()}"


def _show_tokens(answer: Answer, console: Console) -> None:
    """The answer again, each stretch of it marked with the passage that weighs most there."""
    if answer.variant == "token":
        console.print(Text("Who said it: the passage most probably behind each part", style="bold"))
    else:
        console.print(Text("What is believed: the most probable passage after each part", style="bold"))
    parts = Text()
    used = []
    for k, stretch in groupby(answer.tokens, key=_best_passage):
        text = "".join(token.text for token in stretch)
        leading = " " if text[:1].isspace() else ""
        parts.append(f"{leading}{clean(text)}", style=_colour(k) if k >= 0 else "")
        parts.append(f"[{k + 1 if k >= 0 else '–'}]", style="dim")
        used.append(k)
    console.print(Padding(parts, (0, 0, 0, 1)))
    legend = Text(" ").join(
        Text.assemble((f"[{k + 1}] ", "dim"), (_name(answer.sources[k]), _colour(k)), " ")
        if k >= 0
        else Text.assemble(("[–] ", "dim"), "no passage", " ")
        for k in dict.fromkeys(used)
    )
    console.print(Padding(legend, (0, 0, 0, 1)))


def _show_sentences(sources: Sequence[Source], console: Console, *, log_prob: float) -> None:
    """What log p(y|x) would lose without each sentence of a passage, where that was computed."""
    for k, source in enumerate(sources):
        if not source.sentences:
            continue
        console.print()
        head = f"Without a sentence of passage {k + 1} log p(y|x) would change by so many nats"
        console.print(Text(head, style="bold"))
        table = Table.grid(Column(justify="right", no_wrap=True), Column(), padding=(0, 2))
        for each in source.sentences:
            table.add_row(
                Text(f"{each.log_prob_without - log_prob:+.2f}"),
                Text(clean(source.passage.text[each.start : each.end]), style="dim"),
            )
        console.print(Padding(table, (0, 0, 0, 1)))


def _best_passage(token: Token) -> int:
    """The place of its source; −1: the generator alone weighs more."""
    best = max(range(len(token.posterior)), key=token.posterior.__getitem__)
    return best if token.posterior[best] >= 1 - sum(token.posterior) else -1


def _name(source: Source) -> str:
    return clean(source.passage.title) or clean(source.passage.id)


def _colour(k: int) -> str:
    return _COLOURS[k % len(_COLOURS)]


def _bar(share: float, console: Console, *, style: str = "") -> Text:
    """A bar of ``_BAR_WIDTH`` characters for a share of 1."""
    if console.options.ascii_only:
        return Text(("#" * round(share * _BAR_WIDTH)).ljust(_BAR_WIDTH), style=style)
    full, rest = divmod(round(share * _BAR_WIDTH * 8), 8)
    bar = "█" * full + (_EIGHTHS[rest] if rest else "")
    return Text(bar.ljust(_BAR_WIDTH), style=style)
