#!/usr/bin/env bash
# The paper's table: exits by models, with their policies: COMPARISON.md and comparison.png. Every model is trained, decoded and
# scored by run.sh (what is done is skipped); all other options are run.sh's, for all of them:
#   local/run_comparison.sh --models "ee single" --depths "2 4 6" --ngpu 1
#   local/run_comparison.sh --models "ee=exp/asr_a single=exp/asr_b2,exp/asr_b4" --train false
# Which models there are: local/comparison.txt. What is not there is left out of the table, and named.
set -euo pipefail
cd "$(dirname "$0")/.."
# The parser reads this file again, so its name must hold in the recipe's folder. (By itself exec makes an absolute path of it.)
[ "$0" = local/run_comparison.sh ] || exec bash local/run_comparison.sh "$@"
command=local/run_comparison.sh$([ $# -eq 0 ] || printf " %q" "$@")

# begin options
models=""     # [-] the columns, separated by blanks: names of local/comparison.txt (empty: all of them), or NAME=EXPERIMENT,EXPERIMENT
depths=""     # [-] of the models of one exit, separated by blanks; empty: the exits of the configuration
train=true    # [-] false: nothing is trained; what has been scored is taken
out=""        # [-] folder for COMPARISON.md and comparison.png; empty: that of the experiments
python=""     # [-] interpreter with all dependencies; empty: the environment that tools/install.sh makes
# end options

. utils/run_settings.sh
require_choice train true false
columns=() missing=() failed=false

# try TITLE COMMAND...: trains a model, unless nothing is to be trained; one that fails costs no other its place.
try() {
    local title=$1
    shift
    if "${train}" && ! "$@" </dev/null; then
        echo "run_comparison.sh: error: ${title}: its run failed (see above)" >&2
        failed=true
        missing+=("${title}: its run failed; what is shown of it was scored before")
    fi
}

# add_single TITLE WORD...: the models of one exit, each of a depth.
add_single() {
    local title=$1 exp depth folders=""
    shift
    exp=$(experiment "$@")
    try "${title}" local/run_depths.sh --stop_stage 13 ${options[@]+"${options[@]}"} "$@" --depths "${depths}"
    if [ -n "${depths}" ]; then
        for depth in ${depths}; do folders+=",${exp}_depth${depth}"; done
    else
        for depth in $(printf '%s\n' "${exp}"_depth*/exits.csv | sort -V); do folders+=",${depth%/exits.csv}"; done
    fi
    columns+=("${title}=${folders#,}")
}

# add_model NAME TITLE WORD...: a model that run.sh makes with these options. Its scores are copied, for one model may be decoded
# in two ways, which share its experiment: the copy counts, where there is one.
add_model() {
    local kept title=$2 exp word
    kept=${out}/comparison/$1
    shift 2
    for word in "$@"; do
        if [[ ${word} == *.yaml && ! -e ${word} ]]; then
            missing+=("${title}: this recipe has no ${word}")
            return 0
        fi
    done
    exp=$(experiment "$@")
    try "${title}" ./run.sh --stop_stage 13 ${options[@]+"${options[@]}"} "$@" --results_dir "${kept}"
    if [ -f "${kept}/exits.csv" ]; then exp=${kept}; fi
    columns+=("${title}=${exp}")
}

# add NAME: a column of local/comparison.txt, whose lines are NAME | TITLE | OPTIONS.
add() {
    local name title settings words split known=""
    while IFS='|' read -r name title settings; do
        read -r name <<<"${name}"
        known+=" ${name}"
        [ "${name}" = "$1" ] || continue
        read -r title <<<"${title}"
        words=()
        if [[ ${settings} == *[![:space:]]* ]]; then
            # Quotes keep blanks within a word, and nothing is evaluated.
            split=$(xargs printf '%s\n' <<<"${settings}" 2>/dev/null) ||
                usage_error "local/comparison.txt: ${name}: a quote is opened and not closed:${settings}"
            readarray -t words <<<"${split}"
        fi
        if [ "${name}" = single ]; then
            add_single "${title}" ${words[@]+"${words[@]}"}
        else
            add_model "${name}" "${title}" ${words[@]+"${words[@]}"}
        fi
        return 0
    done < <(names)
    usage_error "option '--models': '$1' is none of${known}, and no NAME=EXPERIMENT"
}

names() { grep -Ev "^ *(#|$)" local/comparison.txt; }

# In braces: bash reads all of it before it runs any of it, so editing this file does no harm to a running comparison.
{
    out=${out:-$(dirname "$(experiment)")}
    if [ -z "${models}" ]; then models=$(names | cut -d '|' -f 1 | tr -s ' \n' ' '); fi
    for model in ${models}; do
        if [[ ${model} == *=* ]]; then columns+=("${model}"); else add "${model}"; fi
    done

    valid_set=$(setting valid_set) sets=()
    for name in $(setting test_sets); do
        if [ "${name}" != "${valid_set}" ]; then sets+=("${name}"); fi
    done
    args=()
    if [ "${#missing[@]}" -gt 0 ]; then args+=(--missing "${missing[@]}"); fi
    "${ESPNET_EE_PYTHON}" -m espnet_ee.cli compare-models --models ${columns[@]+"${columns[@]}"} --out "${out}" \
        --sets ${sets[@]+"${sets[@]}"} "${valid_set}" --command "${command}" ${args[@]+"${args[@]}"}
    echo "run_comparison.sh: ${out}/COMPARISON.md ${out}/comparison.png"
    if "${failed}"; then exit 1; fi
    exit 0
}
