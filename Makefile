# Everything runs in .venv, which is made when it is missing and brought up to date when
# pyproject.toml or constraints.txt has changed. Needs Python 3.11 or later and nothing else.

PYTHON ?= python3
DATA ?= ../shared/data
CLUES = $(DATA)/jeopardy-vital.dev.jsonl.gz --prefix-field category
BIN := .venv/bin
AXE := 4.14.1
STAMP := .venv/installed
LLAMA := .venv/installed-llama-cpp
CLUSTER := .venv/installed-cluster

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help test lint test-quantised test-environments test-gpu test-page test-cluster test-clients test-properties test-s3 torture fuzz-api code-lines same-results format demo eval-demo experiment-jeopardy experiment-hot-swap \
	experiment-precision experiment-shares experiment-removal experiment-confidence experiment-conversations experiment-sets experiment-made-questions experiment-intervals experiment-bm25 experiment-korean experiment-good experiment-refusals experiment-prior bench bench-beside bench-encoding bench-ask bench-gpu bench-loss-memory bench-decoding bench-roofline bench-training bench-cache \
	bench-memory bench-21m bench-filters bench-swap bench-cluster bench-sync bench-serving bench-html bench-spans reproduce clean

help:  ## List the targets.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-17s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

test: lint $(LLAMA) $(CLUSTER)  ## Check style, types, the rooms' import rules, and run the tests.
	@$(BIN)/python -m pytest -n 2 --dist loadgroup

# Where it cannot be compiled, the tests of GGUF files are skipped, and say so.
$(LLAMA): $(STAMP)
	@echo "compiling llama-cpp-python (minutes, the first time)"
	@CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF" \
		$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[llama-cpp]' || \
		echo "llama-cpp-python cannot be compiled here; tests of GGUF files will be skipped" >&2
	@touch $@

# Where ray has no wheel, the tests of clusters are skipped, and say so.
$(CLUSTER): $(STAMP)
	@$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[cluster]' || \
		echo "ray cannot be installed here; tests of clusters will be skipped" >&2
	@touch $@

lint: $(STAMP)  ## Check style, types and import rules.
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

# In a network of its own where the system allows that: Ray listens on the machine's address, not on loopback.
test-cluster: $(CLUSTER)  ## Kill, exchange and divide shards on Ray, minutes.
	@if unshare -rn true 2>/dev/null; then \
		unshare -rn sh -c 'ip link set lo up && $(BIN)/python -m pytest -m "cluster or not cluster" tests/cluster'; \
	else $(BIN)/python -m pytest -m "cluster or not cluster" tests/cluster; fi

test-gpu: $(STAMP)  ## Run the tests of devices on a real accelerator, a minute; DEVICE=mps, default cuda.
	@LATENTRAG_TEST_DEVICE=$(or $(DEVICE),cuda) $(BIN)/python -m pytest tests/test_devices.py

test-page: $(STAMP) build/axe-core/package/axe.min.js  ## Try the page in Chromium, which must be installed; CHROMIUM=/usr/bin/chromium.
	@$(BIN)/python -c 'import playwright' 2>/dev/null || \
		$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[browser]'
	@$(if $(CHROMIUM),CHROMIUM=$(CHROMIUM)) $(BIN)/python -m pytest -q -m browser tests/serving

# Without npm the accessibility check is skipped, and says so.
build/axe-core/package/axe.min.js:
	@mkdir -p build/axe-core
	@! command -v npm >/dev/null || { cd build/axe-core && npm pack --silent axe-core@$(AXE) && tar xzf axe-core-$(AXE).tgz; }

# moto does not go with constraints.txt, so it has an environment of its own.
test-s3: $(STAMP) build/moto/bin/moto_server  ## Run the tests of memories in an object store, against one on this machine.
	@$(BIN)/python -m pytest -q -m s3 tests/objects

build/moto/bin/moto_server:
	@$(PYTHON) -m venv build/moto
	@build/moto/bin/python -m pip install --disable-pip-version-check -q 'moto[s3,server]==5.2.5' || { rm -rf build/moto; exit 1; }

# In a folder of its own: wherever bitsandbytes can be found, accelerate imports it.
test-quantised: $(STAMP)  ## Run the tests of checkpoints that bitsandbytes has quantised, a minute.
	@$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --target build/quantised -c constraints.txt bitsandbytes
	@PYTHONPATH=build/quantised $(BIN)/python -m pytest tests/generator/test_quantised.py

# Without node, npm or nginx what needs them is skipped, and says so.
test-clients: $(STAMP)  ## Try other projects' clients, installed from PyPI and npm under build/clients, minutes; ONLY=langchain.
	@$(BIN)/python -m pytest -m clients tests/clients $(if $(ONLY),-k $(ONLY))

