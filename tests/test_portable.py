"""The package is imported, and the way from a question to its answer taken, without what Windows and macOS lack."""

import subprocess
import sys

from latentrag.assemble import load, save

WITHOUT = """
import importlib, os, pkgutil, signal, sys, warnings
import faiss, fastapi, lance, mcp.server, numpy, pyarrow, sentence_transformers, torch, typer, uvicorn
from transformers import BertModel, LlamaForCausalLM  # other people's, which have their own ways

for name in ("sysconf", "pread", "posix_fadvise", "fork", "sched_getaffinity", "geteuid", "setsid", "mkfifo"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGALRM", "setitimer", "alarm", "SIGKILL"):
    if hasattr(signal, name):
        delattr(signal, name)
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None

import latentrag
for module in pkgutil.walk_packages(latentrag.__path__, "latentrag."):
    framework = module.name.startswith("latentrag.integrations.") and not module.name.endswith(".replies")
    if not module.name.endswith("__main__") and not framework:  # which need not be installed
        importlib.import_module(module.name)
"""

READ = """
from latentrag.assemble import load, open_memory

model, path = sys.argv[1:]
rag = load(model, memory=path, k=3)
answer = rag.answer("what is the capital of france ?", max_tokens=4)
assert len(answer.sources) == 3, answer
assert rag.score("what is paris ?", "rome").log_likelihood < 0
words = load(model, memory=path, k=2, retriever="bm25")
sources = words.answer("the capital of france", max_tokens=2).sources
assert [source.passage.id for source in sources] == ["paris", "seine"]
opened = open_memory(path)
assert [z.id for z in opened.get(["rome"])] == ["rome"]
assert len(list(opened.passages())) == len(opened) == 4
print(answer.log_prob)
"""


def test_every_module_is_imported_and_a_question_answered(pair, filled, tmp_path) -> None:
    rag = load(pair, memory=filled, k=3)
    save(rag, tmp_path / "model")
    command = [
        sys.executable,
        "-W",
        "error::ResourceWarning",
        "-c",
        WITHOUT + READ,
        str(tmp_path / "model"),
        str(filled),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = rag.answer("what is the capital of france ?", max_tokens=4).log_prob
    assert abs(float(done.stdout) - expected) < 1e-5
