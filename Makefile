# make demo and make test need nothing but this: .ci/setup brings what is missing.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test test-archs test-emulated test-nx soak bench setup fmt clean

# One target folder for Mix and for cargo, so that no crate is compiled twice.
export CARGO_TARGET_DIR ?= $(CURDIR)/_build/native

# Compiled Nx, Axon, telemetry and Benchee, for machines without Hex.
ifneq ($(wildcard /opt/erl-libs/*/ebin),)
export ERL_LIBS := /opt/erl-libs$(if $(ERL_LIBS),:$(ERL_LIBS))
endif

help:
	@echo 'make demo        an agent at 60 frames a second (DEVICE=cuda, DEMO_ARGS="…")'
	@echo 'make test        every check: format, lints, kernels, Rust and Elixir tests'
	@echo 'make test-archs  compiles the kernels for sm_86, sm_89, sm_100 and sm_120'
	@echo "make test-emulated  the kernels' tests over an emulated GPU, some minutes"
	@echo "make test-nx     Nx's own tests, from a checkout of Nx (NITROX_NX=…/nx/nx)"
	@echo '.ci/gpu          the GPU part of the tests, sanitizers and benches, with or without cargo there'
	@echo 'make soak        200,000 frames of each network, whose memory is to be flat'
	@echo 'make bench       frame times'
	@echo 'make setup       only installs what is missing'
	@echo 'make fmt         formats Elixir and Rust'
	@echo 'make clean       removes what was built'

# The demo needs no dependency, so Hex is not asked.
demo:
	@source .ci/setup; NITROX_HEX=0 MIX_ENV=prod mix nitrox.demo $(if $(DEVICE),--device $(DEVICE)) $(DEMO_ARGS)

test:
	@.ci/test

test-archs:
	@NITROX_TEST_ARCHS=86,89,100,120 .ci/test kernels

test-emulated:
	@.ci/emulate

test-nx:
	@source .ci/setup; MIX_ENV=test mix compile && \
		elixir -pa _build/test/lib/nitrox/ebin test/nx_suite.exs $(NX_TESTS)

soak:
	@source .ci/setup; NITROX_HEX=0 NITROX_SOAK_FRAMES=200000 mix test --only soak test/nitrox/soak_test.exs

bench:
	@source .ci/setup hex; MIX_ENV=dev mix run bench/frame_time.exs $(BENCH_ARGS)

setup:
	@source .ci/setup nvrtc hex; say "everything is there"

fmt:
	@source .ci/setup; NITROX_HEX=0 mix format; cargo fmt --manifest-path native/Cargo.toml --all

clean:
	rm -rf _build priv/native
