#!/usr/bin/env bash
# CMU AN4: 948 training and 130 test utterances, sets as in ESPnet's recipe. Where the corpus is: db.sh, or
#   ./run.sh --an4_root /corpora/an4
set -euo pipefail
cd "$(dirname "$0")"

exec ./asr_ee.sh \
    --train_set train_nodev \
    --valid_set train_dev \
    --test_sets "train_dev test" \
    --speed_perturb_factors "0.9 1.0 1.1" \
    --token_type char \
    --feats_normalize config \
    --asr_config conf/train_ee_fast_conformer.yaml \
    --train_threads "${OMP_NUM_THREADS:-2}" \
    --command "./run.sh ${*@Q}" \
    "$@"
