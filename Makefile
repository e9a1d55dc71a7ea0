# kr: the two commands of the README are `make run` and `make test`; both install what is missing.
# Everything that builds is CMake (CMakePresets.json); this file only names the common steps.
export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)
PROMPT ?= Explain in three sentences why the sky is blue.
SECONDS_EACH ?= 60
FUZZERS = $(patsubst tests/fuzz/fuzz_%.c,%,$(wildcard tests/fuzz/fuzz_*.c))

.PHONY: run build test bench lint sanitize fuzz models setup clean help

help:            ## this list
	@sed -n 's/^\([a-z]*\):[^#]*##/\1\t/p' $(MAKEFILE_LIST) | expand -t12

# Greedy: a model this small wanders off easily when its tokens are drawn at random.
run: build       ## install what is missing, build, fetch the starter model, answer PROMPT
	@python3 tools/fetch_model.py smollm2
	@build/kr run -m smollm2 --temp 0 -p "$(PROMPT)"

setup:
	@tools/setup.sh run

build: setup     ## build/kr and build/libkr.so
	@cmake --preset release >/dev/null
	@cmake --build build --target kr_cli kr

test:            ## all tests; the last line is "N passed, N failed"
	@tools/setup.sh test
	@python3 tools/fetch_model.py smollm2 gemma3 qwen25
	@python3 tools/run_tests.py all

sanitize:        ## unit, op and tiny-model tests and corpora under ASan, UBSan and TSan
	@tools/setup.sh test
	@python3 tools/run_tests.py asan tsan

lint:            ## house rules: include arrows, sizes, banned calls
	@python3 tools/tidy.py

BENCH ?=
bench: build     ## kr beside its rivals, engine, server, package; all in bench/out (BENCH=--quick)
	@tools/setup.sh bench
	@python3 tools/fetch_model.py smollm2 gemma3 qwen25
	@python3 bench/run.py $(BENCH)
	@python3 bench/engine.py $(filter --quick,$(BENCH))
	@python3 bench/server.py $(filter --quick,$(BENCH))
	@cd bindings/node && npm ci --silent --no-audit --no-fund && npm run --silent build
	@cmake --preset release >/dev/null # the addon, now that its headers are there
	@cmake --build build --target bench_pipe_echo make_tiny_gguf kr_node
	@python3 bench/serve.py $(filter --quick,$(BENCH))

fuzz:            ## every fuzz target for SECONDS_EACH (60)
	@tools/setup.sh fuzz
	@cmake --preset fuzz >/dev/null
	@cmake --build build-fuzz --target $(addprefix fuzz_,$(FUZZERS))
	@for f in $(FUZZERS); do echo "fuzz $$f"; mkdir -p build-fuzz/corpus/$$f; \
	  build-fuzz/tests/fuzz_$$f -max_total_time=$(SECONDS_EACH) -timeout=5 -rss_limit_mb=2048 \
	    -print_final_stats=0 build-fuzz/corpus/$$f tests/corpus/$$f || exit 1; done

models:          ## fetch all models of the tests
	@tools/setup.sh run
	@python3 tools/fetch_model.py smollm2 gemma3 qwen25

clean:           ## remove all build folders
	rm -rf build build-*
