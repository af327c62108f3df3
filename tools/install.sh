#!/usr/bin/env bash
# Makes the Python environment of this checkout: tools/venv/<version>, one for each Python version (tools/venv/3.11, ...).
set -euo pipefail

usage() {
    cat <<EOF
Usage: [PYTHON=python3.11] $0 [--dev] [--print]
  PYTHON   the interpreter to build on (default: python3). 3.10 and 3.11 get ESPnet 202511, 3.12 and 3.13 get 202611.
  --dev    also what the tests need
  --print  install nothing; print the environment's folder
Running it again does nothing unless setup.py or the constraints changed; an interrupted run is started over.
EOF
}

fail() {
    echo "install.sh: error: $1" >&2
    exit "${2:-1}"
}

extras=recipe
print_only=false
for option in "$@"; do
    case ${option} in
        --dev) extras=dev ;;
        --print) print_only=true ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) fail "unknown option ${option} (see --help)" 2 ;;
    esac
done

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
PYTHON=${PYTHON:-python3}
command -v "${PYTHON}" >/dev/null || fail "${PYTHON}: no such interpreter; set PYTHON to a Python 3.10 to 3.13"
version=$("${PYTHON}" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) ||
    fail "${PYTHON} does not run (try: ${PYTHON} --version); set PYTHON to a Python 3.10 to 3.13"
case ${version} in
    3.10 | 3.11 | 3.12 | 3.13) ;;
    *) fail "${PYTHON} is Python ${version}; supported are 3.10 to 3.13: set PYTHON to one of them" ;;
esac

venv=${root}/tools/venv/${version}
constraints=${root}/tools/constraints-${version}.txt
if "${print_only}"; then
    echo "${venv}"
    exit 0
fi

# What the environment is made from. The folder belongs to it: an environment does not survive being moved.
wanted() {
    echo "root ${root}"
    # cksum is everywhere (POSIX); sha256sum is not.
    cksum <"${root}/setup.py"
    if [ -f "${constraints}" ]; then cksum <"${constraints}"; fi
}
stamp=$(wanted)

# Has an environment with these extras (dev contains all that recipes need) been finished, from the same files?
is_done() {
    local have
    for have in "${extras}" dev; do
        if [ -x "${venv}/bin/python" ] && [ -f "${venv}/.done.${have}" ] && [ "$(<"${venv}/.done.${have}")" = "${stamp}" ]; then
            return 0
        fi
    done
    return 1
}
if is_done; then exit 0; fi

# One installer at a time. The lock sits on the open file, so it ends with this process however that ends.
mkdir -p "${root}/tools/venv"
exec 9>"${root}/tools/venv/.lock-${version}"
"${PYTHON}" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)' || fail "cannot lock ${root}/tools/venv/.lock-${version}"
if is_done; then exit 0; fi

log=${venv}.log
step() {
    echo "install.sh: $1 (log: ${log})"
    shift
    # A child must not inherit the lock: it could outlive us.
    if ! "$@" >>"${log}" 2>&1 </dev/null 9>&-; then
        tail -n 20 "${log}" >&2
        fail "failed: $*; the full log is ${log}"
    fi
}

: >"${log}"
# Without a mark the environment was never finished (or its interpreter is gone): start over.
# With one it is whole but out of date: pip brings it up to date.
if ! compgen -G "${venv}/.done.*" >/dev/null || ! "${venv}/bin/python" -c '' 2>/dev/null; then
    rm -rf "${venv}"
    step "making ${venv} with ${PYTHON}" "${PYTHON}" -m venv "${venv}"
fi
rm -f "${venv}"/.done.*

pip=("${venv}/bin/python" -m pip install --disable-pip-version-check)
if [ -f "${constraints}" ]; then
    pip+=(--constraint "${constraints}")
else
    echo "install.sh: note: the versions were not tested with Python ${version}; pip chooses them"
fi
step "installing espnet_ee[${extras}] and its dependencies, which takes some minutes" \
    "${pip[@]}" --editable "${root}[${extras}]"
step "checking the environment" "${venv}/bin/python" -c \
    'import sys, torch, espnet, espnet_ee; print("Python", sys.version.split()[0], "ESPnet", espnet.__version__, "torch", torch.__version__)'
tail -n 1 "${log}"

mark=${venv}/.done.${extras}
printf '%s\n' "${stamp}" >"${mark}.tmp"
mv "${mark}.tmp" "${mark}"
echo "install.sh: done: ${venv}"
