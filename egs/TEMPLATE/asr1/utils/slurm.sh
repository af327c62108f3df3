#!/usr/bin/env bash
# For ESPnet's launcher, which calls it by the name slurm.pl: submits a job on several nodes and waits for it.
#   slurm.pl [--gpu N] [--num_threads N] [--num_nodes N] LOG COMMAND...
set -euo pipefail

args=(--wait --export=ALL --ntasks-per-node=1)
while [ $# -gt 1 ]; do
    case $1 in
        --gpu) if [ "$2" -gt 0 ]; then args+=("--gres=gpu:$2"); fi ;;
        --num_threads) args+=("--cpus-per-task=$2") ;;
        --num_nodes) args+=("--nodes=$2") ;;
        *) break ;;
    esac
    shift 2
done
if [ $# -lt 2 ]; then
    echo "slurm.sh: error: a log and a command are needed after the options" >&2
    exit 2
fi
logfile=$1
shift
mkdir -p "$(dirname "${logfile}")"
read -ra words <<<"${slurm_train_opts:-}"
exec sbatch "${args[@]}" --output "${logfile}" ${words[@]+"${words[@]}"} "$(dirname "$0")/slurm_task.sh" "$@"
