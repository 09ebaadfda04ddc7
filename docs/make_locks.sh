#!/usr/bin/env bash
# Writes the lock files again after a change of dependencies: docs/make_locks.sh [directory with torch's CPU wheel]
set -euo pipefail
cd "$(dirname "$0")/.."
compile() {
    uv pip compile pyproject.toml --extra test --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
        --generate-hashes --no-annotate --no-header -c constraints.txt -q "$@"
}
compile --find-links "${1:?where torch-...+cpu-...whl lies}" -o requirements-cpu.lock
compile -o requirements-cuda.lock
