#!/usr/bin/env bash
# Makes the embedded corpus and its Kaldi data directories.
set -euo pipefail

# begin options
datadir=data              # [-] where the data directories go
nj=2                      # [-] parallel processes
utterances_per_speaker="" # [1 2 3] size of the corpus; empty: as espnet-ee data mini says
seed=""                   # [1 2 3] seed of the corpus; empty: as espnet-ee data mini says
# end options

. utils/parse_options.sh
parse_options "$@"
. ./path.sh

corpus=${datadir}/local/corpus
"${ESPNET_EE_PYTHON}" -m espnet_ee.cli data mini --out "${corpus}" --nj "${nj}" \
    ${utterances_per_speaker:+--utterances_per_speaker "${utterances_per_speaker}"} ${seed:+--seed "${seed}"}
"${ESPNET_EE_PYTHON}" -m espnet_ee.cli data prepare --corpus mini --root "${corpus}" --out "${datadir}"
