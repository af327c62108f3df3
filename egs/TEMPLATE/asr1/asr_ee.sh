#!/usr/bin/env bash
# The early-exit recipe in stages, numbered as in ESPnet's asr.sh where the work is the same. Run it through a run.sh.
set -euo pipefail

# In the brackets: the stages whose output an option changes (utils/parse_options.sh).
# begin options
stage=1                    # [-] first stage to run
stop_stage=100             # [-] last stage to run
ngpu=0                     # [-] number of GPUs for training, on each node; 0: CPU
num_nodes=1                # [-] nodes for training; more than 1: started by train_cmd in cmd.sh
train_threads=""           # [-] threads of a training without a GPU; empty: OMP_NUM_THREADS, else 1
nj=4                       # [-] parallel processes of the data stages and of stage 10
python=""                  # [-] interpreter with all dependencies; empty: the environment that tools/install.sh makes
train_set=""               # [1* 14*] name of the training set (a folder under datadir)
valid_set=""               # [1* 12 13] name of the development set
test_sets=""               # [1* 12* 13*] names of the sets to score, separated by blanks
datadir=data               # [-] Kaldi data directories
dumpdir=dump               # [-] formatted audio or extracted features
expdir=exp                 # [-] statistics, models, results
local_data_opts=""         # [1*] options for local/data.sh, separated by blanks
speed_perturb_factors=""   # [2* 11*] such as "0.9 1.0 1.1"; empty: none
speed_perturb=stored       # [2* 11*] stored: stage 2 writes all speeds; on_the_fly: training draws one each time (feats_type raw)
feats_type=raw             # [3 10 11] raw: features are computed on the fly; extracted: they are stored
feats_compress=false       # [3*] true: stored features take 8 bits a value instead of 32 (not exact any more)
max_skipped=1              # [1* 2 3*] percentage of broken training utterances that may be left out; never of other sets
fs=16000                   # [3 4 10 11] sampling rate in Hz
min_wav_duration=0.1       # [4] shorter training utterances are dropped (seconds)
max_wav_duration=20        # [4] longer training utterances are dropped (seconds)
token_type=char            # [5 10 11] char or bpe
nbpe=30                    # [5*] number of BPE tokens
bpemode=unigram            # [5*] unigram or bpe
use_lm=false               # [9* 12* 14*] true: stage 9 makes an n-gram model of the tokens, and stage 12 searches a beam with it
lm_text=""                 # [9*] its text, of Kaldi's form (an id and a sentence a line); empty: the training set's
lm_order=""                # [9] its n, 2 to 5; empty: 5 of characters, 3 of BPE pieces
lm_dir=""                  # [-] its folder; empty: under expdir
beam_size=10               # [12*] with use_lm: hypotheses of the beam
asr_config=""              # [3* 10* 11*] training configuration (YAML)
asr_args=""                # [10* 11*] further options for ESPnet's asr_train, separated by blanks, such as "--max_epoch 10"
asr_tag=""                 # [-] name of the experiment; empty: made from the configuration
asr_exp=""                 # [-] folder of the experiment; empty: expdir/asr_TAG
asr_stats_dir=""           # [-] folder of the statistics; empty: under expdir
feats_normalize=global_mvn # [11] global_mvn: normalise by the training set's statistics; config: as the configuration says
seed=""                    # [11] seed of the training, then also in the experiment's name; empty: as the configuration says
inference_asr_model=""   # [12* 14*] model file to decode with; empty: the average by the first best_model_criterion of the development set
inference_configs=""       # [12* 14*] decoding configurations (YAML) to run online besides, separated by blanks
inference_device=cpu       # [12] where decoding computes, as torch calls it
search=""                  # [12] how texts are looked for, such as "kind=attention beam=5" (a model with decoders); empty: greedily
batch_size=""              # [12] utterances decoded together; empty: as the configuration says, or 1
num_threads=""             # [12] threads of a decoding; empty: as the configuration says, or 1
calibrate_policies="entropy confidence patience learned" # [12] exit policies that stage 12 calibrates, separated by blanks
calibrate_targets="wer_loss=1 wer_loss=1@90 wer_loss=5 wer_loss=10 mean_layer=6" # [12 14*] what they are to meet on valid_set (@90: on new utterances, with 90 % confidence); also macs_per_second=X
online_policies=learned    # [12 14*] those whose calibrated configurations then run online, separated by blanks
results_dir=""             # [-] folder that gets copies of RESULTS.md, exits.csv and curve.png; empty: none
separate_exps=""           # [13*] scored experiments of separately trained depths, for the curve, separated by blanks
pack_name=""               # [14*] name of the package, owner/model on the hub; empty: the experiment's
pack_licence=other         # [14] licence of the package, as the hub names it
pack_data=""               # [14*] what the model was trained on, one line; empty: the training set's name
upload_to=""               # [15] owner/model on the hub that gets the package; empty: stage 15 says how
show_exp=false             # [-] true: print the folder of the experiment that these options make, and do nothing
command=""                 # [-] the command line that RESULTS.md shows
note=""                    # [13] a remark for RESULTS.md
# end options

