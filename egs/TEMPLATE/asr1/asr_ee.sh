#!/usr/bin/env bash
# The early-exit recipe in stages, numbered as in ESPnet's asr.sh where the work is the same. Run it through a run.sh.
set -euo pipefail

# begin options
stage=1                    # first stage to run
stop_stage=100             # last stage to run
ngpu=0                     # number of GPUs for training, on each node; 0: CPU
num_nodes=1                # nodes for training; more than 1: by ESPnet's launcher (backend slurm in cmd.sh)
nj=4                       # parallel processes of the data stages and of stage 10
inference_nj=1             # decodings that run at once (more than 1 disturbs the measured times)
python=""                  # interpreter with all dependencies; empty: the environment that tools/install.sh makes
train_set=""               # name of the training set (a folder under datadir)
valid_set=""               # name of the development set
test_sets=""               # names of the sets to score, separated by blanks
datadir=data               # Kaldi data directories
dumpdir=dump               # formatted audio or extracted features
expdir=exp                 # statistics, models, results
local_data_opts=""         # options for local/data.sh, separated by blanks
speed_perturb_factors=""   # such as "0.9 1.0 1.1"; empty: none
speed_perturb=stored       # stored: stage 2 writes all speeds; on_the_fly: training draws one each time (feats_type raw)
feats_type=raw             # raw: features are computed on the fly; extracted: they are stored
feats_compress=false       # true: stored features take 8 bits a value instead of 32 (not exact any more)
max_skipped=1              # percentage of broken training utterances that may be left out; never of other sets
fs=16000                   # sampling rate in Hz
min_wav_duration=0.1       # shorter training utterances are dropped (seconds)
max_wav_duration=20        # longer training utterances are dropped (seconds)
token_type=char            # char or bpe
nbpe=30                    # number of BPE tokens
bpemode=unigram            # unigram or bpe
asr_config=""              # training configuration (YAML)
asr_args=""                # further options for ESPnet's asr_train, separated by blanks, such as "--max_epoch 10"
asr_tag=""                 # name of the experiment; empty: made from the configuration
asr_exp=""                 # folder of the experiment; empty: expdir/asr_TAG
asr_stats_dir=""           # folder of the statistics; empty: under expdir
feats_normalize=global_mvn # global_mvn: normalise by the training set's statistics; config: as the configuration says
seed=""                    # seed of the training; empty: as the configuration says
inference_configs=""       # decoding configurations (YAML), each run online, separated by blanks
inference_asr_model=valid.loss.ave.pth # model file to decode with
batch_size=1               # utterances decoded at once when every exit is kept
num_threads=""             # threads of a decoding; empty: as its configuration says, or 1
calibrate_policies="entropy confidence patience learned" # exit policies that stage 14 calibrates, separated by blanks
calibrate_targets="wer_loss=1 wer_loss=5 wer_loss=10 mean_layer=6" # what they are to meet on valid_set; also macs_per_second=X
results_dir=""             # folder that gets copies of RESULTS.md, POLICIES.md, their tables and pictures; empty: none
separate_exps=""           # scored experiments of separately trained depths, for the curve, separated by blanks
pack_name=""               # stage 15: name of the package, owner/model on the hub; empty: the experiment's
pack_licence=other         # stage 15: licence of the package, as the hub names it
pack_data=""               # stage 15: what the model was trained on, one line; empty: the training set's name
command=""                 # the command line that RESULTS.md shows
note=""                    # a remark for RESULTS.md
# end options

. utils/parse_options.sh
. utils/stage.sh
. utils/cluster.sh
# The corpus' own options (such as --an4_root) may be given here.
if [ -f local/data.sh ]; then option_files=(local/data.sh); fi
all_arguments=("$@") # for the tasks of job arrays
parse_options "$@"

require_integer stage stop_stage ngpu num_nodes nj inference_nj fs nbpe batch_size ${num_threads:+num_threads}
require_percentage max_skipped
require_choice feats_type raw extracted
require_choice feats_compress true false
require_choice speed_perturb stored on_the_fly
require_choice token_type char bpe
require_choice bpemode unigram bpe
require_choice feats_normalize global_mvn config
for name in train_set valid_set test_sets; do
    [ -n "${!name}" ] || usage_error "option '--${name}' is needed"
done

# Names are made by adding to these: with a closing slash, FOLDER.tmp would lie in the folder.
for name in datadir dumpdir expdir asr_exp asr_stats_dir results_dir; do
    while [[ ${!name} == ?*/ ]]; do printf -v "${name}" '%s' "${!name%/}"; done
done
for name in datadir dumpdir expdir; do
    [[ ${!name} != *,* ]] || usage_error "option '--${name}': ESPnet takes no comma in a path"
