#!/usr/bin/env bash
# Makes the Kaldi data directories of TED-LIUM 3 (or 2): train, dev, test, and the text for language models.
set -euo pipefail

# begin options
datadir=data      # [-] where the data directories go
nj=1              # [-] taken for uniformity; there is nothing to do in parallel
sets="train dev test" # [1] sets to make
max_skipped=1     # [1] percentage of the training segments that may be left out because their times are broken
release=3         # [1] 3 or 2
text_rules=plain  # [1] plain: the words that are spoken; espnet: the text of ESPnet's recipe, for comparison
lm_text=true      # [1] true: write the corpus' LM text to datadir/local/lm_train/train.txt
tedlium3_root=""  # [1 2 3 TEDLIUM3] the unpacked release 3; empty: TEDLIUM3 in db.sh
tedlium2_root=""  # [1 2 3 TEDLIUM2] the unpacked release 2; empty: TEDLIUM2 in db.sh
# end options

. utils/parse_options.sh
parse_options "$@"
require_choice release 2 3
require_choice text_rules plain espnet
require_choice lm_text true false
. ./path.sh
. ./db.sh
: "${nj}"

root=${tedlium3_root:-${TEDLIUM3}}
if [ "${release}" = 2 ]; then root=${tedlium2_root:-${TEDLIUM2}}; fi
if [ -z "${root}" ]; then
    echo "local/data.sh: error: where is TED-LIUM ${release}? Set TEDLIUM${release} in db.sh, or give --tedlium${release}_root DIR" >&2
    exit 1
fi
read -ra set_list <<<"${sets}"
lm_args=()
if [ "${lm_text}" = true ]; then lm_args=(--lm_text "${datadir}/local/lm_train/train.txt"); fi
"${ESPNET_EE_PYTHON}" -m espnet_ee.cli data prepare --corpus "tedlium${release}" --root "${root}" \
    --out "${datadir}" --sets "${set_list[@]}" --corpus_options "text_rules=${text_rules}" \
    --max_skipped "${max_skipped}" --skip_in train ${lm_args[@]+"${lm_args[@]}"}