test-properties: $(STAMP)  ## Run the property tests again and again, each time with other examples; RUNS=20.
	@for run in $$(seq $(or $(RUNS),20)); do \
		$(BIN)/python -m pytest -q -n 2 --no-header --hypothesis-profile=anew -m 'hypothesis and not slow' \
			$$(grep -rlE '^from hypothesis' tests) || exit 1; done

torture: $(STAMP)  ## Kill writers of a memory at random moments, minutes; RUNS=100.
	@$(BIN)/python -m tests.memory.torture $(if $(RUNS),--runs $(RUNS))

test-environments: $(STAMP)  ## Try every command in other locales, on full and read-only disks, with little of everything, minutes; mounts need root.
	@$(BIN)/python -m pytest -m environment tests/cli

fuzz-api: $(STAMP)  ## Thousands of requests made from the API's own description, minutes.
	@$(BIN)/python -m pytest -q -m slow tests/serving/test_schema.py

code-lines: $(STAMP)  ## Count code lines, files, Any and imports in functions, room by room; BEFORE=../before compares.
	@$(BIN)/python -m benchmarks.code_lines $(if $(BEFORE),$(BEFORE)/src/latentrag) src/latentrag

same-results: demo  ## Compare answers, losses, recall and commands of this tree with those of another, half an hour; BEFORE=../before.
	@$(BIN)/python -m benchmarks.same_results --before $(BEFORE)

format: $(STAMP)  ## Sort imports and reformat.
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

demo: $(STAMP)  ## Fetch the demo's models and corpus once, build its memory, ask it a question.
	@$(BIN)/latentrag demo

eval-demo: demo  ## Measure the demo on DATA (a folder with the question sets); LIMIT=200 takes the first 200.
	@$(BIN)/python experiments/eval_demo.py --data $(DATA) $(if $(LIMIT),--limit $(LIMIT))

experiment-jeopardy: demo  ## Train on DATA's clues, arm by arm, hours; BUDGET_MIN=30 for fewer examples; goes on where it was.
	@$(BIN)/python -c 'import matplotlib' 2>/dev/null || \
		$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[report]'
	@$(BIN)/python experiments/jeopardy.py --data $(DATA) $(if $(BUDGET_MIN),--budget-min $(BUDGET_MIN))

experiment-hot-swap: demo  ## Exchange facts of the demo's memory while it answers, 20 minutes; goes on where it was.
	@$(BIN)/python experiments/hot_swap.py

experiment-precision: demo  ## Measure what bfloat16 and int8 do to answers on DATA's clues, hours; LIMIT=20; goes on where it was.
	@$(BIN)/python experiments/precision.py --data $(CLUES) $(if $(LIMIT),--limit $(LIMIT))

experiment-shares: demo  ## Measure whether shares are true on DATA's questions, half an hour; LIMIT=200; goes on where it was.
	@$(BIN)/python -c 'import matplotlib' 2>/dev/null || \
		$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[report]'
	@$(BIN)/python experiments/shares.py --data $(DATA) $(if $(LIMIT),--limit $(LIMIT))

experiment-removal: demo  ## Take passages away in several orders on DATA's questions, an hour; LIMIT=100, JUDGE=good, JUDGED=40; goes on.
	@$(BIN)/python experiments/removal.py --data $(DATA) $(if $(LIMIT),--limit $(LIMIT)) $(if $(JUDGE),--judge $(JUDGE)) \
		$(if $(JUDGED),--judged $(JUDGED))

experiment-confidence: demo  ## Fit how sure answers are on one half of DATA's questions, measure on the other, an hour; LIMIT=400; goes on.
	@$(BIN)/python experiments/confidence.py --data $(DATA) $(if $(LIMIT),--limit $(LIMIT))

experiment-conversations: demo  ## Retrieve and answer in made dialogues, by ways to read the last question, an hour; ANSWERED=0, TRAINED; goes on.
	@$(BIN)/python experiments/conversations.py $(if $(ANSWERED),--answered $(ANSWERED)) $(if $(TRAINED),--trained $(TRAINED))

experiment-sets: demo  ## Read two passages together on DATA's questions that need several, an hour; MODEL=good LIMIT=20; goes on.
	@$(BIN)/python experiments/sets.py --data $(DATA) $(if $(MODEL),--model $(MODEL)) $(if $(LIMIT),--limit $(LIMIT))

experiment-made-questions: demo  ## Train on questions made from DATA's corpora, hours; MODEL=good NUMBER=500 FREEZE=generator; goes on.
	@$(BIN)/python experiments/made_questions.py --data $(DATA) $(if $(MODEL),--model $(MODEL)) $(if $(NUMBER),--number $(NUMBER)) \
		$(if $(FREEZE),--freeze $(FREEZE)) $(if $(LIMIT),--limit $(LIMIT))

