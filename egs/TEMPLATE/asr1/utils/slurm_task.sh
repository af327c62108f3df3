#!/usr/bin/env bash
# A task of a job array, started by Slurm: runs the command it is given. Work within it is local.
set -euo pipefail
export cmd_backend=local
exec "$@"
