#!/usr/bin/env bash
# Stages 1 to 5 of asr_ee.sh (sourced by it: all names are its): data, speeds, audio or features, lengths, tokens.
# shellcheck disable=SC2154  # the options and names are asr_ee.sh's

# data_files DIR...: the tables by which a change of a data directory is noticed, and the mark of what made them.
data_files() {
    local dir name
    for dir in "$@"; do
        for name in .content wav.scp feats.scp segments text utt2spk utt2num_samples utt2num_frames; do
            if [ -f "${dir}/${name}" ]; then printf '%s\n' "${dir}/${name}"; fi
        done
    done
}

# known_times DIR: the table of when words are said, which few corpora have.
known_times() {
    if [ -f "$1/words.ctm" ]; then printf '%s\n' "$1/words.ctm"; fi
}

# content_files DIR...: the same for what only looks at sound and text, wherever they lie. A set of stage 3 has a file
# ".content"; of another one the tables must do.
content_files() {
    local dir
    for dir in "$@"; do
        if [ -f "${dir}/.content" ]; then
            printf '%s\n' "${dir}/.content" "${dir}/text" "${dir}/utt2spk"
        else
            data_files "${dir}"
        fi
    done
}

# Stage 1. The recipe's own local/data.sh makes datadir/SET for every set; without one they are somebody else's, and looked through.
prepare_data() {
    local mark=${datadir}/.stage01.done wanted name code settings line known
    if [ ! -f local/data.sh ]; then
        log "stage 1: there is no local/data.sh; the sets are those in ${datadir}"
        validate_sets
        return
    fi
    for name in "${raw_train}" "${eval_sets[@]}"; do
        # Whoever deletes a set wants it made again.
        [ -s "${datadir}/${name}/wav.scp" ] || rm -f "${mark}"
    done
    code=$(sed -e 's/^[[:space:]]*#.*//' -e '/^$/d' local/data.sh | cksum)
    wanted="local/data.sh ${code}"
    settings=$(local/data.sh ${data_args[@]+"${data_args[@]}"} ${local_args[@]+"${local_args[@]}"} --settings)
    while IFS= read -r line; do
        # Who names no folder now means that of the last time.
        if [[ ${line} == *_root= ]] && known=$(grep -F "${line}" "${mark}" 2>/dev/null); then line=${known}; fi
        wanted+=${line:+$'\n'${line}}
    done <<<"${settings}"
    run_once "stage 1: data preparation" "${mark}" "${wanted}" "${datadir}/log/data.log" make_and_check_data
    log_skipped 1 "${raw_train}" "${datadir}/${raw_train}"
    show_log "${datadir}/log/data.log" | grep '; warning: ' || true
}

# log_skipped STAGE SET DIR: nobody reads the logs of what went well, so what was left out is said here.
log_skipped() {
    if [ -s "$3/skipped" ]; then log "stage $1: $2: $(wc -l <"$3/skipped") utterances skipped, see $3/skipped"; fi
}

make_and_check_data() {
    local/data.sh --datadir "${datadir}" --nj "${nj}" ${data_args[@]+"${data_args[@]}"} \
        ${local_args[@]+"${local_args[@]}"} || return
    validate_sets
}

validate_sets() {
    local name
    for name in "${raw_train}" "${eval_sets[@]}"; do
        "${espnet_ee[@]}" data validate --data "${datadir}/${name}" || return
    done
}

# prepared_with STAGE: the settings of stage 1 on which a later one depends, for tables say nothing of what is in the audio.
prepared_with() {
    if [ -f "${datadir}/.stage01.done" ]; then grep -E "^\[([0-9 ]* )?$1[] ]" "${datadir}/.stage01.done" || true; fi
}

