#!/usr/bin/env bash
# VoxPopuli, English, 543 h of transcribed speech, in its own sets. Where the corpus is: db.sh, or
#   ./run.sh --voxpopuli_root /corpora/voxpopuli
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
