#!/usr/bin/env bash
# Stages 10 and 11 of asr_ee.sh (sourced by it: all names are its): statistics and training, both by ESPnet's asr_train.
# shellcheck disable=SC2154  # the options and names are asr_ee.sh's

# The development set as these stages take it: where it has empty transcripts, which ESPnet refuses, stage 4 has made a copy
# without them. Whatever is scored is the whole set.
training_valid_dir() {
    if awk 'NF < 2 { found = 1 } END { exit !found }' <"${data_feats}/${valid_set}/text"; then
        echo "${data_feats}/with_text/${valid_set}"
    else
        echo "${data_feats}/${valid_set}"
    fi
}

# Prints the name of a copy of the BPE model that stays as it is when stage 5 makes another for another training set: what
# config.yaml names must go on being what the model was trained with. (Not in asr_exp, which set_aside may rename.)
kept_bpe_model() {
    local made=${token_dir}/bpe.model kept
    kept=$(cksum <"${made}") || return
    kept=${token_dir}/kept${kept%% *}/bpe.model
    if [ ! -e "${kept}" ]; then
        # Renamed, for another experiment may be doing the same.
        { mkdir -p "${kept%/*}" && cp "${made}" "${kept}.$$" && mv "${kept}.$$" "${kept}"; } || return
    fi
    echo "${kept}"
}

# Sets common_args (an array): what ESPnet's asr_train gets in both stages.
set_common_args() {
    local train_dir=${data_feats}/${train_set} source bpemodel
    common_args=(--use_preprocessor true --token_type "${token_type}" --token_list "${token_list}" --ngpu "${ngpu}"
        --frontend_conf "fs=${fs}")
    if [ "${token_type}" = bpe ]; then
        bpemodel=$(kept_bpe_model) || return
        common_args+=(--bpemodel "${bpemodel}")
    fi
    if [ -n "${asr_config}" ]; then common_args+=(--config "${asr_config}"); fi
    if [ "${feats_type}" = raw ]; then
        source=wav.scp,speech,sound
    else
        # An input size means: no frontend, the input is features (of the frontend that the configuration describes).
        source=feats.scp,speech,kaldi_ark
        common_args+=(--input_size "$(<"${train_dir}/feats_dim")")
    fi
    common_args+=(
        --train_data_path_and_name_and_type "${train_dir}/${source}"
        --train_data_path_and_name_and_type "${train_dir}/text,text,text"
        --valid_data_path_and_name_and_type "${valid_dir}/${source}"
        --valid_data_path_and_name_and_type "${valid_dir}/text,text,text"
    )
}

# need_sets: what ESPnet is to read must be there, for it says so by a traceback; sets valid_dir.
need_sets() {
    local table=wav.scp name
    if [ "${feats_type}" = extracted ]; then table=feats.scp; fi
    for name in text "${table}"; do
        need "${data_feats}/${train_set}/${name}" 4
        need "${data_feats}/${valid_set}/${name}" 3
    done
    valid_dir=$(training_valid_dir)
    for name in text "${table}"; do need "${valid_dir}/${name}" 4; done
    for name in "${data_feats}/${train_set}" "${valid_dir}"; do
        is_heard "${name}" || fail "${name}/${table} names a file that is not there; run stage 3 first"
    done
}

# need_features: stored features must be those of the configuration's frontend; stage 3 may have stored another's.
need_features() {
    local content
    if [ "${feats_type}" != extracted ]; then return 0; fi
    for content in "${data_feats}/org/${train_set}/.content" "${data_feats}/${valid_set}/.content"; do
        if [ -f "${content}" ] && ! grep -qF -- "${frontend} compressed=" "${content}"; then
            fail "${content%/.content}: these features are of another frontend (frontend.yaml) than that of ${asr_config:-the options}; run stage 3 first"
        fi
    done
}

# Stage 10.
collect_statistics() {
    local wanted valid_dir
    need "${token_list}" 5
    need_sets
    need_features
    need_speeds
    need_formatted "${train_set}" "${valid_set}"
    need_filtered
    if [ -f "${token_dir}/.done" ]; then
        is_of "${token_dir}/.done" "${data_feats}/${train_set}/text" ||
            fail "${token_dir} is not of the text in ${data_feats}/${train_set} now; run stage 5 first"
    fi
    wanted=$(statistics_identity)
    statistics_are_whole || rm -f "${asr_stats_dir}/.done"
    is_done "${asr_stats_dir}/.done" "${wanted}" || claim_statistics
    run_once "stage 10: statistics" "${asr_stats_dir}/.done" "${wanted}" "${expdir}/log/$(basename "${asr_stats_dir}").log" \
        make_statistics
}