. utils/parse_options.sh
. utils/stage.sh
# The corpus' own options (such as --an4_root) may be given here.
if [ -f local/data.sh ]; then option_files=(local/data.sh); fi
parse_options "$@"

require_integer stage stop_stage ngpu num_nodes nj fs nbpe beam_size ${lm_order:+lm_order} ${batch_size:+batch_size} ${num_threads:+num_threads} ${train_threads:+train_threads} ${seed:+seed}
[ "${stage}" -le "${stop_stage}" ] || usage_error "'--stage ${stage}' comes after '--stop_stage ${stop_stage}': there is nothing to do"
[ "${stage}" -lt 6 ] || [ "${stop_stage}" -gt 8 ] ||
    usage_error "there are no stages 6 to 8, ESPnet's of a neural language model: that of stage 9 is an n-gram model ('--use_lm true')"
require_percentage max_skipped
require_choice feats_type raw extracted
require_choice feats_compress true false
require_choice use_lm true false
require_choice speed_perturb stored on_the_fly
require_choice token_type char bpe
require_choice bpemode unigram bpe
require_choice feats_normalize global_mvn config
require_choice show_exp true false
# An empty folder would be that of the whole machine.
for name in train_set valid_set test_sets datadir dumpdir expdir; do
    [[ ${!name} == *[![:space:]]* ]] || usage_error "option '--${name}' is needed"
done
for name in train_set valid_set test_sets; do
    [[ ${!name} != *[,/]* ]] || usage_error "option '--${name}': no comma or slash in '${!name}'; several are separated by blanks"
done
[[ ${asr_tag} != */* ]] || usage_error "option '--asr_tag': no slash in a name; '--asr_exp' is the folder"

# Names are made by adding to these: with a closing slash, FOLDER.tmp would lie in the folder.
for name in datadir dumpdir expdir asr_exp asr_stats_dir lm_dir results_dir; do
    while [[ ${!name} == ?*/ ]]; do printf -v "${name}" '%s' "${!name%/}"; done
    [[ ${!name} != *[[:cntrl:]]* ]] || usage_error "option '--${name}': no line ends or other control signs in a path"
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
lacks='import importlib.util as u; print(*(n for n in ("yaml", "torch", "espnet2", "soundfile") if u.find_spec(n) is None))'
if ! missing=$("${python}" -c "${lacks}" 2>/dev/null) || [ -n "${missing}" ]; then
    reason="does not run"
    if [ -n "${missing}" ]; then reason="lacks ${missing}"; fi
    usage_error "the interpreter ${python} ${reason}: name another by '--python', or none"
fi
# Words separated by blanks become arrays, without wildcards or quotes being given a meaning.
read -ra test_list <<<"${test_sets}"
read -ra inference_list <<<"${inference_configs}"
read -ra search_words <<<"${search}"
read -ra separate_list <<<"${separate_exps}"
read -ra calibration_words <<<"--policies ${calibrate_policies} --targets ${calibrate_targets} --online ${online_policies}"
read -ra extra_args <<<"${asr_args}"
read -ra local_args <<<"${local_data_opts}"
[ -f local/data.sh ] || [ -z "${local_args[*]-}" ] || usage_error "option '--local_data_opts': there is no local/data.sh to take '${local_data_opts}'"
local_args+=(${forwarded_options[@]+"${forwarded_options[@]}"})
read -ra data_words <<<"${data_cmd}"
read -ra train_words <<<"${train_cmd}"
read -ra decode_words <<<"${decode_cmd}"
if [ "${num_nodes}" -gt 1 ] && [ -z "${train_cmd}" ]; then
    usage_error "--num_nodes ${num_nodes} needs a train_cmd in cmd.sh that starts one task on each node"
