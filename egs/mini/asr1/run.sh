#!/usr/bin/env bash
# The whole recipe on an embedded corpus: a check that everything works, in minutes on a CPU.
set -euo pipefail
cd "$(dirname "$0")"

exec ./asr_ee.sh \
    --train_set train \
    --valid_set dev \
    --test_sets "dev test" \
    --nj 2 \
    --token_type char \
    --feats_normalize config \
    --batch_size 8 \
    --asr_config conf/train_ee_fast_conformer.yaml \
    --train_threads "${OMP_NUM_THREADS:-2}" \
    --command "./run.sh ${*@Q}" \
    "$@"
