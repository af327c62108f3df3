#!/usr/bin/env bash
# Stages 14 and 15 of asr_ee.sh (sourced by it: all names are its): the model as a package that others can load, and the hub.
# shellcheck disable=SC2154  # the options and names are asr_ee.sh's

# Stage 14, with every decoding configuration that stage 12 calibrated, and those that were given. The first one is what a user
# gets who asks for none: the first that was given, or else that of the experiment itself (as `espnet-ee transcribe` has it).
pack_model() {
    local configs=(${inference_list[@]+"${inference_list[@]}"}) exported=() args=() data=${pack_data:-${raw_train}}
    local tag=${asr_exp##*/}
    local name=${pack_name:-${tag//[[:space:]]/_}} package_files=${asr_exp}/.stage14.files file wanted
    for file in "${asr_exp}"/policies/decode_*.yaml; do
        if [ -f "${file}" ]; then configs+=("${file}"); fi
    done
    # What espnet-ee export --out "${asr_exp}" wrote becomes a part of the package.
    if [ -f "${asr_exp}/onnx/model.yaml" ]; then exported=("${asr_exp}/onnx/model.yaml"); fi
    # Those of a beam with a language model name the one that stage 12 has tuned, which goes with them.
    if [ -f "${asr_exp}/lm/lm.arpa" ]; then exported+=("${asr_exp}/lm/lm.arpa"); fi
    if [ "${#inference_list[@]}" -gt 0 ]; then args=(--config "${configs[@]}"); fi
    need_model
    need "${asr_exp}/exits.csv" 13
    # What the card and the calibrated policies say must be of the model that is packed.
    need_decoding
    package_is_whole || rm -f "${asr_exp}/.stage14.done"
    wanted=$(identity "$(stage_options 14)"$'\n'"${name}, ${data}, ${online_policies}" "${asr_exp}/config.yaml" "${model_file}" "${asr_exp}/exits.csv" \
        ${configs[@]+"${configs[@]}"} ${exported[@]+"${exported[@]}"})
    run_once "stage 14: pack" "${asr_exp}/.stage14.done" "${wanted}" "${asr_exp}/log/pack.log" make_package \
        --name "${name}" --licence "${pack_licence}" --training_data "${data}" --command "$(shown_command)" ${args[@]+"${args[@]}"}
    log "stage 14: ${asr_exp}/package; $(tail -n 1 "${asr_exp}/log/pack.log")"
}

make_package() {
    "${espnet_ee[@]}" pack --model "${asr_exp}" --model_file "${model_file}" --out "${asr_exp}/package" "$@" || return
    (cd "${asr_exp}/package" && find . -type f | LC_ALL=C sort) >"${package_files}"
}

# package_is_whole: is every file there that stage 14 has made?
package_is_whole() {
    local name
    if [ ! -f "${package_files}" ]; then [ -d "${asr_exp}/package" ] || return 1; return 0; fi
    while IFS= read -r name; do
        [ -f "${asr_exp}/package/${name}" ] || return 1
    done <"${package_files}"
}

# Stage 15. Nothing leaves this machine unless '--upload_to' says where to.
upload_package() {
    local package=${asr_exp}/package package_files=${asr_exp}/.stage14.files hf wanted
    need "${package}/config.yaml" 14
    package_is_whole || fail "${package} lacks a file that stage 14 put there; run stage 14 first"
    if [ -f "${model_file}" ] && [ -f "${package_files}" ]; then
        is_of "${asr_exp}/.stage14.done" "${model_file}" || fail "${package} is of another model than ${model_file}; run stage 14 first"
    fi
    if [ -z "${upload_to}" ]; then
        log "stage 15: to share it: --stage 15 --upload_to OWNER/NAME (after: hf auth login)"
        return 0
    fi
    hf=$(find_hf) || usage_error "stage 15 needs the command hf: pip install huggingface_hub, then hf auth login"
    wanted=$(identity "$(stage_options 15)" "${package}"/*)
    run_once "stage 15: upload to ${upload_to}" "${asr_exp}/.stage15.done" "${wanted}" "${asr_exp}/log/upload.log" \
        "${hf}" upload "${upload_to}" "${package}"
}

# Prints the hub's command (or its older name): of the path, or beside the interpreter.
find_hf() {
    command -v hf || command -v huggingface-cli || command -v "$(dirname "${python}")/hf"
}