fi
espnet_ee=("${python}" -m espnet_ee.cli)
data_run=(${data_words[@]+"${data_words[@]}"} "${espnet_ee[@]}" data)
decode_run=(${decode_words[@]+"${decode_words[@]}"} "${espnet_ee[@]}" decode)
asr_train=("${python}" -m espnet_ee -m espnet2.bin.asr_train)
stats_run=(${data_words[@]+"${data_words[@]}"} "${asr_train[@]}")
train_run=(${train_words[@]+"${train_words[@]}"} "${asr_train[@]}")

for file in ${asr_config:+"${asr_config}"} ${inference_list[@]+"${inference_list[@]}"}; do
    # Paths begin in the recipe's folder, wherever run.sh was called from.
    [ -f "${file}" ] || usage_error "no such file: $(realpath -m -- "${file}")"
done
config_lines=$("${python}" utils/identity.py "${fs}" "${feats_normalize}" "${asr_config}" ${extra_args[@]+"${extra_args[@]}"})
{
    read -r frontend
    read -r statistics_config
    read -r training_config
    read -r may_change
    read -r frames_config
    read -ra chosen_by
    read -r named_args || true
} <<<"${config_lines}"

# Names that follow from the options.
inference_asr_model=${inference_asr_model:-${chosen_by[0]}.ave.pth}
data_feats=${dumpdir}/${feats_type}
suffix=${feats_type}_${token_type}
token_dir=${datadir}/token_list/${token_type}
if [ "${token_type}" = bpe ]; then
    suffix="${suffix}${nbpe}"
    token_dir="${token_dir}_${bpemode}${nbpe}"
fi
token_list=${token_dir}/tokens.txt
raw_train=${train_set}
stored_factors=${factor_list[*]-}
fly_factors=""
if [ "${speed_perturb}" = on_the_fly ]; then
    fly_factors=${stored_factors}
    stored_factors=""
fi
if [ -n "${stored_factors}" ]; then
    train_set+=_sp
    suffix+=_sp
fi
if [ -z "${asr_tag}" ]; then
    asr_tag=train
    if [ -n "${asr_config}" ]; then asr_tag=$(basename "${asr_config}" .yaml); fi
    asr_tag+=_${suffix}${fly_factors:+_sp}
    # As in ESPnet: further options become part of the name; not those with which a training goes on.
    if [ -n "${named_args}" ]; then asr_tag+=$(sed -e 's/--/_/g' -e 's/[^A-Za-z0-9_.,+-]//g' <<<"${named_args}"); fi
    asr_tag+=${seed:+_seed${seed}}
fi
asr_exp=${asr_exp:-${expdir}/asr_${asr_tag}}
if "${show_exp}"; then
    echo "${asr_exp}"
    exit 0
