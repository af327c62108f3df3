#!/usr/bin/env bash
# Stages 1 to 5 of asr_ee.sh (sourced by it: all names are its): data, speeds, audio or features, lengths, tokens.
# shellcheck disable=SC2154  # the options and names are asr_ee.sh's

# Stage 1. The recipe's own local/data.sh makes datadir/SET for every set.
prepare_data() {
    local mark=${datadir}/.stage01.done wanted name folders
    for name in "${raw_train}" "${eval_sets[@]}"; do
        # Whoever deletes a set wants it made again.
        [ -s "${datadir}/${name}/wav.scp" ] || rm -f "${mark}"
    done
    folders=$(corpus_folders)
    # Who names no folder now means that of the last time.
    if [ -z "${folders}" ] && [ -f "${mark}" ]; then folders=$(sed -n 's/^corpora://p' "${mark}"); fi
    # Which sets it makes stands on a line of its own: one set more must not make the others be done again (set_identity).
    wanted=$(identity "local/data.sh ${local_args[*]-}" local/data.sh)$'\n'"follows: ${data_args[*]:-nothing}"
    wanted+=${folders:+$'\n'"corpora:${folders}"}
    run_once "stage 1: data preparation" "${mark}" "${wanted}" "${datadir}/log/data.log" make_and_check_data
    log_skipped 1 "${raw_train}" "${datadir}/${raw_train}"
    show_log "${datadir}/log/data.log" | grep '; warning: ' || true
}

# log_skipped STAGE SET DIR: nobody reads the logs of what went well, so what was left out is said here.
log_skipped() {
    if [ -s "$3/skipped" ]; then log "stage $1: $2: $(wc -l <"$3/skipped") utterances skipped, see $3/skipped"; fi
}

# The folders that db.sh or the environment gives for the corpora that local/data.sh reads.
corpus_folders() {
    local names name
    . ./db.sh
    readarray -t names < <(sed -n 's/^export \([A-Z0-9_]*\)=.*/\1/p' db.sh)
    for name in "${names[@]}"; do
        if [ -n "${!name}" ] && grep -qw "${name}" local/data.sh; then printf ' %s=%s' "${name}" "${!name}"; fi
    done
}

make_and_check_data() {
    local name
    local/data.sh --datadir "${datadir}" --nj "${nj}" ${data_args[@]+"${data_args[@]}"} \
        ${local_args[@]+"${local_args[@]}"} || return
    for name in "${raw_train}" "${eval_sets[@]}"; do
        "${python}" -m espnet_ee.bin.validate_data "${datadir}/${name}" || return
    done
}

# set_identity WORDS DIR: what is made of a set under datadir depends on its tables and, since they say nothing of what is
# in the audio, on the options of stage 1. (Not on local/data.sh itself: another comment in it must not cost a training.)
set_identity() {
    local files made_with=""
    readarray -t files < <(data_files "$2")
    if [ -f "${datadir}/.stage01.done" ]; then made_with=$(head -n 1 "${datadir}/.stage01.done"); fi
    identity "$1 ${made_with}" "${files[@]}"
}

# Stage 2. Copies of the training set at other speeds.
perturb_speed() {
    if [ -z "${stored_factors}" ]; then
        log "stage 2: no speeds to store, nothing to do"
        return 0
    fi
    need "${datadir}/${raw_train}/wav.scp" 1
    local out=${datadir}/${train_set} audio=${dumpdir}/speed_perturbed/${train_set} words=${stored_factors} wanted
    # The tables lie under datadir, the audio under dumpdir: whoever deletes one of them, or names another, wants both made.
    [ -d "${audio}" ] || rm -f "${out}/.done"
    if [ "${max_skipped}" != 0 ]; then words+=" max_skipped=${max_skipped}"; fi
    wanted=$(set_identity "${words}" "${datadir}/${raw_train}")
    run_once "stage 2: speed perturbation by ${stored_factors}" "${out}/.done" "${wanted}" "${datadir}/log/perturb_speed.log" \
        "${data_run[@]}" espnet_ee.bin.perturb_speed --in "${datadir}/${raw_train}" --out "${out}" \
        --factors "${stored_factors}" --audio_dir "${audio}" --nj "${nj}" --max_skipped "${max_skipped}"
    log_skipped 2 "${train_set}" "${out}"
}