experiment-prior: demo  ## Measure vectors, words, a cross-encoder and their sums on DATA's questions, hours; LIMIT, RERANKED, NUMBER, ONLY=demo, TRAINED; goes on.
	@$(BIN)/python -c 'import onnxruntime' 2>/dev/null || \
		$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[onnx]'
	@$(BIN)/python experiments/prior.py --data $(DATA) $(if $(LIMIT),--limit $(LIMIT)) $(if $(NUMBER),--number $(NUMBER)) \
		$(if $(RERANKED),--reranked $(RERANKED)) $(if $(ONLY),--only $(ONLY)) $(if $(TRAINED),--trained $(TRAINED))

reproduce: demo  ## Run the paper's tables and figures that need no GPU, hours; DATA, ROW=table-6-triviaqa; goes on where it was.
	@$(BIN)/python -c 'import matplotlib' 2>/dev/null || \
		$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[report]'
	@$(BIN)/latentrag reproduce $(or $(ROW),all) --data $(DATA) --work build/reproduced --results docs/results

experiment-intervals: $(STAMP)  ## Simulate how often intervals cover and comparisons cry wolf, minutes.
	@$(BIN)/python experiments/intervals.py

experiment-bm25: $(STAMP)  ## Measure what BM25 finds in Korean and English on DATA's questions, minutes; LIMIT=100 questions.
	@$(BIN)/python experiments/bm25_languages.py --data $(DATA) $(if $(LIMIT),--limit $(LIMIT))

experiment-good: demo $(LLAMA)  ## Ask the good demo by its chat template and by the plain prompt, and the small one, DATA's questions, hours; LIMIT=20; goes on.
	@$(BIN)/latentrag demo --model good
	@$(BIN)/python experiments/good_demo.py prompts --data $(DATA) $(if $(LIMIT),--limit $(LIMIT))

experiment-refusals: demo $(LLAMA)  ## Let the good demo refuse, or not, on DATA's train questions, an hour; LIMIT=20; goes on.
	@$(BIN)/latentrag demo --model good
	@$(BIN)/python experiments/good_demo.py refusals --data $(DATA) $(if $(LIMIT),--limit $(LIMIT))

experiment-korean: $(STAMP)  ## Measure what a multilingual ENCODER finds on DATA's Korean questions beside words, an hour; OTHERS, BESIDE; goes on.
	@$(BIN)/python experiments/korean.py --data $(DATA) --encoder $(ENCODER) $(if $(OTHERS),--others $(OTHERS)) $(if $(BESIDE),--beside $(BESIDE))

bench: demo  ## Run every benchmark in turn, hours; reports in build/bench; RUNS=5, QUICK=1 for minutes.
	@$(BIN)/python -m benchmarks.every --data $(DATA) $(if $(RUNS),--runs $(RUNS)) $(if $(QUICK),--quick)

bench-beside: demo  ## Time the quick benchmarks and the start of this tree beside another's, in turns; BEFORE=../before, ROUNDS, ONLY=ask.
	@$(BIN)/python -m benchmarks.beside --before $(BEFORE) --data $(DATA) --json build/bench/beside.json \
		$(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(ONLY),--only $(ONLY))

bench-encoding: demo  ## Measure encoding beside sentence-transformers, 20 minutes; LIMIT=1000 passages, RUNS=5.
	@$(BIN)/python -m benchmarks.encoding --json build/bench/encoding.json $(if $(LIMIT),--limit $(LIMIT)) $(if $(RUNS),--runs $(RUNS))

bench-ask: demo  ## Measure where the time of an answer goes, on DATA's clues, minutes; LIMIT=20.
	@$(BIN)/python -m benchmarks.ask --json build/bench/ask.json --data $(CLUES) $(if $(LIMIT),--questions $(LIMIT))

bench-gpu: $(STAMP)  ## Measure decoding and a training step on a GPU, minutes.
	@$(BIN)/python -m benchmarks.gpu --json build/bench/gpu.json

bench-loss-memory: $(STAMP)  ## Measure the loss over a large vocabulary against the naive one, 15 minutes; RUNS=5.
	@$(BIN)/python -m benchmarks.loss_memory $(if $(RUNS),--runs $(RUNS))

bench-decoding: $(STAMP)  ## Measure decoding beside transformers' RAG, half an hour; SIZE=large PASSAGES=10 RUNS=5.
	@$(BIN)/python -m benchmarks.decoding $(if $(SIZE),--size $(SIZE)) $(if $(PASSAGES),--passages $(PASSAGES)) $(if $(RUNS),--runs $(RUNS))

bench-roofline: $(STAMP)  ## Measure a decoder's step beside what this machine can do, a minute; SIZE=large PASSAGES=10 RUNS=5.
	@$(BIN)/python -m benchmarks.roofline $(if $(SIZE),--size $(SIZE)) $(if $(PASSAGES),--passages $(PASSAGES)) $(if $(RUNS),--runs $(RUNS))

