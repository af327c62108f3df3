#!/usr/bin/env bash
# Installs what the tests need (tools/install.sh --extras dev), checks every shell script, runs the tests.
set -euo pipefail

if [ "${1:-}" = -h ] || [ "${1:-}" = --help ]; then
    echo "Usage: [PYTHON=python3.12] tools/test.sh [pytest arguments]"
    exit 0
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/install.sh --extras dev
bin=$(bash tools/install.sh --print)/bin

# The models of the tests are tiny: more threads cost more than they give.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export PATH=${bin}:${PATH}
# The recipes of the tests run in this environment, too.
export ESPNET_EE_PYTHON=${bin}/python

find . -name '*.sh' -type f -not -path './tools/venv*' -not -path './.git/*' -print0 | xargs -0 shellcheck .ci/run
"${bin}/python" -m pytest "$@" </dev/null