done
read -ra factor_list <<<"${speed_perturb_factors}"
for factor in ${factor_list[@]+"${factor_list[@]}"}; do
    [[ ${factor} =~ ^[0-9]+(\.[0-9]+)?$ && ${factor} == *[1-9]* ]] ||
        usage_error "option '--speed_perturb_factors': '${factor}' is not a factor such as 0.9"
done
if [ "${speed_perturb}" = on_the_fly ] && [ -n "${speed_perturb_factors}" ] && [ "${feats_type}" = extracted ]; then
    usage_error "stored features have no speed to perturb: give '--speed_perturb stored' with '--feats_type extracted'"
fi

if [ -n "${python}" ]; then export ESPNET_EE_PYTHON=${python}; fi
. ./path.sh
. ./cmd.sh
python=${ESPNET_EE_PYTHON}
# Words separated by blanks become arrays, without wildcards or quotes being given a meaning.
read -ra test_list <<<"${test_sets}"
read -ra inference_list <<<"${inference_configs}"
read -ra extra_args <<<"${asr_args}"
read -ra local_args <<<"${local_data_opts}"
local_args+=(${forwarded_options[@]+"${forwarded_options[@]}"})
set_commands
data_run=(${data_words[@]+"${data_words[@]}"} "${python}" -m)
asr_train=("${python}" -m espnet_ee -m espnet2.bin.asr_train)
stats_run=(${train_words[@]+"${train_words[@]}"} "${asr_train[@]}")
train_run=(${train_words[@]+"${train_words[@]}"} ${gpu_words[@]+"${gpu_words[@]}"} "${asr_train[@]}")
decode_run=(${decode_words[@]+"${decode_words[@]}"} "${python}" -m espnet_ee.bin.asr_inference)

# Names that follow from the options.
data_feats=${dumpdir}/${feats_type}
suffix=${feats_type}_${token_type}
token_dir=${datadir}/token_list/${token_type}
if [ "${token_type}" = bpe ]; then
    suffix="${suffix}${nbpe}"
    token_dir="${token_dir}_${bpemode}${nbpe}"
fi
token_list=${token_dir}/tokens.txt
raw_train=${train_set}
stored_factors=${speed_perturb_factors}
fly_factors=""
if [ "${speed_perturb}" = on_the_fly ]; then
    stored_factors=""
    fly_factors=${speed_perturb_factors}
fi
if [ -n "${stored_factors}" ]; then
    train_set+=_sp
    suffix+=_sp
fi
if [ -z "${asr_tag}" ]; then
    asr_tag=train
    if [ -n "${asr_config}" ]; then asr_tag=$(basename "${asr_config}" .yaml); fi
    asr_tag+=_${suffix}${fly_factors:+_sp}
    # As in ESPnet: further options become part of the name.
    if [ -n "${asr_args}" ]; then asr_tag+=$(sed -e 's/--/_/g' -e 's/[^A-Za-z0-9_.,+-]//g' <<<"${asr_args}"); fi
fi
asr_exp=${asr_exp:-${expdir}/asr_${asr_tag}}
asr_stats_dir=${asr_stats_dir:-${expdir}/asr_stats_${suffix}}
model_args=(--asr_train_config "${asr_exp}/config.yaml" --asr_model_file "${asr_exp}/${inference_asr_model}")
raw_sets=("${train_set}" "${valid_set}") # what stage 3 formats
eval_sets=("${valid_set}")                # what stages 12 and 13 take
for name in "${test_list[@]}"; do
    if [ "${name}" != "${valid_set}" ]; then
        raw_sets+=("${name}")
        eval_sets+=("${name}")
    fi
done

# Stage 4 filters the folder of the training set, and no set that is scored may be filtered. (With stored speeds the folder
# has a name of its own, and the raw set can be scored.)
for name in "${eval_sets[@]}"; do
    [ "${name}" != "${train_set}" ] ||
        usage_error "'${name}' is the training set, which stage 4 filters: to score it, give a copy of ${datadir}/${name} another name"
done

# What stage 1 makes follows from these, too; a recipe's local/data.sh gets those of them that it declares.
data_args=()
add_data_arg() {
    if [ -f local/data.sh ] && [[ " $(option_names local/data.sh)" == *" $1 "* ]]; then data_args+=("--$1=$2"); fi
}
add_data_arg sets "$(printf '%s\n' "${raw_train}" "${eval_sets[@]}" | awk '!seen[$0]++' | paste -s -d ' ' -)"
add_data_arg max_skipped "${max_skipped}"

# in_stage N: is this stage to be run?
in_stage() { [ "${stage}" -le "$1" ] && [ "${stop_stage}" -ge "$1" ]; }

# data_files DIR...: the tables and marks by which a change of a data directory is noticed.
data_files() {
    local dir
    for dir in "$@"; do
        printf '%s\n' "${dir}/.done" "${dir}/wav.scp" "${dir}/feats.scp" "${dir}/text" "${dir}/utt2spk"
        if [ -f "${dir}/segments" ]; then printf '%s\n' "${dir}/segments"; fi
    done
}

