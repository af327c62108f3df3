#!/usr/bin/env bash
# Installs what the tests need (tools/install.sh --dev), checks the shell scripts, style and types, runs doctests and tests.
set -euo pipefail

if [ "${1:-}" = -h ] || [ "${1:-}" = --help ]; then
    cat <<EOF
Usage: [PYTHON=python3.12] $0 [pytest arguments]
  $0                      everything
  $0 -m "not process"     without the tests that start many processes, in minutes
  $0 tests/policy -k max  one room's, one word's
EOF
    exit 0
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/install.sh --dev
bin=$(bash tools/install.sh --print)/bin

# The models of the tests are tiny: more threads cost more than they give.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export PATH=${bin}:${PATH}
# The recipes of the tests run in this environment, too.
export ESPNET_EE_PYTHON=${bin}/python

find . -name '*.sh' -type f -not -path './tools/venv*' -not -path './.git/*' -print0 | xargs -0 shellcheck .ci/run
ruff check --quiet .
ruff format --check --quiet .
mypy
# Two processes at a time; the tests of a file stay together, for they share what their fixtures make.
python -m pytest -n 2 --dist loadfile "$@" </dev/null