fi
asr_stats_dir=${asr_stats_dir:-${expdir}/asr_stats_${suffix}}
lm_dir=${lm_dir:-${expdir}/lm_${token_dir##*/}${lm_order:+_${lm_order}gram}}
lm_file=${lm_dir}/lm.arpa
model_file=${asr_exp}/${inference_asr_model}
# What one stage replaces or locks is no other's.
declare -A used=()
for name in datadir dumpdir lm_dir asr_stats_dir asr_exp; do
    folder=$(realpath -m -- "${!name}")
    [ -z "${used[${folder}]-}" ] ||
        usage_error "options '--${used[${folder}]}' and '--${name}' are one folder, ${folder}; give each its own"
    used[${folder}]=${name}
done
raw_sets=("${train_set}" "${valid_set}") # what stage 3 formats
eval_sets=("${valid_set}")                # what stages 12 and 13 take
twice=$(printf '%s\n' "${test_list[@]}" | sort | uniq -d)
[ -z "${twice}" ] || usage_error "option '--test_sets': '${twice%%[[:space:]]*}' is named twice"
for name in "${test_list[@]}"; do
    [[ " ${eval_sets[*]} " != *" ${name} "* ]] || continue
    raw_sets+=("${name}")
    eval_sets+=("${name}")
done

# Stage 4 filters the folder of the training set, and no set that is scored may be filtered. (With stored speeds the folder
# has a name of its own, and the raw set can be scored.)
for name in "${eval_sets[@]}"; do
    [ "${name}" != "${train_set}" ] ||
        usage_error "'${name}' is the training set, which stage 4 filters: to score it, give a copy of ${datadir}/${name} another name"
done
# A decoding's folder is called as its configuration: two of one name would overwrite each other.
taken=" decode_every_exit "
for file in ${inference_list[@]+"${inference_list[@]}"}; do
    name=$(basename "${file}" .yaml)
    [[ ${taken} != *" ${name} "* ]] || usage_error "the name '${name}' of ${file} is taken: rename the file"
    taken+="${name} "
done

# What stage 1 makes follows from these, too; a recipe's local/data.sh gets those of them that it declares.
data_args=()
add_data_arg() {
    if [ -f local/data.sh ] && [[ " $(option_names local/data.sh)" == *" $1 "* ]]; then data_args+=("--$1=$2"); fi
}
add_data_arg sets "$(printf '%s\n' "${raw_train}" "${eval_sets[@]}" | awk '!seen[$0]++' | paste -s -d ' ' -)"
add_data_arg max_skipped "${max_skipped}"

# in_stage N [M]: is this stage, or one of those up to M, to be run?
in_stage() { [ "${stage}" -le "${2:-$1}" ] && [ "${stop_stage}" -ge "$1" ]; }

# need FILE STAGE: the input of a stage must be there.
need() {
    [ -e "$1" ] || fail "$1 is missing; run stage $2 first"
}

# need_model: the model of stages 12 to 14; where stage 11 has made others, it is the option that is wrong.
need_model() {
    local file made=""
    for file in "${asr_exp}"/*.pth; do
        # ESPnet's checkpoint.pth is for going on with the training.
        if [ -e "${file}" ] && [ "${file##*/}" != checkpoint.pth ]; then made+=" ${file##*/}"; fi
    done
    if [ ! -e "${model_file}" ] && [ -n "${made}" ]; then
        usage_error "${model_file} is missing; for '--inference_asr_model' stage 11 has made so far:${made}"
    fi
    need "${model_file}" 11
}

. utils/stages_data.sh
. utils/stages_lm.sh
. utils/stages_train.sh
. utils/stages_decode.sh
. utils/stages_share.sh

# What stage 12 would refuse is refused now, not hours later.
if in_stage 12; then "${python}" utils/calibration.py "${calibration_words[@]}"; fi

# In braces: bash reads all of it before it runs any of it, so editing this file does no harm to a running pipeline.
{
    trap explain_end EXIT
    if in_stage 1 5; then lock_folder "${datadir}" datadir; fi
    if in_stage 2 5; then lock_folder "${dumpdir}" dumpdir; fi
    if in_stage 1; then prepare_data; fi
    if in_stage 2; then perturb_speed; fi
    if in_stage 3; then
        for name in "${raw_sets[@]}"; do format_set "${name}"; done
    fi
    if in_stage 4; then
        filter_train
        filter_valid
    fi
    if in_stage 5; then
        compare_sets
        make_tokens
        check_units
    fi
    if in_stage 9 && [ "${use_lm}" != true ]; then
        log "stage 9: without '--use_lm true' there is nothing to do"
    elif in_stage 9; then
        lock_folder "${lm_dir}" lm_dir
        train_lm
    fi
    unlock_folders
    if in_stage 10; then
        lock_folder "${asr_stats_dir}" asr_stats_dir
        collect_statistics
        unlock_folders
    fi
    if in_stage 11 15; then lock_folder "${asr_exp}" asr_tag; fi
    if in_stage 11; then train_model; fi
    if in_stage 12; then decode_sets; fi
    if in_stage 13; then score_sets; fi
    if in_stage 14; then pack_model; fi
    if in_stage 15; then upload_package; fi
    log "finished, stages ${stage} to $((stop_stage < 15 ? stop_stage : 15))"
    exit 0
}
