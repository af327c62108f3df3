#!/usr/bin/env bash
# Makes the Kaldi data directories of AN4: train_nodev, train_dev, test.
set -euo pipefail

# begin options
datadir=data # [-] where the data directories go
nj=1         # [-] taken for uniformity; there is nothing to do in parallel
an4_root=""  # [1 2 3 AN4] the unpacked corpus (its folder holds etc/ and wav/); empty: AN4 in db.sh
# end options

. utils/parse_options.sh
parse_options "$@"
. ./path.sh
. ./db.sh

an4_root=${an4_root:-${AN4}}
if [ -z "${an4_root}" ]; then
    echo "local/data.sh: error: where is AN4? Set AN4 in db.sh, or give --an4_root DIR" >&2
    exit 1
fi
: "${nj}"
"${ESPNET_EE_PYTHON}" -m espnet_ee.cli data prepare --corpus an4 --root "${an4_root}" --out "${datadir}"
