#!/usr/bin/env bash
# The baselines: a model trained for each depth alone, with one exit, after its last block. Options are those of run.sh, such as
#   local/run_depths.sh --librispeech_root /corpora/LibriSpeech --ngpu 1
# Then: ./run.sh --separate_exps "exp/asr_depth2 exp/asr_depth4 ..."
set -euo pipefail

for depth in ${DEPTHS:-2 4 6 8 10 12}; do
    "$(dirname "$0")/../run.sh" "$@" --asr_tag "depth${depth}" \
        --asr_args "--encoder_conf num_blocks=${depth} --encoder_conf exit_layers=[${depth}]"
done
