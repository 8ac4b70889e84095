"""`latentrag demo`."""

from __future__ import annotations

from latentrag.cli import arguments as arg
from latentrag.cli.output import print_json, say
from latentrag.config import DEMO


def demo(as_json: arg.AsJson = False) -> None:
    """Fetch a small model and encyclopedia, and ask them something.

    Once 330 MB to download and some minutes to prepare; after that three questions.
    """
    from latentrag.demo import QUESTIONS, prepare

    prepare(progress=True)
    rag = arg.open_rag(DEMO, memory=DEMO)
    if as_json:
        from latentrag.records import answer_record

        print_json({"answers": [answer_record(rag.answer(question)) for question in QUESTIONS]})
        return
    from rich.rule import Rule
    from rich.text import Text

    from latentrag.cli.render import show_answer, terminal

    console = terminal()
    for question in QUESTIONS:
        console.print(Rule(Text(question), align="left"))
        show_answer(rag.answer(question), console)
        console.print()
    say('Next, ask something yourself: latentrag ask "Who discovered penicillin?"')
    say("or ask documents of your own: latentrag index add notes.lance FOLDER")
    say('and then: latentrag ask "…" -i notes.lance')
