#!/usr/bin/env bash
# How a stage runs its work once; to be sourced. See run_once.

log() {
    # As ESPnet's: when, where, what.
    echo "$(date '+%Y-%m-%dT%H:%M:%S') (${BASH_SOURCE[1]##*/}:${BASH_LINENO[0]}:${FUNCNAME[1]}) $*"
}

# fail MESSAGE: the one line that says why, and the end.
fail() {
    end_explained=true
    echo "$(basename "$0"): error: $1" >&2
    exit 1
}

# explain_end, for the trap EXIT: what else ends a script is a command of its own that failed (on a full disk, or where nothing
# may be written), and what that says names neither the script nor itself as the reason.
end_explained=false
explain_end() {
    local status=$? ended=${BASH_COMMAND%%$'\n'*}
    if [ "${status}" -ne 0 ] && [ "${status}" -ne 130 ] && ! "${end_explained}"; then
        echo "$(basename "$0"): error: stopped by status ${status} of: ${ended} (${FUNCNAME[1]-}); what it said stands above" >&2
    fi
}

# identity WORDS FILE...: prints what a piece of work depends on: its options (lines) and the content of its input files,
# wherever they lie. A missing file counts too: it may appear later.
identity() {
    local file name
    printf '%s\n' "$1"
    shift
    for file in "$@"; do
        name=$(basename "$(dirname "${file}")")/${file##*/}
        if [ -f "${file}" ]; then
            # cksum is everywhere (POSIX) and is to notice a change, not an attack.
            printf '%s %s\n' "$(cksum <"${file}")" "${name}"
        else
            printf 'absent %s\n' "${name}"
        fi
    done
}

# is_done MARK IDENTITY: has the work with this mark been finished, from these inputs and with these options?
is_done() {
    [ -f "$1" ] && [ "$(<"$1")" = "$2" ]
}

# is_of MARK FILE...: was the work with this mark finished, from these files as they are now? (Its options are not asked for.)
is_of() {
    local mark=$1
    shift
    # All of it is read: with pipefail a pipe that is left early fails.
    [ -f "${mark}" ] && ! identity "" "$@" | sed 1d | { grep -vxF -f "${mark}" | grep -c .; } >/dev/null
}

# mark_done MARK IDENTITY: writes the mark, whole or not at all.
mark_done() {
    mkdir -p "$(dirname "$1")"
    printf '%s\n' "$2" >"$1.tmp"
    mv "$1.tmp" "$1"
}

# show_failure LOG MESSAGE: the end of the log, then where it is.
show_failure() {
    end_explained=true
    {
        if [ -s "$1" ]; then
            echo "---- the last lines of $1:"
            tail -n 20 "$1"
            echo "----"
        fi
        echo "$(basename "$0"): error: $2; the full log is $1"
    } >&2
}

# show_log LOG: what a stage had to say, now or when it was done. Whoever has deleted the log does without.
show_log() {
    if [ -f "$1" ]; then cat "$1"; fi
}

# run_logged TITLE LOG COMMAND...: runs the command into the log; on failure prints the log's end and fails.
run_logged() {
    local title=$1 logfile=$2 status=0
    shift 2
    mkdir -p "$(dirname "${logfile}")"
    "$@" >"${logfile}" 2>&1 </dev/null || status=$?
    if [ "${status}" -ne 0 ]; then
        show_failure "${logfile}" "${title} failed with status ${status}"
        return "${status}"
    fi
}

# run_once TITLE MARK IDENTITY LOG COMMAND...: runs the command unless the mark says that it was done with this identity.
# The mark goes before the command starts and comes back when it has succeeded, so that work cut off is done again.
run_once() {
    local title=$1 mark=$2 wanted=$3 logfile=$4
    shift 4
    if is_done "${mark}" "${wanted}"; then
        log "${title}: done, skipped"
        return 0
    fi
    if [ -f "${mark}" ]; then
        log "${title}: options or inputs changed, done again; log: ${logfile}"
    else
        log "${title}; log: ${logfile}"
    fi
    rm -f "${mark}"
    run_logged "${title}" "${logfile}" "$@" || return
    mark_done "${mark}" "${wanted}"
}

# lock_folder FOLDER OPTION: keeps a second run out of what stages are about to write. The lock is the system's: it ends with
# this script, however that ends, and with the processes that it has started.
lock_handles=()
lock_folder() {
    local handle file reason status=0
    file=$(dirname "$1")/.$(basename "$1").lock
    mkdir -p "$(dirname "$1")"
    exec {handle}<>"${file}"
    # What was killed a moment ago may still be about to go.
    reason=$(flock --timeout "${ESPNET_EE_LOCK_SECONDS:-3}" "${handle}" 2>&1) || status=$?
    if [ "${status}" -eq 1 ]; then
        fail "$1 is in use by $(head -n 1 "${file}"); wait for its end, or give another '--$2'"
    elif [ "${status}" -ne 0 ]; then
        echo "$(basename "$0"): warning: $1 cannot be locked, so nothing keeps a second run out of it: start none (its file system has no locks? ${reason})" >&2
    fi
    printf '%s\n' "process $$ on $(hostname) since $(date '+%Y-%m-%dT%H:%M:%S') (or what it has started)" >"${file}"
    lock_handles+=("${handle}")
}

unlock_folders() {
    local handle
    for handle in ${lock_handles[@]+"${lock_handles[@]}"}; do exec {handle}>&-; done
    lock_handles=()
}

# run_parallel N FUNCTION ARGUMENT...: calls the function once for each argument, N at a time; waits for all of them and
# fails when one failed.
run_parallel() {
    local slots=$1 function=$2 argument running=0 status=0
    shift 2
    if [ "${slots}" -le 1 ]; then
        # Not "|| return": that would switch the function's own "set -e" off. Where a caller has done so, the status tells.
        for argument in "$@"; do
            "${function}" "${argument}"
            status=$?
            [ "${status}" -eq 0 ] || return "${status}"
        done
        return 0
    fi
    # Ctrl-C does not reach background jobs by itself.
    trap 'kill 0' INT
    for argument in "$@"; do
        if [ "${running}" -ge "${slots}" ]; then
            wait -n || status=$?
            running=$((running - 1))
        fi
        "${function}" "${argument}" &
        running=$((running + 1))
    done
    while [ "${running}" -gt 0 ]; do
        wait -n || status=$?
        running=$((running - 1))
    done
    trap - INT
    return "${status}"
}
