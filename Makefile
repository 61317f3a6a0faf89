# Drover's make targets; `make help` lists them. Everything works on Debian or
# Ubuntu with Go; what else a target needs it installs after saying so.
SHELL := /bin/bash
export CGO_ENABLED := 0
# A checkout that belongs to somebody else builds as well; the version is VERSION.
export GOFLAGS := $(GOFLAGS) -buildvcs=false

VERSION := $(shell git describe --tags --match 'v[0-9]*' --dirty 2>/dev/null || \
	echo "v0.0.0-$$(git rev-list --count HEAD 2>/dev/null || echo 0)-g$$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)")
ARCH := $(shell go env GOARCH)
LDFLAGS := -s -w -X main.version=$(VERSION)
TOOLS := $(CURDIR)/.cache/tools

PREFIX ?= /usr
DESTDIR ?=
FUZZTIME ?= 30s

.PHONY: help build check format vet staticcheck test test-long test-packages demo bench fuzz install uninstall deb image clean race

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/drover, one static binary
	go build -trimpath -ldflags '$(LDFLAGS)' -o bin/drover ./cmd/drover

# The tools have a go.mod of their own, so that what they need never enters the
# product's dependencies.
$(TOOLS)/.built: internal/tools/go.mod internal/tools/go.sum
	@mkdir -p $(TOOLS)
	go build -C internal/tools -o $(TOOLS)/ tool
	@touch $@

format: $(TOOLS)/.built ## format the Go code
	$(TOOLS)/gofumpt -w $$(git ls-files '*.go')

check: $(TOOLS)/.built ## format, vet, staticcheck and all tests that need neither root nor a lab
	@echo "== format"
	@out=$$($(TOOLS)/gofumpt -l .); if [ -n "$$out" ]; then echo "not formatted (make format does it):"; echo "$$out"; exit 1; fi
	@echo "== go vet"
	go vet -tags 'root lab long' ./...
	@echo "== staticcheck"
	$(TOOLS)/staticcheck -tags 'root lab long' ./...
	@echo "== tests that need no root"
	go test ./...

test-packages: ## install the Debian packages that tests need
	go run ./internal/suite -install

# What continuous integration runs. Packages first, so that a machine without
# them fails before anything has taken time.
test: test-packages check ## everything: check, root tests, lab tests, today's shard of the long ones (root)
	go run ./internal/suite

test-long: test-packages ## all long tests (root)
	go run ./internal/suite -long

race: ## plain tests under the race detector (needs a C compiler)
	CGO_ENABLED=1 go test -race ./...

demo: build ## three hosts, a busy PostgreSQL that moves twice, nothing lost (root)
	bin/drover lab demo

bench: build ## the figures of docs/benchmarks.md, as ratios measured in one run (root)
	go run ./internal/bench

fuzz: ## run every fuzz target for FUZZTIME (default 30s)
	@for f in $$(grep -rlE '^func Fuzz' --include='*_test.go' .); do \
		for name in $$(sed -nE 's/^func (Fuzz[A-Za-z0-9_]*).*/\1/p' $$f); do \
			echo "== $$(dirname $$f) $$name"; \
			go test -run '^$$' -fuzz "^$$name$$" -fuzztime $(FUZZTIME) $$(dirname $$f) || exit 1; \
		done; \
	done

install: build ## install binary, units, completions (PREFIX, DESTDIR)
	packaging/install.sh bin/drover '$(DESTDIR)' '$(PREFIX)'

uninstall: ## remove what install installed; data stays
	packaging/install.sh --remove '$(DESTDIR)' '$(PREFIX)'

deb: build $(TOOLS)/.built ## build a Debian package into dist/
	packaging/deb.sh bin/drover $(TOOLS)/nfpm '$(VERSION)' '$(ARCH)'

image: build ## build an OCI image of the agent into dist/ (root)
	packaging/image.sh bin/drover '$(VERSION)' '$(ARCH)'

clean: ## remove what was built
	rm -rf bin dist .cache