# Stage 2. Copies of the training set at other speeds.
perturb_speed() {
    if [ -z "${stored_factors}" ]; then
        log "stage 2: no speeds to store, nothing to do"
        return 0
    fi
    need "${datadir}/${raw_train}/wav.scp" 1
    local in=${datadir}/${raw_train} out=${datadir}/${train_set} audio=${dumpdir}/speed_perturbed/${train_set} files wanted
    # The tables lie under datadir, the audio under dumpdir: whoever deletes one of them, or names another, wants both made.
    [ -d "${audio}" ] || rm -f "${out}/.done"
    readarray -t files < <(data_files "${in}")
    wanted=$(identity "$(stage_options 2; prepared_with 2; echo "factors=${stored_factors}")" "${files[@]}")
    run_once "stage 2: speed perturbation by ${stored_factors}" "${out}/.done" "${wanted}" "${datadir}/log/perturb_speed.log" \
        "${data_run[@]}" speed --data "${in}" --out "${out}" --factors "${factor_list[@]}" --audio_dir "${audio}" \
        --nj "${nj}" --max_skipped "${max_skipped}"
    log_skipped 2 "${train_set}" "${out}"
}

# is_of_data MARK DIR: is_of of all that a Kaldi data directory holds now.
is_of_data() {
    local files
    readarray -t files < <(data_files "$2")
    is_of "$1" "${files[@]}"
}

# need_speeds: stage 2 has made its copies of the training set that is there now, at these speeds.
need_speeds() {
    local mark=${datadir}/${train_set}/.done
    if [ -z "${stored_factors}" ] || [ ! -f "${datadir}/${raw_train}/wav.scp" ]; then return 0; fi
    if ! grep -qsxF "factors=${stored_factors}" "${mark}" || ! is_of_data "${mark}" "${datadir}/${raw_train}"; then
        fail "${datadir}/${train_set} has not the speeds ${stored_factors} of what is in ${datadir}/${raw_train} now; run stage 2 first"
    fi
}

# The folder that stage 3 makes of a set: the training set still has to pass stage 4.
formatted_dir() {
    if [ "$1" = "${train_set}" ]; then echo "${data_feats}/org/$1"; else echo "${data_feats}/$1"; fi
}

# Stage 3, for one set.
format_set() {
    local name=$1 in=${datadir}/$1 out words limit=0 made_by=1 files wanted run=("${data_run[@]}" format --fs "${fs}")
    out=$(formatted_dir "${name}")
    words=$(stage_options 3)
    if [ "${name}" = "${train_set}" ]; then
        limit=${max_skipped}
        if [ -n "${stored_factors}" ]; then made_by=2; fi
    fi
    need "${in}/wav.scp" "${made_by}"
    if [ "${made_by}" = 2 ]; then need_speeds; fi
    if [ "${feats_type}" = extracted ]; then
        words+=$'\n'"${frontend} compressed=${feats_compress}"
        run=(extract_by_frontend)
        if [ "${feats_compress}" = true ]; then run+=(--compress); fi
    fi
    readarray -t files < <(data_files "${in}"; known_times "${in}")
    # Of the sound that stage 2 has made its mark knows; another place of the sound of stage 3 itself wants it made again.
    if [ "${made_by}" = 2 ]; then files+=("${in}/.done"); fi
    is_heard "${out}" || rm -f "${out}/.done"
    wanted=$(identity "${words}"$'\n'"max_skipped=${limit}"$'\n'"$(prepared_with 3)" "${files[@]}")
    run_once "stage 3: ${feats_type}: ${name}" "${out}/.done" "${wanted}" "${dumpdir}/log/${feats_type}_${name}.log" make_format
    log_skipped 3 "${name}" "${out}"
}

make_format() {
    "${run[@]}" --data "${in}" --out "${out}" --nj "${nj}" --max_skipped "${limit}" || return
    printf '%s\n%s\n' "${words}" "$(recordings "${in}" | cksum)" >"${out}/.content"
}

