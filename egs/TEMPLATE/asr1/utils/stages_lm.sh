#!/usr/bin/env bash
# Stage 9 of asr_ee.sh (sourced by it: all names are its): the language model of a beam search. (Its weight is tuned in stage 12.)
# shellcheck disable=SC2154  # the options and names are asr_ee.sh's

# Stage 9. An n-gram model of the tokens. The text is that of stage 1: at other speeds every sentence would count thrice.
train_lm() {
    local text=${lm_text:-${datadir}/${raw_train}/text} files=("${token_list}") args=() wanted
    [ -z "${lm_text}" ] || [ -f "${lm_text}" ] || usage_error "option '--lm_text': no such file: $(realpath -m -- "${lm_text}")"
    need "${text}" 1
    need "${token_list}" 5
    if [ "${token_type}" = bpe ]; then files+=("${token_dir}/bpe.model"); fi
    if [ -n "${lm_order}" ]; then args+=(--order "${lm_order}"); fi
    wanted=$(identity "$(stage_options 9)" "${text}" "${files[@]}")
    [ -f "${lm_file}" ] || rm -f "${lm_dir}/.done"
    run_once "stage 9: language model" "${lm_dir}/.done" "${wanted}" "${lm_dir}/train.log" \
        "${data_run[@]}" lm --text "${text}" --tokens "${token_dir}" --token_type "${token_type}" --out "${lm_file}" \
        ${args[@]+"${args[@]}"}
    show_log "${lm_dir}/train.log"
}
