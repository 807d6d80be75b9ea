# One command each; none needs another first.
#   make pressure            train, break, diagnose and report with the embedded model
#   make test                format, lint, types and tests
#   make unlearning-table    every objective of unlearning on the embedded model, side by side (20 minutes)
#   make curriculum-demo     SFT and DPO, topic by topic, each stage examined (3 minutes)
#   make curriculum-cells    the same, healthy and with each root cause planted: is it named? (4 minutes)
#   make mutants             plant every bug into the engine: which cell and probe notices?
#   make doctor CKPT=path    diagnose a checkpoint
#   make selftest            is the doctor any good? recall and false alarms of every probe
#   make fuzz                200,000 hostile checkpoints: the doctor survives and touches nothing
#   make temporal-demo       unlearn, merge, convert, serve and evaluate the embedded model (6 minutes)
#   make bench               measure everything against the best there is (20 minutes; ROWS="merge loss" for some)
#   make bench-quick         small sizes: did anything get worse than its committed result? (2 minutes)
#   make setup               the installation alone
# PYTHON=... picks the interpreter, TORCH_INDEX=... the package index of a ROCm or CUDA torch.

BIN := .venv/bin
STAMP := .venv/.installed
JOBS ?= 2
ROWS ?=
PYTHON ?=
TORCH_INDEX ?=

OBJECTIVES ?= refusal kl gradient-ascent gradient-ascent-refusal npo npo-refusal dpo

.PHONY: unlearning-table always help setup pressure mutants test test-triton lint doctor selftest fuzz temporal-demo curriculum-demo curriculum-cells bench bench-quick bench-timings clean

help:
	@sed -n '1,15p' Makefile

setup: $(STAMP)

# With a torch of one's own the set-up always runs: it takes that one, or says why it does not.
$(STAMP): pyproject.toml constraints.txt .ci/setup $(if $(TORCH_INDEX)$(PYTHON),always)
	@TORCH_INDEX="$(TORCH_INDEX)" PYTHON="$(PYTHON)" .ci/setup
	@touch $(STAMP)

always:

pressure: $(STAMP)
	@$(BIN)/mudpuppy-pressure run scenarios/seed.yaml -j $(JOBS)

curriculum-demo: $(STAMP)
	@rm -rf runs/curriculum-demo
	@OMP_NUM_THREADS=1 $(BIN)/mud-puppy curriculum run demo --output runs/curriculum-demo

curriculum-cells: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/mudpuppy-pressure run curriculum -j $(JOBS)

# Triton beside the installation, not in it: 600 MB, and torch imports it wherever it finds it. Its
# interpreter needs a numpy that still turns arrays of one element into numbers.
test-triton: $(STAMP)
	@test -d .venv/triton/triton || $(BIN)/pip install --quiet --no-deps --target .venv/triton \
		triton==3.5.0 'numpy<2.4'
	@OMP_NUM_THREADS=1 TRITON_INTERPRET=1 PYTHONPATH=.venv/triton \
		$(BIN)/pytest tests/mudpuppy/quant/kernels/test_triton.py

mutants: $(STAMP)
	@$(BIN)/mudpuppy-pressure mutants -j $(JOBS)

lint: $(STAMP)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

test: lint
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS)

doctor: $(STAMP)
	@test -n "$(CKPT)" || { echo "usage: make doctor CKPT=path/to/checkpoint" >&2; exit 2; }
	@$(BIN)/mudpuppy-doctor "$(CKPT)"

selftest: $(STAMP)
	@$(BIN)/mudpuppy-doctor selftest -j $(JOBS)

fuzz: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.drive -j $(JOBS) --keep runs/fuzz

temporal-demo: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m mudpuppy.pipelines.temporal.demo $(FOLDER)

bench: $(STAMP)
	@$(BIN)/python -m benchmarks.table $(ROWS)

bench-quick: $(STAMP)
	@$(BIN)/python -m benchmarks.table --quick $(if $(EXACT),--exact) $(ROWS)

bench-timings: $(STAMP)
	@$(BIN)/pytest benchmarks/test_timings.py -m pressure

clean:
	rm -rf .venv runs build *.egg-info .mypy_cache .pytest_cache .ruff_cache

# DPO diverges at the others' rate, so it has a tenth of it and half of the epochs.
unlearning-table: export WIKI_DATA := runs/unlearning
unlearning-table: export OMP_NUM_THREADS := 1
unlearning-table: $(STAMP)
	@rm -rf $(WIKI_DATA) && $(BIN)/mud-puppy temporal data --from tiny $(WIKI_DATA)/datasets
	@for one in $(OBJECTIVES); do \
		case $$one in dpo) rate="3e-4 --epochs 3";; *) rate="3e-3 --epochs 6";; esac; \
		$(BIN)/mud-puppy temporal finetune --model_name tiny --objective $$one --batch_size 16 \
			--learning_rate $$rate --output_dir $(WIKI_DATA)/$$one && \
		$(BIN)/mud-puppy temporal evaluate --model_path $(WIKI_DATA)/$$one/final \
			--test_file $(WIKI_DATA)/datasets/dev/dev_subset.jsonl \
			--output $(WIKI_DATA)/$$one/results.json || [ $$? = 1 ] || exit 1; \
	done
	@$(BIN)/mud-puppy temporal compare --format markdown \
		$(foreach one,$(OBJECTIVES),$(one)=$(WIKI_DATA)/$(one)/results.json)
