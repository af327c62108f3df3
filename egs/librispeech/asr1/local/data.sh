#!/usr/bin/env bash
# Makes the Kaldi data directories of LibriSpeech, under ESPnet's names. What is missing is downloaded if no root is given.
set -euo pipefail

# begin options
datadir=data                          # [-] where the data directories go
nj=1                                  # [-] taken for uniformity; there is nothing to do in parallel
sets="train_960 dev test_clean test_other" # [1] sets to make: PART, a joined set (train_460, train_960, dev), NAME=PART+PART
hold_out=0                            # [1] this many readers of the training set become the sets dev and test
librispeech_root=""                   # [1 2 3 LIBRISPEECH] the unpacked corpus; empty: LIBRISPEECH in db.sh, or download it
download_dir=downloads                # [1] where to download to
download_url=""                       # [-] a mirror of openslr.org's resources; empty: openslr.org
# end options

. utils/parse_options.sh
parse_options "$@"
require_integer hold_out
. ./path.sh
. ./db.sh
: "${nj}"

read -ra set_list <<<"${sets}"
root=${librispeech_root:-${LIBRISPEECH}}
if [ -z "${root}" ]; then
    root=${download_dir}
    "${ESPNET_EE_PYTHON}" -m espnet_ee.cli data download --out "${root}" --parts "${set_list[@]}" \
        --hold_out "${hold_out}" ${download_url:+--url "${download_url}"}
fi
"${ESPNET_EE_PYTHON}" -m espnet_ee.cli data prepare --corpus librispeech --root "${root}" --out "${datadir}" \
    --sets "${set_list[@]}" --corpus_options "hold_out=${hold_out}"
