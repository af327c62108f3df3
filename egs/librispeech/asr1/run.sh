#!/usr/bin/env bash
# LibriSpeech, 960 h, sets as in ESPnet's recipe. Where the corpus is: db.sh, or
#   ./run.sh --librispeech_root /corpora/LibriSpeech
# Without either it is downloaded. Smaller: --train_set train_clean_100 --asr_config conf/train_ee_conformer_100h.yaml
set -euo pipefail
cd "$(dirname "$0")"

exec ./asr_ee.sh \
    --train_set train_960 \
    --valid_set dev \
    --test_sets "test_clean test_other dev_clean dev_other" \
    --speed_perturb_factors "0.9 1.0 1.1" \
    --speed_perturb on_the_fly \
    --max_wav_duration 30 \
    --token_type bpe \
    --nbpe 500 \
    --asr_config conf/train_ee_fast_conformer.yaml \
    --command "./run.sh ${*@Q}" \
    "$@"
