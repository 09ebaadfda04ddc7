#!/usr/bin/env bash
# Writes constraints-neuron.txt and the lock files again after a change of dependencies, with uv:
#   docs/make_locks.sh DIRECTORY      where torch's CPU wheel lies
# constraints.txt comes first, by hand: the newest set that was tested, as `pip freeze` writes it without trntune itself.
set -euo pipefail
cd "$(dirname "$0")/.."
wheels=${1:?where torch-...+cpu-...whl lies}
compile() {
    uv pip compile pyproject.toml --extra test --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
        --no-annotate --no-header -q "$@"
}

# What pyproject.toml names itself is taken at its lowest version, but for torch and for what isn't used by a run.
tools='boto3|botocore|cfn-lint|moto|mypy|pytest|pytest-timeout|pytest-xdist|ruff|selenium|torch|types-psutil|types-PyYAML'
write_lowest() {
    local tested
    tested=$(mktemp)
    grep -E "^($tools)==" constraints.txt >"$tested"
    echo 'SQLAlchemy<2.1' >>"$tested" # mlflow 3.7 allows 2.1, and imports what it no longer has
    grep '^#' constraints-neuron.txt
    compile --extra neuron --resolution lowest-direct -c "$tested" --find-links "$wheels" |
        sed -E 's/\+cpu$//; /^(-|nvidia-|cuda-|triton=)/d'
    rm "$tested"
}
lowest=$(write_lowest)
echo "$lowest" >constraints-neuron.txt

compile --generate-hashes -c constraints.txt --find-links "$wheels" -o requirements-cpu.lock
compile --generate-hashes -c constraints.txt -o requirements-cuda.lock
compile --generate-hashes -c constraints-neuron.txt --find-links "$wheels" --extra neuron -o requirements-neuron.lock
