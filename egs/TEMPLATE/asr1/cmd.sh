#!/usr/bin/env bash
# Words put before the commands of the stages. Empty: run here. A cluster's scheduler is named here, if it starts a
# command, waits for it and hands back its exit status, for example:
#   train_cmd="srun --gres=gpu:1 --cpus-per-task=4"
export data_cmd="${data_cmd:-}"     # stages 2 to 5
export train_cmd="${train_cmd:-}"   # stages 10 and 11
export decode_cmd="${decode_cmd:-}" # stage 12
