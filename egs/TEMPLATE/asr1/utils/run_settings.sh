#!/usr/bin/env bash
# For scripts that call run.sh several times: sourced, with their arguments, after their own options. Options that are not theirs
# are run.sh's and stand in the array options.
# shellcheck disable=SC2154  # python is an option of the script

. utils/parse_options.sh
option_files=(asr_ee.sh local/data.sh)
parse_options "$@"
if [ -n "${python}" ]; then export ESPNET_EE_PYTHON=${python}; fi
. ./path.sh
options=(${forwarded_options[@]+"${forwarded_options[@]}"})
run_settings=$(./run.sh ${options[@]+"${options[@]}"} --settings)

# setting NAME: what run.sh makes of an option.
setting() { sed -n "s/^\[[^]]*\] $1=//p" <<<"${run_settings}"; }

# experiment WORD...: the folder that run.sh makes with these options, too.
experiment() { ./run.sh ${options[@]+"${options[@]}"} "$@" --show_exp true </dev/null; }
