#!/usr/bin/env bash
# Stages 12 and 13 of asr_ee.sh (sourced by it: all names are its): decoding, which chooses where to stop, and scores.
# shellcheck disable=SC2154  # the options and names are asr_ee.sh's

# Stage 12. Every set with the evidence of all exits; the exit policies calibrated on the development set; the calibrated
# ones online on every set: one process.
decode_sets() {
    local mark=${asr_exp}/.stage12.done name dirs=() files=() args=() lm_words="" wanted word
    need_model
    for name in "${eval_sets[@]}"; do
        need "${data_feats}/${name}/text" 3
        need_formatted "${name}"
        dirs+=("${data_feats}/${name}")
        # Whoever deletes a decoding wants it made again.
        [ -f "${asr_exp}/decode_every_exit/${name}/decode.yaml" ] || rm -f "${mark}"
    done
    if [ "${#inference_list[@]}" -gt 0 ]; then args+=(--config "${inference_list[@]}"); fi
    if [ "${#search_words[@]}" -gt 0 ]; then args+=(--search "${search_words[@]}"); fi
    if [ -n "${batch_size}" ]; then args+=(--batch_size "${batch_size}"); fi
    if [ -n "${num_threads}" ]; then args+=(--num_threads "${num_threads}"); fi
    readarray -t files < <(content_files "${dirs[@]}"; known_times "${data_feats}/${valid_set}")
    # A language model or a lexicon of the search.
    for word in ${search_words[@]+"${search_words[@]}"}; do if [ -f "${word#*=}" ]; then files+=("${word#*=}"); fi; done
    if [ "${use_lm}" = true ]; then
        need "${lm_file}" 9
        args+=(--lm "${lm_file}" --beam "${beam_size}")
        files+=("${lm_file}")
        lm_words=$'\n'"beam_size=${beam_size}"
    fi
    wanted=$(identity "$(stage_options 12)"$'\n'"sets=${eval_sets[*]}${lm_words}" "${asr_exp}/config.yaml" "${model_file}" \
        ${inference_list[@]+"${inference_list[@]}"} "${files[@]}")
    run_once "stage 12: decoding" "${mark}" "${wanted}" "${asr_exp}/log/decode.log" \
        "${decode_run[@]}" --model "${asr_exp}" --model_file "${model_file}" --data "${dirs[@]}" --out "${asr_exp}" \
        --device "${inference_device}" --calibrate_on "${valid_set}" "${calibration_words[@]}" ${args[@]+"${args[@]}"}
    show_log "${asr_exp}/log/decode.log" | grep '^warning: ' || true
    log "stage 12: ${asr_exp}/policies: decoding configurations calibrated on ${valid_set}"
}

# need_decoding: stage 12 of the sets as they are now, by the model of '--inference_asr_model' (where that is gone, by any).
need_decoding() {
    local name files
    need "${asr_exp}/.stage12.done" 12
    need_formatted "${eval_sets[@]}"
    for name in "${eval_sets[@]}"; do
        if [ ! -f "${data_feats}/${name}/text" ]; then continue; fi
        readarray -t files < <(content_files "${data_feats}/${name}")
        is_of "${asr_exp}/.stage12.done" "${files[@]}" ||
            fail "${asr_exp} was decoded before ${data_feats}/${name} became what it is now, or without it; run stage 12 first"
    done
    if [ -f "${model_file}" ] && ! grep -qF -- "$(cksum <"${model_file}") " "${asr_exp}/.stage12.done"; then
        fail "${asr_exp} was decoded with another model than ${model_file}; run stage 12 first"
    fi
}

# Stage 13.
score_sets() {
    local mark=${asr_exp}/.stage13.done results=("${asr_exp}"/{RESULTS.md,exits.csv,curve.png}) file wanted args=()
    need_decoding
    for file in "${results[@]}" "${asr_exp}/report.html"; do [ -f "${file}" ] || rm -f "${mark}"; done
    for file in ${separate_list[@]+"${separate_list[@]}"}; do need "${file}/exits.csv" "13 of that experiment"; done
    wanted=$(identity "$(stage_options 13)"$'\n'"sets=${eval_sets[*]}" "${asr_exp}/.stage12.done" \
        ${separate_list[@]+"${separate_list[@]/%//exits.csv}"})
    if [ "${#separate_list[@]}" -gt 0 ]; then args+=(--separate "${separate_list[@]}"); fi
    if [ -n "${note}" ]; then args+=(--note "${note}"); fi
    run_once "stage 13: scores" "${mark}" "${wanted}" "${asr_exp}/log/score.log" \
        "${espnet_ee[@]}" score --exp "${asr_exp}" --data_root "${data_feats}" --valid_set "${valid_set}" \
        --test_sets "${eval_sets[@]}" --command "$(shown_command)" ${args[@]+"${args[@]}"}
    show_log "${asr_exp}/log/score.log"
    copy_results "${results[@]}"
    log "stage 13: ${results[*]} ${asr_exp}/report.html"
}

# The command line for RESULTS.md, from the project's root. Which stages ran last has no effect on the numbers; the note
# stands in a line of its own.
shown_command() {
    local here
    here=$(pwd -P)
    if [ -n "${command}" ] && [[ ${here} == "${MAIN_ROOT}"/* ]]; then printf 'cd %s && ' "${here#"${MAIN_ROOT}"/}"; fi
    # run.sh quotes every word (a quote within one becomes '\''); the simple ones need no quotes.
    sed -E -e "s/ '--note(' '|=)([^']|'\\\\'')*'//g" -e ":next;s/(^| )'([A-Za-z0-9_.,=\/+:-]+)'( |$)/\1\2\3/;tnext" \
        -e 's/ --(stage|stop_stage)[ =][0-9]+//g' -e "s/ ''$//;s/ *$//" <<<"${command}"
}

copy_results() {
    local path file
    if [ -z "${results_dir}" ]; then return 0; fi
    mkdir -p "${results_dir}"
    for path in "$@"; do
        file=${path##*/}
        if [ -f "${path}" ] && ! cmp -s "${path}" "${results_dir}/${file}"; then
            cp "${path}" "${results_dir}/.${file}.tmp"
            mv "${results_dir}/.${file}.tmp" "${results_dir}/${file}"
        fi
    done
}
