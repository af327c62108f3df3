#!/usr/bin/env bash
# Makes the embedded corpus and its Kaldi data directories.
set -euo pipefail

# begin options
datadir=data              # where the data directories go
nj=2                      # parallel processes
utterances_per_speaker="" # size of the corpus; empty: as make_mini_corpus says
seed=""                   # seed of the corpus; empty: as make_mini_corpus says
# end options

. utils/parse_options.sh
parse_options "$@"
. ./path.sh

corpus=${datadir}/local/corpus
"${ESPNET_EE_PYTHON}" -m espnet_ee.bin.make_mini_corpus --out "${corpus}" --nj "${nj}" \
    ${utterances_per_speaker:+--utterances_per_speaker "${utterances_per_speaker}"} ${seed:+--seed "${seed}"}
"${ESPNET_EE_PYTHON}" -m espnet_ee.bin.prepare_data --corpus mini --corpus_root "${corpus}" --out "${datadir}"
