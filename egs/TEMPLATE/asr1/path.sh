#!/usr/bin/env bash
# The environment of the recipes; to be sourced in the recipe's folder. Installs it on first use.
# ESPNET_EE_PYTHON names another interpreter that has all dependencies; nothing is installed then.
MAIN_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd -P)
if [ -z "${ESPNET_EE_PYTHON:-}" ]; then
    bash "${MAIN_ROOT}/tools/install.sh"
    venv=$(bash "${MAIN_ROOT}/tools/install.sh" --print)
    export ESPNET_EE_PYTHON=${venv}/bin/python3
    export PATH=${venv}/bin:${PATH}
fi
export MAIN_ROOT
export PYTHONPATH=${MAIN_ROOT}${PYTHONPATH:+:${PYTHONPATH}}
# Kaldi's tables are sorted as bytes; all text is UTF-8 whatever the locale.
export LC_ALL=C
export PYTHONUTF8=1
# As in ESPnet: several jobs share the machine, and on a busy one threads wait for each other. (For stage 11: --train_threads.)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