bench-training: $(STAMP)  ## Measure a training step beside transformers' RAG, half an hour; SIZE, PASSAGES, LENGTHS=real, RUNS.
	@$(BIN)/python -m benchmarks.training_step $(if $(SIZE),--size $(SIZE)) $(if $(PASSAGES),--passages $(PASSAGES)) \
		$(if $(LENGTHS),--lengths $(LENGTHS)) $(if $(RUNS),--runs $(RUNS))

bench-cache: demo  ## Measure what it saves to keep passages that were read, on DATA's clues, half an hour.
	@$(BIN)/python -m benchmarks.passage_cache --data $(CLUES)

bench-memory: $(STAMP)  ## Measure a memory's indexes beside faiss, hours and 30 GB under WORK; goes on where it was; SIZE, DIM, RUNS, WAYS, LIKE=MEMORY.
	@$(BIN)/python -m benchmarks.memory --work $(or $(WORK),build/bench-memory) --report $(or $(WORK),build/bench-memory)/report.md \
		$(if $(SIZE),--size $(SIZE)) $(if $(DIM),--dimension $(DIM)) $(if $(RUNS),--runs $(RUNS)) $(if $(WAYS),--ways $(WAYS)) \
		$(if $(LIKE),--like $(LIKE))

bench-21m: $(STAMP)  ## Build, search and edit a memory of the paper's size, hours and 60 GB under WORK; goes on where it was.
	@$(BIN)/python -m benchmarks.memory --work $(or $(WORK),build/bench-21m) --size 21000000 --dimension 384 --made-again \
		--ways ivf-rabitq --parts edits --report $(or $(WORK),build/bench-21m)/report.md

bench-filters: $(STAMP)  ## Search a million passages under conditions that leave 50 %, 1 % and 20, minutes; SIZE, DIMENSION, WORDS=1.
	@$(BIN)/python -m benchmarks.filters $(if $(SIZE),--size $(SIZE)) $(if $(DIMENSION),--dimension $(DIMENSION)) $(if $(WORDS),--words)

bench-swap: $(STAMP)  ## Exchange a memory 20 times under 2,000 answers in 8 threads, a minute.
	@$(BIN)/python -m benchmarks.swap

bench-cluster: $(CLUSTER)  ## Measure what calls to shards in actors cost beside a memory in the process, minutes; SIZE.
	@$(BIN)/python -m benchmarks.cluster --json build/bench/cluster.json $(if $(SIZE),--size $(SIZE))

bench-sync: $(STAMP)  ## Sync 2,000 files, interrupted three times, 3 minutes; MODEL=demo encodes with the demo's.
	@$(BIN)/python -m benchmarks.sync --work $(or $(WORK),build) $(if $(MODEL),--model $(MODEL))

bench-serving: demo  ## Put a server under load beside that of BEFORE=../before, 1 hour; asks DATA's clues. BEFORE_MODEL, PARTS, ROUNDS, SECONDS; goes on.
	@$(BIN)/python -m benchmarks.serving --data $(CLUES) --json build/bench/serving.json $(if $(BEFORE),--before $(BEFORE)) \
		$(if $(BEFORE_MODEL),--before-model $(BEFORE_MODEL)) \
		$(if $(PARTS),--parts $(PARTS)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(CLIENTS),--clients $(CLIENTS)) \
		$(if $(SECONDS),--seconds $(SECONDS))

bench-html: $(STAMP)  ## Measure what is kept of web pages beside other extractors, 5 minutes; TRAFILATURA, READABILITY, DOCUMENTATION: folders.
	@$(BIN)/python -m benchmarks.html_text --json build/bench/html.json $(if $(TRAFILATURA),--trafilatura $(TRAFILATURA)) \
	  $(if $(READABILITY),--readability $(READABILITY)) $(if $(DOCUMENTATION),--documentation $(DOCUMENTATION))

bench-spans: $(STAMP)  ## Measure an extractive reader's answer beside its encoder's pass, a minute; READER: an encoder's folder.
	@$(BIN)/python -m benchmarks.spans --json build/bench/spans.json --reader $(or $(READER),$$HOME/.cache/latentrag/models/demo/query_encoder)

clean:  ## Remove .venv and everything the tools have cached here.
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# pip's list of every requirement is left out; downloads, installation and errors are shown.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is $$($(PYTHON) -V 2>&1); 3.11 or later is needed; name one: make PYTHON=python3.11" >&2; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || \
		{ echo "making .venv with $$($(PYTHON) -V)"; $(PYTHON) -m venv --clear .venv; }
	@echo "installing latentrag and its dependencies into .venv (minutes, the first time)"
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[demo,dev]' \
		| awk '/^ *(Downloading|Building|ERROR)/ { print; fflush() } /^Installing collected/ { print "Installing"; fflush() }'
	@touch $@
