"""What stages 3, 5, 10 and 11 take from the training configuration, as lines that follow from what it says, not from how.

Called by asr_ee.sh: ``identity.py RATE NORMALIZE CONFIG WORD...``: --fs, --feats_normalize, --asr_config (may be empty), and the
words of --asr_args. Prints seven lines:

1. the frontend at this rate, for the features (JSON, which is YAML);
2. what the statistics depend on;
3. what the training depends on and must keep: with anything else it is another training;
4. what may change while it goes on;
5. frontend and encoder, for how many frames there will be (JSON);
6. by what stage 11 chooses models (``valid.cer_exit12 valid.loss``): first the one to decode with;
7. the words that belong into the experiment's name: those that make it another training.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import yaml

from espnet_ee.errors import UsageError, UserError, run
from espnet_ee.files import read_yaml

FRONTEND = ("frontend", "frontend_conf")
PREPROCESSING = (
    *("preprocessor", "preprocessor_conf", "speech_volume_normalize", "cleaner", "g2p", "non_linguistic_symbols"),
    *("use_lang_prompt", "use_nlp_prompt", "aux_ctc_tasks", "input_size"),
)
"""ESPnet collects statistics without noise, reverberation and the like: those keys are not here."""
CHANGES_NOTHING = (
    *("num_workers", "log_interval", "log_level", "num_att_plot", "use_matplotlib", "use_tensorboard", "use_wandb"),
    *("wandb_project", "wandb_id", "wandb_entity", "wandb_name", "wandb_model_log_interval", "create_graph_in_tensorboard"),
    *("ngpu", "multiprocessing_distributed", "dist_backend", "dist_launcher", "dist_init_method", "dist_master_port"),
    *("print_config", "resume", "detect_anomaly", "max_cache_size", "max_cache_fd"),
)
GOES_ON = (
    *("max_epoch", "patience", "keep_nbest_models", "nbest_averaging_interval", "use_amp", "grad_clip"),
    *("accum_grad", "batch_type", "batch_size", "batch_bins", "valid_batch_type", "valid_batch_size", "valid_batch_bins"),
)
"""More epochs, or other batches after an out of memory: the model goes on from its last epoch."""

OF_CONFIG_YAML = (
    *("train_data_path_and_name_and_type", "valid_data_path_and_name_and_type", "train_shape_file", "valid_shape_file"),
    *("output_dir", "token_list", "required"),
)
"""What stage 11 gives itself, of which ESPnet would take both: in a configuration they tell that it is what a training has written."""
OF_STAGES = {
    **dict.fromkeys(OF_CONFIG_YAML, "stages 10 and 11 give it"),
    **dict.fromkeys(("collect_stats", "dry_run", "print_config"), "stage 11 would train nothing"),
    "resume": "a training goes on where it stopped; for another beginning give another '--asr_tag'",
    "output_dir": "give '--asr_exp'",
    "config": "give '--asr_config'",
    "token_type": "give '--token_type'",
    "bpemodel": "stage 5 makes it",
}
"""Options of ESPnet's asr_train that ``--asr_args`` cannot have, and what to do."""

DEFAULT_CRITERIA = (("train", "loss", "min"), ("valid", "loss", "min"))
"""ESPnet's; it passes over its further ones, for without one decoder there is no accuracy."""

HF_RATE = 16000  # of all speech encoders that transformers has of these families

Words = list[list[str]]


def group(words: list[str]) -> Words:
    """The words of a command line, an option with its values each."""
    groups: Words = []
    for word in words:
        if word.startswith("--"):
            groups.append(word.split("=", 1))
        elif groups:
            groups[-1].append(word)
        else:
            groups.append([word])
    return groups


def key_of(words: list[str]) -> str:
    return words[0].removeprefix("--")