# is_heard DIR: is the first file there that its table names, perhaps with a place in it? (Not where the folder has been moved.)
is_heard() {
    local table=$1/wav.scp file
    if [ -f "$1/feats.scp" ]; then table=$1/feats.scp; fi
    if [ ! -f "${table}" ]; then return 1; fi
    read -r _ file <"${table}" || true
    [ -e "${file}" ] || [ -e "${file%:*}" ] || [[ ${file} == *'|' ]]
}

# recordings DIR: what sounds in a set, by name: a checksum of every file of its wav.scp, and the segments.
recordings() {
    awk '{ print $1 }' <"$1/wav.scp"
    # Broken files may be left out, so a missing one is no error here.
    { sed 's/^[^[:blank:]]*[[:blank:]]*//' <"$1/wav.scp" | tr '\n' '\0' | xargs -0 cksum -- | cut -d ' ' -f 1,2; } || true
    if [ -f "$1/segments" ]; then cat "$1/segments"; fi
}

extract_by_frontend() {
    local conf=${dumpdir}/log/frontend.yaml
    printf '%s\n' "${frontend}" >"${conf}" || return
    "${data_run[@]}" features --frontend_conf "${conf}" "$@"
}

# need_formatted SET...: stage 3 has made its folders of the sets that are there now (whoever has no datadir any more goes on
# with what there is), at this rate: ESPnet asks no file for its rate.
need_formatted() {
    local name out
    for name in "$@"; do
        out=$(formatted_dir "${name}")
        if [ "${feats_type}" = raw ] && [ -f "${out}/.content" ] && ! grep -qxF "fs=${fs}" "${out}/.content"; then
            fail "${out} has another rate than '--fs ${fs}'; run stage 3 first"
        fi
        if [ ! -f "${datadir}/${name}/wav.scp" ]; then continue; fi
        is_of_data "${out}/.done" "${datadir}/${name}" || fail "${out} is not of what is in ${datadir}/${name} now; run stage 3 first"
    done
}

# need_filtered: and stage 4 of what stage 3 has made of the training set.
need_filtered() {
    local in=${data_feats}/org/${train_set} out=${data_feats}/${train_set}
    if [ ! -f "${in}/text" ]; then return 0; fi
    is_of_data "${out}/.done" "${in}" || fail "${out} is not of what is in ${in} now; run stage 4 first"
}

# Stage 4. Too long and too short training utterances go; the sets that are scored are never filtered.
filter_train() {
    need "${data_feats}/org/${train_set}/text" 3
    need_speeds
    need_formatted "${train_set}"
    filter_set "stage 4: drop utterances not between ${min_wav_duration} s and ${max_wav_duration} s" "$(stage_options 4)" \
        "${data_feats}/org/${train_set}" "${data_feats}/${train_set}" "${min_wav_duration}" "${max_wav_duration}"
}

# Stage 4 for the development set: only where there are empty transcripts, and only for the training (training_valid_dir).
filter_valid() {
    local in=${data_feats}/${valid_set} out
    need "${in}/text" 3
    out=$(training_valid_dir)
    if [ "${out}" = "${in}" ]; then return 0; fi
    filter_set "stage 4: ${valid_set} without empty transcripts, for the training" "with text" "${in}" "${out}" 0 inf
}

