#!/usr/bin/env bash
# The baselines: for each depth a model of its own with one exit, after its last block; else as the recipe has it. All other
# options are those of run.sh, such as
#   local/run_depths.sh --depths "2 4 6" --ngpu 1
# Their experiments are called as that of all exits, with _depth2 and so on behind it.
set -euo pipefail
cd "$(dirname "$0")/.."
# The parser reads this file again, so its name must hold in the recipe's folder. (By itself exec makes an absolute path of it.)
[ "$0" = local/run_depths.sh ] || exec bash local/run_depths.sh "$@"

# begin options
depths=""   # [-] numbers of blocks, separated by blanks; empty: the configuration's exits
python=""   # [-] interpreter with all dependencies; empty: the environment that tools/install.sh makes
# end options

. utils/run_settings.sh
read -ra asr_args <<<"$(setting asr_args)"
# shellcheck disable=SC2119  # no further options
exp=$(experiment)
trainings=$("${ESPNET_EE_PYTHON}" utils/one_exit.py "$(setting asr_config)" "$(setting inference_asr_model)" "${depths}" \
    ${asr_args[@]+"${asr_args[@]}"})

# In braces: bash reads all of it before it runs any of it, so editing this file does no harm to a running training.
{
    experiments=""
    while IFS=$'\t' read -r depth words model; do
        echo "run_depths.sh: depth ${depth}: ${exp}_depth${depth}"
        ./run.sh ${options[@]+"${options[@]}"} --asr_exp "${exp}_depth${depth}" --asr_args "${words}" \
            ${model:+--inference_asr_model "${model}"} </dev/null
        experiments+="${experiments:+ }${exp}_depth${depth}"
    done <<<"${trainings}"
    echo "run_depths.sh: to see them in the curve of all exits: ./run.sh --stage 13 --separate_exps \"${experiments}\""
    exit 0
}
