#!/usr/bin/env bash
# TED-LIUM 3, 452 h, legacy dev and test with all their segments. Where the corpus is: db.sh, or
#   ./run.sh --tedlium3_root /corpora/TEDLIUM_release-3         ./run.sh --release 2 --tedlium2_root /corpora/TEDLIUM_release2
set -euo pipefail
cd "$(dirname "$0")"

exec ./asr_ee.sh \
    --train_set train \
    --valid_set dev \
    --test_sets "test dev" \
    --speed_perturb_factors "0.9 1.0 1.1" \
    --speed_perturb on_the_fly \
    --max_wav_duration 30 \
    --token_type bpe \
    --nbpe 500 \
    --asr_config conf/train_ee_fast_conformer.yaml \
    --command "./run.sh ${*@Q}" \
    "$@"
