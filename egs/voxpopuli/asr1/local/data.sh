#!/usr/bin/env bash
# Makes the Kaldi data directories of VoxPopuli in English: train, dev, test.
set -euo pipefail

# begin options
datadir=data      # [-] where the data directories go
nj=1              # [-] taken for uniformity; there is nothing to do in parallel
sets="train dev test" # [1] sets to make
max_skipped=1     # [1] percentage of the training utterances that may be left out because they have no text
voxpopuli_root="" # [1 2 3 VOXPOPULI] the folder that holds transcribed_data/; empty: VOXPOPULI in db.sh
# end options

. utils/parse_options.sh
parse_options "$@"
. ./path.sh
. ./db.sh
: "${nj}"

voxpopuli_root=${voxpopuli_root:-${VOXPOPULI}}
if [ -z "${voxpopuli_root}" ]; then
    echo "local/data.sh: error: where is VoxPopuli? Set VOXPOPULI in db.sh, or give --voxpopuli_root DIR" >&2
    exit 1
fi
read -ra set_list <<<"${sets}"
"${ESPNET_EE_PYTHON}" -m espnet_ee.cli data prepare --corpus voxpopuli --root "${voxpopuli_root}" --out "${datadir}" \
    --sets "${set_list[@]}" --max_skipped "${max_skipped}" --skip_in train
