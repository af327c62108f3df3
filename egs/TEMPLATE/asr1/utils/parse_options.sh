#!/usr/bin/env bash
# Option parser of the recipes; to be sourced. The script that sources it declares its options as
#     # begin options
#     name=default   # [5 11] what it does
#     # end options
# and then calls: parse_options "$@"
# Taken are --name value, --name=value and --help, for declared names only; anything else is one line on stderr and
# exit status 2. A value is stored as it is: nothing of it is ever evaluated.
# In the brackets: the stages whose output the option changes, "-" for none; "5*": stage 5 has a form of its own for it, such
# as the content of the file it names; "ROOT": a folder, for which an empty value means what db.sh or the environment calls so.
# Options that another script declares (option_files=(local/data.sh)) are taken, too, and kept for it in the array
# forwarded_options, unless the script itself has one of that name.
option_files=()
forwarded_options=()

# Prints the name, default, stages and help of every option that script $1 declares, with the character 31 between.
declared_options() {
    local line default inside=false
    while IFS= read -r line; do
        case ${line} in
            '# begin options') inside=true ;;
            '# end options') return 0 ;;
            *)
                # name=default   # [stages] help; the default's closing blanks are cut off below.
                if "${inside}" && [[ ${line} =~ ^([a-z][a-z0-9_]*)=(.*)[[:space:]]\#[[:space:]](\[([^]]*)\][[:space:]])?(.*)$ ]]; then
                    default=${BASH_REMATCH[2]}
                    default=${default%"${default##*[![:space:]]}"}
                    printf '%s\x1f' "${BASH_REMATCH[1]}" "${default}" "${BASH_REMATCH[4]}"
                    printf '%s\n' "${BASH_REMATCH[5]}"
                fi
                ;;
        esac
    done <"$1"
}

# Says what is wrong with the command line and ends the script.
usage_error() {
    # shellcheck disable=SC2034  # of utils/stage.sh
    end_explained=true
    echo "$(basename "$0"): error: $1 (--help lists the options)" >&2
    exit 2
}

print_options() {
    local _name _default _stages _help _own _file
    echo "Usage: $0 [--name value | --name=value] ..."
    _own=" $(option_names "$0")"
    # A run.sh gives its settings before the user's, so what an option holds now is what counts if it is not given.
    while IFS=$'\x1f' read -r _name _default _stages _help; do
        printf '  --%-22s %s (default: %s)\n' "${_name}" "${_help}" "${!_name:-none}"
    done < <(declared_options "$0")
    for _file in ${option_files[@]+"${option_files[@]}"}; do
        echo "Passed on to ${_file}:"
        while IFS=$'\x1f' read -r _name _default _stages _help; do
            _default=${_default//\"/}
            [[ ${_own} == *" ${_name} "* ]] || printf '  --%-22s %s (default: %s)\n' "${_name}" "${_help}" "${_default:-none}"
        done < <(declared_options "${_file}")
    done
}

# option_names SCRIPT: the names that it declares, each followed by a blank.
option_names() {
    declared_options "$1" | cut -d $'\x1f' -f 1 | tr '\n' ' '
}

# stage_options STAGE: "name=value" of every option of this script that is declared for the stage (without a star).
stage_options() {
    local _name _default _stages _help _words
    while IFS=$'\x1f' read -r _name _default _stages _help; do
        if [[ " ${_stages} " == *" $1 "* ]]; then
            # However the words of a list are set apart, it is the same list.
            read -ra _words <<<"${!_name//$'\n'/ }"
            printf '%s=%s\n' "${_name}" "${_words[*]-}"
        fi
    done < <(declared_options "$0")
}

# For --settings: "[stages] name=value" of every option that changes some stage's output, folders as whole paths.
print_settings() {
    local _name _default _stages _help _value _key
    if [ -f db.sh ]; then . ./db.sh; fi
    while IFS=$'\x1f' read -r _name _default _stages _help; do
        _value=${!_name//$'\n'/ }
        if [[ ${_stages} =~ [A-Z] ]]; then
            _key=${_stages##* }
            _stages=${_stages% *}
            _value=${_value:-${!_key-}}
            if [ -n "${_value}" ]; then _value=$(realpath -m -- "${_value}"); fi
        fi
        [ "${_stages}" = - ] || printf '[%s] %s=%s\n' "${_stages}" "${_name}" "${_value}"
    done < <(declared_options "$0")
}

# Sets the caller's variables from its arguments.
parse_options() {
    local _own _names _argument _name _value _file _settings=false # no option can be called so: a name starts with a letter
    _own=" $(option_names "$0")"
    _names=${_own}
    for _file in ${option_files[@]+"${option_files[@]}"}; do _names+=$(option_names "${_file}")" "; done
    while [ $# -gt 0 ]; do
        _argument=$1
        shift
        case ${_argument} in
            --help | -h)
                print_options
                exit 0
                ;;
            --settings)
                _settings=true # for asr_ee.sh, which asks local/data.sh
                continue
                ;;
            --*=*)
                _name=${_argument%%=*}
                _name=${_name#--}
                _value=${_argument#*=}
                ;;
            --*)
                _name=${_argument#--}
                _value=
                ;;
            *) usage_error "unexpected argument '${_argument}'" ;;
        esac
        # The pattern keeps names like 'stage nj' (with a blank) from matching the list.
        if ! [[ ${_name} =~ ^[a-z][a-z0-9_]*$ && ${_names} == *" ${_name} "* ]]; then
            usage_error "unknown option '--${_name}'"
        fi
        if [[ ${_argument} != *=* ]]; then
            [ $# -gt 0 ] || usage_error "option '--${_name}' needs a value"
            # '--stage --nj 4' forgot a value; '--asr_args "--max_epoch 3"' did not: no option is called 'max_epoch 3'.
            _value=${1%%=*}
            if [[ ${_value} == --[a-z]* && ${_names} == *" ${_value#--} "* ]]; then
                usage_error "option '--${_name}' needs a value, not '$1' (if that is meant: '--${_name}=$1')"
            fi
            _value=$1
            shift
        fi
        if [[ ${_own} == *" ${_name} "* ]]; then
            printf -v "${_name}" '%s' "${_value}"
        else
            forwarded_options+=("--${_name}=${_value}")
        fi
    done
    if "${_settings}"; then
        print_settings
        exit 0
    fi
}

# require_integer NAME...: each named option must hold a whole number.
require_integer() {
    local name
    for name in "$@"; do
        [[ ${!name} =~ ^(0|[1-9][0-9]*)$ ]] || usage_error "option '--${name}' needs a whole number, not '${!name}'"
    done
}

# require_percentage NAME...: each named option must hold a number from 0 to 100.
require_percentage() {
    local name
    for name in "$@"; do
        [[ ${!name} =~ ^(100|[0-9]{1,2})(\.[0-9]+)?$ && ! ${!name} =~ ^100\..*[1-9] ]] ||
            usage_error "option '--${name}' needs a percentage, not '${!name}'"
    done
}

# require_choice NAME VALUE...: the named option must hold one of the values.
require_choice() {
    local name=$1 value
    shift
    for value in "$@"; do
        if [ "${!name}" = "${value}" ]; then return 0; fi
    done
    usage_error "option '--${name}': '${!name}' is none of: $*"
}
