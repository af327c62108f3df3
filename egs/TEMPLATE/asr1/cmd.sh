#!/usr/bin/env bash
# Words put before the commands of the stages: any program that starts a command elsewhere, waits for it and hands back its
# exit status, such as Slurm's srun. Empty: this machine. asr_ee.sh itself stays here and waits.
export data_cmd="${data_cmd:-}"     # stages 2 to 5 and 10, such as "srun --ntasks=1 --cpus-per-task=8 --mem=16G" (with --nj 8)
# Stage 11, such as "srun --ntasks=1 --gres=gpu:4" (with --ngpu 4); on two nodes (with --num_nodes 2 --ngpu 8) "srun --nodes=2
# --ntasks-per-node=1 --gres=gpu:8 --kill-on-bad-exit".
export train_cmd="${train_cmd:-}"
export decode_cmd="${decode_cmd:-}" # stage 12, such as "srun --partition=cpu --ntasks=1"