# The folder that stage 3 makes of a set: the training set still has to pass stage 4.
formatted_dir() {
    if [ "$1" = "${train_set}" ]; then echo "${data_feats}/org/$1"; else echo "${data_feats}/$1"; fi
}

# Stage 3, for one set.
format_set() {
    local name=$1 out words wanted made_by=1 limit=0
    out=$(formatted_dir "${name}")
    if [ "${name}" = "${train_set}" ] && [ -n "${stored_factors}" ]; then made_by=2; fi
    if [ "${name}" = "${train_set}" ]; then limit=${max_skipped}; fi
    need "${datadir}/${name}/wav.scp" "${made_by}"
    words="${feats_type} ${fs}"
    local run=("${data_run[@]}" espnet_ee.bin.format_audio --fs "${fs}")
    if [ "${feats_type}" = extracted ]; then
        words="${feats_type} ${frontend}"
        run=(extract_by_frontend)
        if [ "${feats_compress}" = true ]; then
            words+=" compressed"
            run+=(--compress)
        fi
    fi
    if [ "${limit}" != 0 ]; then
        words+=" max_skipped=${limit}"
        run+=(--max_skipped "${limit}")
    fi
    wanted=$(set_identity "${words}" "${datadir}/${name}")
    run_once "stage 3: ${feats_type}: ${name}" "${out}/.done" "${wanted}" "${dumpdir}/log/${feats_type}_${name}.log" \
        "${run[@]}" --in "${datadir}/${name}" --out "${out}" --nj "${nj}"
    log_skipped 3 "${name}" "${out}"
}

extract_by_frontend() {
    local conf=${dumpdir}/log/frontend.yaml
    # Renamed, for other sets may be extracted at the same time.
    { printf '%s\n' "${frontend}" >"${conf}.$$" && mv "${conf}.$$" "${conf}"; } || return
    "${data_run[@]}" espnet_ee.bin.extract_features --frontend_conf "${conf}" "$@"
}

# Stage 4. Too long and too short training utterances go; the sets that are scored are never filtered.
filter_train() {
    local in=${data_feats}/org/${train_set} out=${data_feats}/${train_set} files wanted logfile
    need "${in}/text" 3
    readarray -t files < <(data_files "${in}")
    wanted=$(identity "${min_wav_duration} ${max_wav_duration}" "${files[@]}")
    logfile=${dumpdir}/log/filter_${feats_type}_${train_set}.log
    run_once "stage 4: drop utterances not between ${min_wav_duration} s and ${max_wav_duration} s" "${out}/.done" "${wanted}" \
        "${logfile}" "${data_run[@]}" espnet_ee.bin.filter_lengths --in "${in}" --out "${out}" \
        --min_seconds "${min_wav_duration}" --max_seconds "${max_wav_duration}" --fs "${fs}"
    show_log "${logfile}"
}

# Stage 4 for the development set: only where there are empty transcripts, and only for the training (training_valid_dir).
filter_valid() {
    local in=${data_feats}/${valid_set} out files wanted logfile=${dumpdir}/log/filter_${feats_type}_${valid_set}.log
    need "${in}/text" 3
    out=$(training_valid_dir)
    if [ "${out}" = "${in}" ]; then return 0; fi
    readarray -t files < <(data_files "${in}")
    wanted=$(identity "with text" "${files[@]}")
    run_once "stage 4: ${valid_set} without empty transcripts, for the training" "${out}/.done" "${wanted}" \
        "${logfile}" "${data_run[@]}" espnet_ee.bin.filter_lengths --in "${in}" --out "${out}" \
        --min_seconds 0 --max_seconds inf --fs "${fs}"
    show_log "${logfile}"
}

# Stage 5. The token list, from the training text only.
make_tokens() {
    local text=${data_feats}/${train_set}/text words="${token_type}" wanted
    need "${text}" 4
    local run=("${data_run[@]}" espnet_ee.bin.make_tokens --text "${text}" --token_type "${token_type}" --out "${token_dir}")
    if [ "${token_type}" = bpe ]; then
        words+=" ${bpemode} ${nbpe}"
        run+=(--model_type "${bpemode}" --nbpe "${nbpe}")
    fi
    wanted=$(identity "${words}" "${text}")
    run_once "stage 5: ${words} tokens" "${token_dir}/.done" "${wanted}" "${datadir}/log/tokens.log" "${run[@]}"
}
