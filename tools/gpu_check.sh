#!/usr/bin/env bash
# What needs a GPU, in parts that fit where one is there for some minutes: throughput and memory of training, and the ablations of AN4 and train-clean-5.
# Every part is one command that ends in time; what was trained stays in the recipes' folders and goes on when called again.
set -euo pipefail

usage() {
    cat <<EOF
Usage: $0 PART [options]
  bench                                  throughput in bf16 and float32, and memory by the size of the batch
  an4 --an4_root DIR [words]             the rows of egs/an4/asr1/local/ablation.yaml
  librispeech --librispeech_root DIR [words]   the rows of egs/librispeech/asr1/local/ablation_5h.yaml
  collect --out DIR                      tables, evidence, configurations and logs of both as one archive
Words go to tools/ablation.py (--jobs N --seconds S --rows NAME ...). Without a GPU set NGPU=0 (and --inference_device cpu in the rows).
ESPNET_EE_PYTHON names the interpreter.
EOF
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${ESPNET_EE_PYTHON:-python3}
export PYTHONPATH=${PWD}${PYTHONPATH:+:${PYTHONPATH}} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHONUTF8=1
part=${1:-}
[ $# -eq 0 ] || shift

ablation() { # ablation TABLE ROOT_OPTION ROOT [words]
    local table=$1 option=$2 root=$3
    shift 3
    "${python}" tools/ablation.py "${table}" "$@" -- "${option}" "${root}" --ngpu "${NGPU:-1}" --nj "$(nproc --all)"  # nproc alone says OMP_NUM_THREADS
}

case ${part} in
    bench)
        "${python}" -c 'import torch; print(torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")'
        configs=(egs/librispeech/asr1/conf/train_ee_{conformer,fast_conformer}.yaml)
        "${python}" tools/bench_training.py "${configs[@]}" --bf16 "$@"
        "${python}" tools/bench_training.py "${configs[@]}" "$@"
        ;;
    an4)
        [ "${1:-}" = --an4_root ] || { usage >&2 && exit 2; }
        ablation egs/an4/asr1/local/ablation.yaml "$@"
        ;;
    librispeech)
        [ "${1:-}" = --librispeech_root ] || { usage >&2 && exit 2; }
        ablation egs/librispeech/asr1/local/ablation_5h.yaml "$@"
        ;;
    collect)
        [ "${1:-}" = --out ] && [ $# -eq 2 ] || { usage >&2 && exit 2; }
        mkdir -p "$2"
        find egs/*/asr1 -path '*exp_ablation*' \( -name RESULTS.md -o -name exits.csv -o -name evidence.tsv -o -name 'train*.log' -o -name 'ablation_*.log' \
            -o -name config.yaml -o -name decode.yaml -o -name train_time.yaml \) -print0 | tar -czf "$2/results.tar.gz" --null -T -
        ;;
    *)
        usage >&2
        exit 2
        ;;
esac
