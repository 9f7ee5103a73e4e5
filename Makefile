# `make help` lists what there is. Everything below `setup` may be called first: it sets up what it needs.
SHELL := /bin/bash
.DEFAULT_GOAL := help

FUZZTIME ?= 60s
SOAK ?= 10
# A checkout that belongs to somebody else, or comes without .git, builds all the same.
export GOFLAGS := $(GOFLAGS) -buildvcs=false
export COVERSLIP_TEST_PYTHON := $(CURDIR)/.tools/venv/bin/python

# Its wheel is for x86_64; elsewhere the scripts go unread, as CI reads them.
SHELLCHECK := $(if $(filter x86_64,$(shell uname -m)),.tools/shellcheck/bin/shellcheck)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what building needs: system packages, ONNX Runtime, OpenSlide (nothing, the second time)
	@./setup.sh

build: setup ## leave the program at bin/coverslip
	go build -trimpath -o bin/coverslip ./cmd/coverslip

demo: build ## a real slide in, its embedding out, on embedded defaults
	@go run ./internal/demo

test: ## vet and all tests with the race detector (under 10 minutes on 2 cores)
	@./setup.sh test
	go test -race -vet=all -timeout 30m ./...

test-full: .tools/versitygw .tools/schemathesis/bin/schemathesis ## the same with a real S3 server and the slow suites
	@./setup.sh test
	COVERSLIP_FULL=1 go test -race -vet=all -timeout 60m ./...

soak: .tools/versitygw ## all of it SOAK times over (10), to find what fails once in a while
	@./setup.sh test
	COVERSLIP_FULL=1 go test -race -vet=all -count=$(SOAK) -timeout 0 ./...

fuzz: setup ## every fuzz test, FUZZTIME each (60s)
	@set -e; grep -rEo --include='*_test.go' '^func Fuzz\w+' . | sort | while IFS=: read -r file func; do \
		echo "$${file%/*} $${func#func }"; \
		go test -run '^$$' -fuzz "^$${func#func }\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 20x "$${file%/*}"; \
	done

# Without those that expect a process to die in a certain way: here it dies of AddressSanitizer.
asan: setup ## decoders and the decode process under AddressSanitizer, and FUZZTIME of fuzzing each (60s)
	go test -asan -skip FailsAlone ./tiler/jpeg ./tiler/vips ./tiler/openslide
	go test -asan -run '^$$' -fuzz FuzzDecode -fuzztime $(FUZZTIME) -fuzzminimizetime 20x ./tiler/jpeg
	go test -asan -run '^$$' -fuzz FuzzFault13DecodeProcess -fuzztime $(FUZZTIME) -fuzzminimizetime 20x ./tiler/openslide

bench: build ## Go benchmarks, then the program's own
	go test -run '^$$' -bench . -benchmem ./...
	bin/coverslip bench encode

lint: setup .tools/golangci-lint $(SHELLCHECK) ## format, linters, import rules, modules, scripts
	.tools/golangci-lint run ./...
	@bad=$$(go list -f '{{if .CgoFiles}}{{.ImportPath}}{{end}}' ./... | grep -vxE 'coverslip/($(CGO_FOLDERS))'); [ -z "$$bad" ] || { echo "cgo stands only in $(CGO_FOLDERS), not in:"; echo "$$bad"; exit 1; }
	go mod verify
	go mod tidy -diff
	$(if $(SHELLCHECK),$(SHELLCHECK) setup.sh .ci/run)

# The linter reads cgo files as the compiler sees them, where import "C" is gone: hence a check of our own.
CGO_FOLDERS := tiler/jpeg|tiler/vips|encoder/onnx|internal/nn|storage/hdf5

fmt: ## gofmt
	gofmt -w $$(git ls-files '*.go')

clean: ## remove what was built and fetched into this folder; system packages stay
	rm -rf bin lib .tools

# Tools come from module files of their own, so that their dependencies stay out of the product's.
.tools/golangci-lint: internal/tools/golangci-lint.mod
	@echo "building golangci-lint (minutes, the first time)"
	@go build -modfile=$< -o $@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint && touch $@

.tools/versitygw: internal/tools/versitygw.mod
	@echo "building the S3 server of the tests (minutes, the first time)"
	@go build -modfile=$< -o $@ github.com/versity/versitygw/cmd/versitygw && touch $@

.tools/schemathesis/bin/schemathesis: internal/tools/schemathesis-requirements.txt
	@rm -rf .tools/schemathesis
	@python3 -m venv --without-pip .tools/schemathesis
	@python3 -m pip --disable-pip-version-check --python .tools/schemathesis/bin/python install --quiet --root-user-action=ignore -r $< && touch $@

.tools/shellcheck/bin/shellcheck: internal/tools/shellcheck-requirements.txt
	@rm -rf .tools/shellcheck
	@python3 -m pip --disable-pip-version-check install --quiet --root-user-action=ignore --only-binary=:all: --require-hashes --target .tools/shellcheck -r $< && touch $@

.PHONY: help setup build demo test test-full soak fuzz asan bench lint fmt clean
