#!/usr/bin/env bash
# The backends of cmd.sh; to be sourced by asr_ee.sh, whose option variables and functions it uses.
# shellcheck disable=SC2154,SC2034  # the options and names are asr_ee.sh's

# Sets data_words, train_words and decode_words (arrays): what is put before a command; gpu_words: what stage 11 adds.
set_commands() {
    read -ra data_words <<<"${data_cmd}"
    read -ra train_words <<<"${train_cmd}"
    read -ra decode_words <<<"${decode_cmd}"
    gpu_words=()
    # Within a task of a job array there is nothing to submit: see run_jobs.
    if [ -n "${ESPNET_EE_TASKS:-}" ]; then return 0; fi
    case ${cmd_backend} in
        local)
            if [ "${num_nodes}" -gt 1 ]; then usage_error "--num_nodes ${num_nodes} needs the backend slurm (cmd.sh)"; fi
            ;;
        slurm)
            local words
            if [ -z "${data_cmd}" ]; then
                read -ra words <<<"${slurm_data_opts}"
                data_words=(srun --ntasks=1 ${words[@]+"${words[@]}"})
            fi
            if [ -z "${train_cmd}" ]; then
                read -ra words <<<"${slurm_train_opts}"
                train_words=(srun --nodes=1 --ntasks=1 ${words[@]+"${words[@]}"})
                if [ "${ngpu}" -gt 0 ]; then gpu_words=("--gres=gpu:${ngpu}"); fi
            fi
            ;;
        *) usage_error "cmd.sh: the backend '${cmd_backend}' is none of: local slurm" ;;
    esac
}

# run_jobs STAGE SLOTS OPTIONS LOGDIR FUNCTION ARGUMENT...: the function once for each argument; locally SLOTS at a time, on
# slurm as one job array with sbatch's OPTIONS. A task of the array is this script again, for this stage and argument alone.
run_jobs() {
    local number=$1 slots=$2 options=$3 logs=$4 function=$5 status=0 words tasks=() task
    shift 5
    if [ -n "${ESPNET_EE_TASKS:-}" ]; then
        task=$((SLURM_ARRAY_TASK_ID))
        # The jobs are those of the run that submitted this one: both read the same options.
        if [ "${ESPNET_EE_TASKS}" -ne $# ]; then
            echo "asr_ee.sh: error: the array has ${ESPNET_EE_TASKS} tasks, but there are $# jobs; do not edit while it runs" >&2
            return 1
        fi
        "${function}" "${!task}"
        return
    fi
    if [ "${cmd_backend}" = slurm ]; then
        read -ra words <<<"${options}"
        mkdir -p "${logs}"
        rm -f "${logs}/array${number}".*.log
        log "stage ${number}: a job array of $# tasks; logs: ${logs}/array${number}.*.log"
        ESPNET_EE_TASKS=$# sbatch --wait --export=ALL --job-name "ee_stage${number}" --array "1-$#" --output "${logs}/array${number}.%a.log" \
            ${words[@]+"${words[@]}"} utils/slurm_task.sh bash "$0" ${all_arguments[@]+"${all_arguments[@]}"} \
            --stage "${number}" --stop_stage "${number}" >/dev/null || status=$?
        if [ "${status}" -ne 0 ]; then
            readarray -t tasks < <(grep -l ': error: ' "${logs}/array${number}".*.log)
            for task in ${tasks[@]+"${tasks[@]}"}; do show_failure "${task}" "stage ${number}: a task of the job array failed"; done
            echo "asr_ee.sh: error: stage ${number}: the job array failed with status ${status}; logs: ${logs}/array${number}.*.log" >&2
            return "${status}"
        fi
        # What the tasks have done is skipped now; what they have not done by whatever accident is done here.
    fi
    run_parallel "${slots}" "${function}" "$@"
}

# Sets launch_words (an array): ESPnet's launcher, for a training on several nodes; its log goes to $1.
set_launcher() {
    launch_words=("${python}" -m espnet2.bin.launch --cmd utils/slurm.pl --log "$1" --ngpu "${ngpu}" --num_nodes "${num_nodes}"
        --init_file_prefix "${asr_exp}/.dist_init_" -- "${asr_train[@]}")
}