def lines(rate: int, path: str, words: list[str]) -> list[str]:
    """The seven lines (see the head of this file)."""
    config = read_yaml(path, "give another --asr_config", allow_empty=True) if path else {}
    options = group(words)
    refuse_own(path, config, options)
    if encoder_of(config, options)["encoder"] == "early_exit_hf" and rate != HF_RATE:
        raise UsageError(f"{path}: encoder: early_exit_hf was trained on {HF_RATE} Hz: give --fs {HF_RATE}, not {rate}")
    conf = config.get("frontend_conf") or {}
    if not isinstance(conf, dict):
        raise UserError(f"{path}: its frontend_conf must be 'key: value' lines")
    frontend = {"frontend": config.get("frontend") or "default", "frontend_conf": {**conf, "fs": rate}}
    statistics = {
        **frontend,
        **{key: config[key] for key in PREPROCESSING if config.get(key) is not None},
        "options": [option for option in options if key_of(option) in (*FRONTEND, *PREPROCESSING)],
    }
    free = (*CHANGES_NOTHING, *GOES_ON)
    lasting = [option for option in options if key_of(option) not in free]
    training = {"config": {key: config[key] for key in config if key not in free}, "options": lasting}
    may_change = {key: config[key] for key in GOES_ON if key in config}
    may_change |= {key_of(option): value_of(option) for option in options if key_of(option) in GOES_ON}
    name = " ".join(word for option in lasting for word in option)
    parts = (frontend, statistics, training, may_change, {**frontend, **encoder_of(config, options)})
    described = (json.dumps(text_keys(part), sort_keys=True, default=str) for part in parts)
    return [*described, " ".join(chosen_by(config, options)), name]


def refuse_own(path: str, config: dict[str, Any], options: Words) -> None:
    """Refuses what the stages have to say themselves; of ``--resume false`` ESPnet would train over a finished model."""
    for option in options:
        if remedy := OF_STAGES.get(key_of(option)):
            raise UsageError(f"option '--asr_args': {option[0]} cannot be given: {remedy}")
    if written := [key for key in OF_CONFIG_YAML if config.get(key)]:
        raise UsageError(
            f"{path}: has {' and '.join(written)}, so it is what a training has written: give the configuration that it was "
            "trained with (such as conf/train_*.yaml), or a copy without these keys"
        )


def text_keys(value: Any) -> Any:
    """YAML's keys may be anything, JSON's are text (and only such can be sorted)."""
    if isinstance(value, dict):
        return {str(key): text_keys(inner) for key, inner in value.items()}
    return [text_keys(inner) for inner in value] if isinstance(value, list) else value


def encoder_of(config: dict[str, Any], options: Words) -> dict[str, Any]:
    """Encoder and its settings: of the configuration, and of the options, which win."""
    encoder, conf = config.get("encoder"), config.get("encoder_conf")
    settings = dict(conf) if isinstance(conf, dict) else {}
    for option in options:
        if key_of(option) == "encoder":
            encoder = value_of(option)
        elif key_of(option) == "encoder_conf":
            pairs = (word.partition("=") for word in option[1:])
            settings |= {key: value_of(["", value]) for key, _, value in pairs}
    return {"encoder": encoder, "encoder_conf": settings}


def chosen_by(config: dict[str, Any], options: Words) -> list[str]:
    """What models are chosen by, such as ``valid.loss``: the development set's before the training set's."""
    criteria = config.get("best_model_criterion") or DEFAULT_CRITERIA
    for option in options:
        if key_of(option) == "best_model_criterion":
            criteria = [word.split(",") for word in option[1:]]
    if not all(isinstance(criterion, list | tuple) and len(criterion) == 3 for criterion in criteria):
        raise UserError("best_model_criterion must be lists of three such as [valid, loss, min]")
    names = [f"{phase}.{measure}" for phase, measure, _ in criteria]
    return sorted(dict.fromkeys(names), key=lambda name: not name.startswith("valid."))


def value_of(option: list[str]) -> Any:
    text = " ".join(option[1:])
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def check_statistics(path: str, words: list[str]) -> None:
    """Refuses a configuration that normalises by statistics and says of no file that has them."""
    config = read_yaml(path, "give another --asr_config", allow_empty=True)
    given = "stats_file" in (config.get("normalize_conf") or {}) or any("stats_file=" in word for word in words)
    if config.get("normalize") == "global_mvn" and not given:
        raise UsageError(
            f"{path}: its normalize: global_mvn needs the training set's statistics: give --feats_normalize global_mvn"
        )


def main() -> None:
    rate, normalize, path, *words = sys.argv[1:]
    if path and normalize == "config":
        check_statistics(path, words)
    print("\n".join(lines(int(rate), path, words)))


if __name__ == "__main__":
    sys.argv[0] = "asr_ee.sh"
    run(main)
