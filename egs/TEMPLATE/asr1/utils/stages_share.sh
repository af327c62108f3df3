#!/usr/bin/env bash
# Stage 15 of asr_ee.sh (sourced by it: all names are its): the model as a package that others can load.
# shellcheck disable=SC2154  # the options and names are asr_ee.sh's

# Stage 15. A folder (what the hub takes), with the policies that ran online (the first one is
# what a user gets who asks for none) and those that stage 14 calibrated.
pack_model() {
    local wanted file policies=(${inference_list[@]+"${inference_list[@]}"})
    for file in "${asr_exp}"/policies/decode_*.yaml; do
        if [ -f "${file}" ]; then policies+=("${file}"); fi
    done
    need_model
    need "${asr_exp}/exits.csv" 13
    # What the card and the calibrated policies say must be of the model that is packed.
    need_decoding "${asr_exp}/${all_exits_tag}/${valid_set}/.done"
    wanted=$(identity "${pack_name} ${pack_licence} ${pack_data} ${command}" "${asr_exp}/config.yaml" \
        "${asr_exp}/${inference_asr_model}" "${asr_exp}/exits.csv" ${policies[@]+"${policies[@]}"})
    run_once "stage 15: pack" "${asr_exp}/.stage15.done" "${wanted}" "${asr_exp}/log/pack.log" pack_folder
    log "stage 15: $(tail -n 1 "${asr_exp}/log/pack.log")"
}

pack_folder() {
    "${python}" -m espnet_ee.bin.pack "${model_args[@]}" --exits_csv "${asr_exp}/exits.csv" \
        --name "${pack_name:-$(basename "${asr_exp}")}" --licence "${pack_licence}" \
        --training_data "${pack_data:-${train_set}}" --command "$(shown_command)" --outpath "${asr_exp}/package" \
        --policies ${policies[@]+"${policies[@]}"}
}
