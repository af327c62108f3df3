#!/usr/bin/env bash
# Where the stages' work runs. local: on this machine. slurm: stages 3 and 12 as job arrays (sbatch, one task for each set
# and decoding), the other stages as single jobs (srun); asr_ee.sh itself stays here and waits.
export cmd_backend="${cmd_backend:-local}"
# What the jobs ask for, in words of sbatch and srun.
export slurm_data_opts="${slurm_data_opts:-}"     # stages 2 to 5, such as "--cpus-per-task=8 --mem=8G" (with --nj 8)
export slurm_train_opts="${slurm_train_opts:-}"   # stages 10 and 11; to 11 GPUs are added as --ngpu says
export slurm_decode_opts="${slurm_decode_opts:-}" # stage 12, such as "--partition=cpu --cpus-per-task=1"
# Words put before the commands of the stages, for any other scheduler that starts a command, waits for it and hands back
# its exit status. Empty: what the backend says.
export data_cmd="${data_cmd:-}"     # stages 2 to 5
export train_cmd="${train_cmd:-}"   # stages 10 and 11
export decode_cmd="${decode_cmd:-}" # stage 12