# What the statistics are made from: options, tokens and the sets as they are now.
statistics_identity() {
    local files
    readarray -t files < <(content_files "${data_feats}/${train_set}" "${valid_dir}")
    identity "$(stage_options 10)"$'\n'"${statistics_config}" "${token_list}" "${files[@]}"
}

# need_statistics: those of the data and options of now. Of somebody else's only the utterances can be compared.
need_statistics() {
    local set name
    if [ -f "${asr_stats_dir}/.stage10" ]; then
        is_done "${asr_stats_dir}/.done" "$(statistics_identity)" ||
            fail "${asr_stats_dir}: these statistics are of other data, tokens or options than those of now; run stage 10 first"
        return 0
    fi
    for set in "train ${data_feats}/${train_set}" "valid ${valid_dir}"; do
        for name in speech_shape "text_shape.${token_type}"; do
            need "${asr_stats_dir}/${set%% *}/${name}" 10
            same_utterances "${asr_stats_dir}/${set%% *}/${name}" "${set#* }/text" ||
                fail "${asr_stats_dir}/${set%% *}/${name} names other utterances than ${set#* }/text; make these statistics again"
        done
    done
}

# same_utterances TABLE TABLE: ESPnet trains on those of the first, and ends in a traceback where the second lacks one.
same_utterances() {
    cmp -s <(awk '{ print $1 }' <"$1" | LC_ALL=C sort) <(awk '{ print $1 }' <"$2" | LC_ALL=C sort)
}