# need FILE STAGE: the input of a stage must be there.
need() {
    if [ ! -e "$1" ]; then
        echo "asr_ee.sh: error: $1 is missing; run stage $2 first" >&2
        exit 1
    fi
}

# need_model: the model of stages 12 and 15; where stage 11 has made others, it is the option that is wrong.
need_model() {
    local model=${asr_exp}/${inference_asr_model} file made=""
    for file in "${asr_exp}"/*.pth; do
        # ESPnet's checkpoint.pth is for going on with the training.
        if [ -e "${file}" ] && [ "${file##*/}" != checkpoint.pth ]; then made+=" ${file##*/}"; fi
    done
    if [ ! -e "${model}" ] && [ -n "${made}" ]; then
        usage_error "${model} is missing; for '--inference_asr_model' stage 11 has made so far:${made}"
    fi
    need "${model}" 11
}

# need_decoding MARK: a decoding of stage 12 by the model of '--inference_asr_model' (where that is gone, by any).
need_decoding() {
    local model=${asr_exp}/${inference_asr_model}
    need "$1" 12
    if [ -f "${model}" ] && ! grep -qF -- "$(cksum <"${model}") " "$1"; then
        echo "asr_ee.sh: error: $(dirname "$1") was decoded with another model than ${model}; run stage 12 first" >&2
        exit 1
    fi
}

for file in ${asr_config:+"${asr_config}"} ${inference_list[@]+"${inference_list[@]}"}; do
    [ -f "${file}" ] || usage_error "no such file: ${file}"
done
# A decoding's folder is called as its configuration: two of one name would overwrite each other.
all_exits_tag=decode_all_exits # of the decoding that keeps every exit
decode_tags=()                 # of those by inference_configs
for file in ${inference_list[@]+"${inference_list[@]}"}; do
    name=$(basename "${file}" .yaml)
    [[ " ${all_exits_tag} ${decode_tags[*]-} " != *" ${name} "* ]] || usage_error "the name '${name}' of ${file} is taken: rename the file"
    decode_tags+=("${name}")
done

# Two lines of the training configuration (JSON is YAML): the frontend at this rate, which features depend on, and what else
# the statistics depend on, "-" if it says nothing of that. (ESPnet collects them without noise, reverberation and the like.)
frontend_and_preprocessing() {
    "${python}" - "${fs}" ${asr_config:+"${asr_config}"} <<'PY'
import json, sys
from espnet_ee.errors import UserError, run
from espnet_ee.files import read_yaml

PREPROCESSING = ("preprocessor", "preprocessor_conf", "speech_volume_normalize", "cleaner", "g2p", "non_linguistic_symbols",
                 "use_lang_prompt", "use_nlp_prompt", "aux_ctc_tasks", "input_size")

def main():
    config, conf = {}, {}
    for path in sys.argv[2:]:
        config = read_yaml(path, "give another --asr_config", allow_empty=True)
        conf = config.get("frontend_conf") or {}
        if not isinstance(conf, dict):
            raise UserError(f"{path}: its frontend_conf must be 'key: value' lines")
    conf = {**conf, "fs": int(sys.argv[1])}
    print(json.dumps({"frontend": config.get("frontend") or "default", "frontend_conf": conf}, sort_keys=True))
    preprocessing = {key: config[key] for key in PREPROCESSING if config.get(key) is not None}
    print(json.dumps(preprocessing, sort_keys=True, default=str) if preprocessing else "-")

sys.argv[0] = "asr_ee.sh"
run(main)
PY
}
config_lines=$(frontend_and_preprocessing)
{ read -r frontend && read -r preprocessing; } <<<"${config_lines}"

. utils/stages_data.sh
. utils/stages_train.sh
. utils/stages_decode.sh
. utils/stages_share.sh

# In braces: bash reads all of it before it runs any of it, so editing this file does no harm to a running pipeline.
{
    if in_stage 1; then prepare_data; fi
    if in_stage 2; then perturb_speed; fi
    if in_stage 3; then run_jobs 3 1 "${slurm_data_opts}" "${dumpdir}/log" format_set "${raw_sets[@]}"; fi
    if in_stage 4; then
        filter_train
        filter_valid
    fi
    if in_stage 5; then make_tokens; fi
    if in_stage 10; then collect_statistics; fi
    if in_stage 11; then train_model; fi
    if in_stage 12; then decode_sets; fi
    if in_stage 13; then score_sets; fi
    if in_stage 14; then calibrate_on_valid_set; fi
    if in_stage 15; then pack_model; fi
    log "finished, stages ${stage} to $((stop_stage < 15 ? stop_stage : 15))"
    exit 0
}