# filter_set TITLE OPTIONS IN OUT MIN MAX
filter_set() {
    local in=$3 out=$4 min=$5 max=$6 logfile=${dumpdir}/log/filter_${feats_type}_${4##*/}.log files wanted
    need "${in}/text" 3
    readarray -t files < <(data_files "${in}")
    wanted=$(identity "$2" "${files[@]}")
    run_once "$1" "${out}/.done" "${wanted}" "${logfile}" make_filtered
    show_log "${logfile}"
}

make_filtered() {
    "${data_run[@]}" filter --data "${in}" --out "${out}" --min_seconds "${min}" --max_seconds "${max}" --fs "${fs}" || return
    if [ -f "${in}/.content" ]; then cp "${in}/.content" "${out}/.content"; fi
}

# Stage 5, too: what only shows when sets are laid side by side. (Who starts later, with sets of stage 3 alone, has none to lay.)
compare_sets() {
    local name dirs=() files wanted
    for name in "${raw_train}" "${eval_sets[@]}"; do
        if [ ! -f "${datadir}/${name}/text" ]; then return 0; fi
        dirs+=("${datadir}/${name}")
    done
    readarray -t files < <(data_files "${dirs[@]}")
    wanted=$(identity "${dirs[*]##*/}" "${files[@]}")
    run_once "stage 5: sets side by side" "${datadir}/.compared.done" "${wanted}" "${datadir}/log/sets.log" \
        "${data_run[@]}" sets --train "${dirs[0]}" --data "${dirs[@]:1}"
    show_log "${datadir}/log/sets.log"
}

# Stage 5. The token list, from the training text only.
make_tokens() {
    local text=${data_feats}/${train_set}/text words=${token_type} wanted
    need "${text}" 4
    need_filtered
    local run=("${data_run[@]}" tokens --text "${text}" --token_type "${token_type}" --out "${token_dir}")
    if [ "${token_type}" = bpe ]; then
        words+=" ${bpemode} ${nbpe}"
        run+=(--model_type "${bpemode}" --nbpe "${nbpe}")
    fi
    wanted=$(identity "$(stage_options 5)"$'\n'"${words}" "${text}")
    # Whoever deletes the list or its model wants both made again.
    if [ ! -f "${token_list}" ] || { [ "${token_type}" = bpe ] && [ ! -f "${token_dir}/bpe.model" ]; }; then rm -f "${token_dir}/.done"; fi
    keep_other_tokens
    run_once "stage 5: ${words} tokens" "${token_dir}/.done" "${wanted}" "${datadir}/log/tokens.log" make_token_list
}

make_token_list() {
    { mkdir -p "${token_dir}" && : >"${token_dir}/.stage05"; } || return
    "${run[@]}" || return
    cksum <"${token_list}" >"${token_dir}/.stage05"
}

# keep_other_tokens: .stage05 tells what stage 5 made, or that it was cut off. A list that is something else was brought or changed by
# somebody, or cut: it is used as it is, but not without a word, and a copy of it stays when another is made.
keep_other_tokens() {
    local made=${token_dir}/.stage05 number=1
    if [ ! -f "${token_list}" ]; then return 0; fi
    if [ -f "${made}" ]; then
        if [ ! -s "${made}" ] || [ "$(cksum <"${token_list}")" = "$(<"${made}")" ]; then return 0; fi
    elif [ -f "${token_dir}/.done" ]; then
        return 0 # of a time when nobody kept what was made
    fi
    if is_done "${token_dir}/.done" "${wanted}"; then
        log "warning: ${token_list} is not what stage 5 made: changed, or cut? It is used as it is; delete it to have it made again"
        return 0
    fi
    while [ -e "${token_list}.old${number}" ]; do number=$((number + 1)); done
    cp "${token_list}" "${token_list}.old${number}"
    log "stage 5: ${token_list} is not of stage 5; it is kept as ${token_list}.old${number}"
}

# Still stage 5: what its units will have against them in the training, as warnings.
check_units() {
    local train_dir=${data_feats}/${train_set} conf=${dumpdir}/log/units.yaml mark wanted logfile
    mark=${train_dir}/.units_${suffix}.done
    logfile=${dumpdir}/log/units_${suffix}_${train_set}.log
    wanted=$(identity "${token_type}"$'\n'"${frames_config}" "${train_dir}"/{text,utt2num_samples,utt2num_frames} "${token_list}")
    if ! is_done "${mark}" "${wanted}"; then
        mkdir -p "${conf%/*}"
        printf '%s\n' "${frames_config}" >"${conf}"
        run_logged "stage 5: units" "${logfile}" \
            "${data_run[@]}" units --data "${train_dir}" --tokens "${token_dir}" --token_type "${token_type}" --asr_config "${conf}"
        mark_done "${mark}" "${wanted}"
    fi
    show_log "${logfile}" >&2
}
