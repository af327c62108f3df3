#!/usr/bin/env bash
# Stages 12 to 14 of asr_ee.sh (sourced by it: all names are its): decoding, scoring, calibrating.
# shellcheck disable=SC2154  # the options and names are asr_ee.sh's

# Stage 12. Every set once with the evidence of all exits, then with each configuration online.
decode_sets() {
    local jobs=() name config
    need_model
    model_identity=$(identity "" "${asr_exp}/config.yaml" "${asr_exp}/${inference_asr_model}")
    for name in "${eval_sets[@]}"; do
        need "${data_feats}/${name}/text" 3
        # A set and a configuration, joined by a character that neither name has.
        jobs+=("${name}|")
        for config in ${inference_list[@]+"${inference_list[@]}"}; do jobs+=("${name}|${config}"); done
    done
    run_jobs 12 "${inference_nj}" "${slurm_decode_opts}" "${asr_exp}/log" decode_set "${jobs[@]}"
}

# decode_set "SET|CONFIG": one decoding; without a configuration all exits are kept.
decode_set() {
    local name=${1%%|*} config=${1#*|} tag=${all_exits_tag} out files wanted
    local run=("${decode_run[@]}" "${model_args[@]}" --data_dir "${data_feats}/${name}")
    if [ -n "${config}" ]; then
        tag=$(basename "${config}" .yaml)
        run+=(--config "${config}")
    else
        run+=(--all_exits true --batch_size "${batch_size}")
    fi
    if [ -n "${num_threads}" ]; then run+=(--num_threads "${num_threads}"); fi
    out=${asr_exp}/${tag}/${name}
    readarray -t files < <(data_files "${data_feats}/${name}")
    wanted=$(identity "${num_threads} $([ -n "${config}" ] || echo "${batch_size}")" ${config:+"${config}"} "${files[@]}")
    run_once "stage 12: ${tag}: ${name}" "${out}/.done" "${model_identity}"$'\n'"${wanted}" \
        "${asr_exp}/log/${tag}_${name}.log" "${run[@]}" --output_dir "${out}"
}

# Stage 13.
score_sets() {
    local marks=() name tag wanted
    for tag in "${all_exits_tag}" ${decode_tags[@]+"${decode_tags[@]}"}; do
        for name in "${eval_sets[@]}"; do
            need_decoding "${asr_exp}/${tag}/${name}/.done"
            marks+=("${asr_exp}/${tag}/${name}/.done")
        done
    done
    wanted=$(identity "${valid_set} ${test_sets} ${note} ${separate_exps}" "${marks[@]}")
    run_once "stage 13: scores" "${asr_exp}/.stage13.done" "${wanted}" "${asr_exp}/log/score.log" \
        "${python}" -m espnet_ee.bin.score --exp_dir "${asr_exp}" --data_root "${data_feats}" \
        --valid_set "${valid_set}" --test_sets "${test_sets}" --all_exits_tag "${all_exits_tag}" \
        --command "$(shown_command)" --note "${note}" --separate_exps "${separate_exps}"
    show_log "${asr_exp}/log/score.log"
    copy_results "${asr_exp}"/{RESULTS.md,exits.csv,curve.png}
    log "stage 13: ${asr_exp}/RESULTS.md, ${asr_exp}/exits.csv, ${asr_exp}/curve.png"
}

# The command line for RESULTS.md, from the project's root. Which stages ran last has no effect on the numbers; the note
# stands in a line of its own.
shown_command() {
    local here
    here=$(pwd -P)
    if [ -n "${command}" ] && [[ ${here} == "${MAIN_ROOT}"/* ]]; then printf 'cd %s && ' "${here#"${MAIN_ROOT}"/}"; fi
    # run.sh quotes every word; the simple ones need no quotes.
    sed -E -e "s/ '--note(' '|=)[^']*'//g" -e "s/'([A-Za-z0-9_.,=\/+:-]+)'/\1/g" -e 's/ --(stage|stop_stage)[ =][0-9]+//g' -e "s/ ''$//;s/ *$//" <<<"${command}"
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

# Stage 14. Policies are calibrated on the development set, never on a set that they are measured on.
calibrate_on_valid_set() {
    local out=${asr_exp}/policies marks=() name wanted
    local decoded=${asr_exp}/${all_exits_tag}
    for name in "${eval_sets[@]}"; do
        need_decoding "${decoded}/${name}/.done"
        marks+=("${decoded}/${name}/.done")
    done
    wanted=$(identity "${valid_set} ${test_sets} ${calibrate_policies} ${calibrate_targets}" "${marks[@]}")
    run_once "stage 14: exit policies" "${asr_exp}/.stage14.done" "${wanted}" "${asr_exp}/log/calibrate.log" \
        "${python}" -m espnet_ee.bin.calibrate_policy --output_dir "${out}" \
        --dev_evidence "${decoded}/${valid_set}/evidence.tsv" --dev_text "${data_feats}/${valid_set}/text" \
        --policies "${calibrate_policies}" --targets "${calibrate_targets}"
    show_log "${asr_exp}/log/calibrate.log"
    log "stage 14: ${out}: decode_POLICY_TARGET.yaml for --inference_configs"
}