# statistics_sums DIR: checksums of what stage 10 made. Of a list of lengths that lost its end ESPnet would train on the rest.
statistics_sums() { (cd "$1" && cksum train/* valid/*); }

# Are they those that .stage10 holds? (Before it held any, nobody knows.)
statistics_are_whole() {
    [ ! -s "${asr_stats_dir}/.stage10" ] || [ "$(<"${asr_stats_dir}/.stage10")" = "$(statistics_sums "${asr_stats_dir}" 2>/dev/null)" ]
}

# Stage 10 replaces its folder, so that must be its own: .stage10 says so, also where a run was cut off.
claim_statistics() {
    local other
    if [ -f "${asr_stats_dir}/.stage10" ]; then
        other=$(find "${asr_stats_dir}" -mindepth 1 -maxdepth 1 ! -name train ! -name valid ! -name .stage10 ! -name .done -print -quit)
        [ -z "${other}" ] || usage_error "${other} would be lost when stage 10 replaces ${asr_stats_dir}; move it or give another '--asr_stats_dir'"
        return 0
    fi
    if [ ! -e "${asr_stats_dir}" ] || [ -z "$(ls -A "${asr_stats_dir}")" ]; then return 0; fi
    usage_error "${asr_stats_dir} has no mark of stage 10, which would replace it; delete it or give another '--asr_stats_dir'"
}

# Utterances that one process takes. The parts follow from the data alone, so that the sums are the same for every nj.
stats_part=10000
most_stats_parts=64

make_statistics() {
    local common_args temporary=${asr_stats_dir}.tmp vocabulary set names=() inputs=() scp=wav.scp
    if [ "${feats_type}" = extracted ]; then scp=feats.scp; fi
    set_common_args || return
    rm -rf "${temporary}"
    split_statistics || return
    run_parallel "${nj}" collect_part "${names[@]}" || return
    for set in "${names[@]}"; do inputs+=(--input_dir "${temporary}/${set}"); done
    "${python}" -m espnet2.bin.aggregate_stats_dirs "${inputs[@]}" --output_dir "${temporary}" || return
    vocabulary=$(wc -l <"${token_list}") || return
    for set in train valid; do
        # As in ESPnet: the sampler counts elements, so a text's shape is length,vocabulary.
        awk -v size="$((vocabulary))" '{ print $0 "," size }' <"${temporary}/${set}/text_shape" \
            >"${temporary}/${set}/text_shape.${token_type}" || return
    done
    [ -s "${temporary}/train/feats_stats.npz" ] || return
    statistics_sums "${temporary}" >"${temporary}/.stage10" || return
    rm -rf "${names[@]/#/${temporary}/}" "${asr_stats_dir}"
    mv "${temporary}" "${asr_stats_dir}"
}

# Makes a folder for each part, with the utterances of both sets that are its; sets names (an array).
split_statistics() {
    local train=${data_feats}/${train_set}/${scp} valid=${valid_dir}/${scp} count least parts
    count=$(wc -l <"${train}") least=$(wc -l <"${valid}")
    parts=$(((count + stats_part - 1) / stats_part))
    if [ "${parts}" -gt "${most_stats_parts}" ]; then parts=${most_stats_parts}; fi
    # ESPnet takes no part without an utterance.
    if [ "${parts}" -gt "${least}" ]; then parts=$((least)); fi
    readarray -t names < <(seq -f 'part%02g' "${parts}")
    mkdir -p "${names[@]/#/${temporary}/}"
    split_list train "${count}" <"${train}" || return
    split_list valid "${least}" <"${valid}"
}

# split_list NAME COUNT: the list on stdin, of so many lines, as NAME.scp of every part. (awk takes a file's name that has
# a "=" for an assignment.)
split_list() {
    awk -v out="${temporary}" -v name="$1" -v size="$2" -v parts="${parts}" '
        { printf "%s\n", $0 > sprintf("%s/part%02d/%s.scp", out, int((FNR - 1) * parts / size) + 1, name) }'
}

# Statistics of one part. Here the shape files only tell which utterances there are.
collect_part() {
    local folder=${temporary}/$1
    if ! "${stats_run[@]}" --collect_stats true "${common_args[@]}" \
        --train_shape_file "${folder}/train.scp" --valid_shape_file "${folder}/valid.scp" \
        --output_dir "${folder}" ${extra_args[@]+"${extra_args[@]}"} --ngpu 0 >"${folder}/log" 2>&1; then
        # One after the other: of several parts the lines would mix.
        cat "${folder}/log"
        return 1
    fi
}

# need_criterion: a name of ESPnet's says by what the model was chosen; that the training makes it is asked before, not after it.
need_criterion() {
    local name='^((train|valid)\..+)\.(best|ave|ave_[0-9]+best)\.pth$'
    if ! [[ ${inference_asr_model} =~ ${name} ]] || [[ " ${chosen_by[*]} " == *" ${BASH_REMATCH[1]} "* ]]; then return 0; fi
    usage_error "option '--inference_asr_model': the training makes no ${inference_asr_model}; it chooses by ${chosen_by[*]}"
}

# Stage 11. In its marks the last line is what may change while a training goes on; all else makes it another one.
train_model() {
    local mark=${asr_exp}/.stage11.done started=${asr_exp}/.stage11.started files wanted valid_dir resumed=false
    need "${asr_stats_dir}/train/speech_shape" 10
    statistics_are_whole || fail "${asr_stats_dir}: a file was changed or cut since stage 10 made it; run stage 10 first"
    need_sets
    need_features
    need_criterion
    readarray -t files < <(
        content_files "${data_feats}/${train_set}" "${valid_dir}"
        printf '%s\n' "${asr_stats_dir}"/train/{speech_shape,feats_stats.npz} "${asr_stats_dir}/valid/speech_shape"
    )
    wanted=$(identity "$(stage_options 11)"$'\n'"speeds=${fly_factors}"$'\n'"${training_config}" "${token_list}" "${files[@]}")
    wanted+=$'\n'"may change: ${may_change}"
    if is_done "${mark}" "${wanted}" && ! is_cut "${model_file}"; then
        log "stage 11: training: done, skipped"
        return 0
    fi
    need_statistics
    if is_same_training "${started}" "${wanted}"; then
        refuse_fewer_epochs "${mark}"
        resumed=true
        log "stage 11: training goes on where it stopped; log: ${asr_exp}/train.log"
    else
        set_aside "${asr_exp}"
        log "stage 11: training; log: ${asr_exp}/train.log"
    fi
    rm -f "${mark}"
    mark_done "${started}" "${wanted}"
    run_training "${resumed}"
    mark_done "${mark}" "${wanted}"
}

# is_cut MODEL: is it there, but without the end of a file of torch's (that of a zip archive)?
is_cut() {
    [ -f "$1" ] && [[ $1 == *.pth ]] && ! tail -c 22 "$1" | grep -qa $'^PK\x05\x06'
}

# is_same_training MARK IDENTITY: do they differ at most in what may change?
is_same_training() {
    [ -f "$1" ] && [ "$(sed '$d' "$1")" = "$(sed '$d' <<<"$2")" ]
}

# refuse_fewer_epochs MARK: what is trained cannot be made undone.
refuse_fewer_epochs() {
    local before after number='"max_epoch": ([0-9]+)'
    [ -f "$1" ] && [[ $(tail -n 1 "$1") =~ ${number} ]] || return 0
    before=${BASH_REMATCH[1]}
    [[ ${may_change} =~ ${number} ]] || return 0
    after=${BASH_REMATCH[1]}
    if [ "${after}" -lt "${before}" ]; then
        usage_error "${asr_exp} was trained for ${before} epochs; for one of ${after} give another '--asr_tag'"
    fi
}

# A model of other options or data is never overwritten and never trained further: it is moved away.
set_aside() {
    local number=1
    [ -e "$1" ] || return 0
    while [ -e "$1.old${number}" ]; do number=$((number + 1)); done
    log "stage 11: $1 was trained with other options or data; it is kept as $1.old${number}"
    mv "$1" "$1.old${number}"
}

run_training() {
    local common_args logfile=${asr_exp}/train.log begin=${SECONDS} fold_length=80000 number=1
    local stats quote="'"
    if [ -n "${train_threads}" ] && [ "${ngpu}" -eq 0 ]; then local -x OMP_NUM_THREADS=${train_threads}; fi
    if [ "${feats_type}" = extracted ]; then fold_length=800; fi
    set_common_args
    if [ "${feats_normalize}" = global_mvn ]; then
        # ESPnet reads the value as YAML, so it is quoted as in YAML.
        stats=${asr_stats_dir}/train/feats_stats.npz
        common_args+=(--normalize global_mvn --normalize_conf "stats_file='${stats//${quote}/${quote}${quote}}'")
    fi
    if [ -n "${seed}" ]; then common_args+=(--seed "${seed}"); fi
    add_speeds
    add_devices
    if [ -e "${logfile}" ]; then
        while [ -e "${logfile%.log}.${number}.log" ]; do number=$((number + 1)); done
        mv "${logfile}" "${logfile%.log}.${number}.log"
    fi
    # All of it goes to the log, one line per epoch to the terminal.
    if ! "${train_run[@]}" "${common_args[@]}" \
        --train_shape_file "${asr_stats_dir}/train/speech_shape" \
        --train_shape_file "${asr_stats_dir}/train/text_shape.${token_type}" \
        --valid_shape_file "${asr_stats_dir}/valid/speech_shape" \
        --valid_shape_file "${asr_stats_dir}/valid/text_shape.${token_type}" \
        --fold_length "${fold_length}" --fold_length 150 --resume true --output_dir "${asr_exp}" \
        ${extra_args[@]+"${extra_args[@]}"} 2>&1 </dev/null | tee "${logfile}" | show_epochs; then
        show_failure "${logfile}" "stage 11: training failed"
        return 1
    fi
    if [ ! -e "${asr_exp}/${inference_asr_model}" ]; then
        show_failure "${logfile}" "stage 11: training made no ${inference_asr_model}"
        return 1
    fi
    write_train_time "$((SECONDS - begin))" "$1"
}

# Several GPUs, or nodes: on each of them train_cmd starts one process, and they find each other by a file.
add_devices() {
    if [ "${ngpu}" -gt 1 ] || [ "${num_nodes}" -gt 1 ]; then common_args+=(--multiprocessing_distributed true); fi
    if [ "${num_nodes}" -gt 1 ]; then
        rm -f "${asr_exp}"/.dist_init_*
        common_args+=(--dist_launcher slurm --dist_init_method "file://$(realpath -m "${asr_exp}")/.dist_init_$$")
        if [ "${ngpu}" -eq 0 ]; then common_args+=(--dist_backend gloo); fi
    fi
}

# Every time an utterance is read, its speed is drawn (ESPnet's augmentation; its fs is 0 unless it is given here).
add_speeds() {
    local factor effects=""
    for factor in ${fly_factors}; do effects+="${effects:+, }[1.0, speed_perturb, {factor: ${factor}}]"; done
    if [ -n "${effects}" ]; then
        common_args+=(--preprocessor_conf "fs=${fs}" --preprocessor_conf data_aug_prob=1.0
            --preprocessor_conf "data_aug_effects=[${effects}]")
    fi
}

# ESPnet's epoch line is some 2,000 characters long; this keeps the losses of it, and our own warnings. (Not by awk: some
# buffer their input.)
show_epochs() {
    local line loss=' loss=([^,; ]+)'
    while IFS= read -r line; do
        if [[ ${line} == 'warning: '* ]]; then printf '    %s\n' "${line}"; fi
        [[ ${line} =~ \ ([0-9]+)epoch\ results:\  ]] || continue
        printf '    epoch %s:' "${BASH_REMATCH[1]}"
        if [[ ${line%%'[valid]'*} =~ ${loss} ]]; then printf ' loss %s' "${BASH_REMATCH[1]}"; fi
        if [[ ${line#*'[valid]'} =~ ${loss} ]]; then printf ' dev loss %s' "${BASH_REMATCH[1]}"; fi
        printf '\n'
    done
}

# Wall time of the training, for RESULTS.md. After a resumed training it is that of the last run only, and says so.
write_train_time() {
    printf '%s\n' "seconds: $1" "resumed: $2" "ngpu: ${ngpu}" "threads: ${OMP_NUM_THREADS:-$(nproc)}" \
        >"${asr_exp}/train_time.yaml.tmp"
    mv "${asr_exp}/train_time.yaml.tmp" "${asr_exp}/train_time.yaml"
}
