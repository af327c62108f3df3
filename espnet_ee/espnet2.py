"""``espnet2.bin.asr_inference`` under our launcher: stage 12 of ESPnet's recipes, also with an exit policy.

A model without a decoder is searched by CTC alone, whatever the recipe's decoding configuration says. With a ``policy``, on the
command line or in that configuration, every utterance stops by our loop; written is what stage 13 reads, and where each stopped.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from espnet_ee.decode.loop import recognise
from espnet_ee.decode.results import BEST, FILES, recognise_each
from espnet_ee.decode.torch_session import TorchSession
from espnet_ee.errors import UsageError, UserError
from espnet_ee.files import read_yaml
from espnet_ee.kaldi import write_scp
from espnet_ee.policy.decoding import DecodingConfig, pairs, values
from espnet_ee.policy.searching import SearchConfig
from espnet_ee.score.kept import FAILED, write_failed
from espnet_ee.store.checkpoint import experiment_files, load_trained

_OWN = ("policy", "policy_conf", "search", "num_threads")
# Of the stock command: what asks for another search, another model or another result than the loop that stops gives.
_ELSEWHERE = (
    *("lm_train_config", "lm_file", "word_lm_train_config", "word_lm_file", "ngram_file", "nbest", "time_sync", "partial_ar"),
    *("model_tag", "streaming", "enh_s2t_task", "multi_asr", "hugging_face_decoder", "transducer_conf", "dtype"),
    *("quantize_asr_model", "quantize_lm", "token_type", "bpemodel"),
)


def main(stock: ModuleType) -> None:
    """Runs the command (the imported ``espnet2.bin.asr_inference``, its task already ours) with ``sys.argv``.

    Raises:
        UserError: a file is missing or does not fit, or an option has no place beside the policy.
    """
    print(stock.get_commandline_args(), file=sys.stderr)
    options = vars(add_options(stock.get_parser()).parse_args())
    del options["config"]
    own = {name: options.pop(name) for name in _OWN}
    _check_model_file(options["asr_model_file"])
    if own["policy"] is None:
        for name in ("policy_conf", "search"):
            if own[name]:
                raise UsageError(f"--{name}: are settings of --policy; name it (fixed: the last exit)")
        options["ctc_weight"] = ctc_weight(options)
        stock.inference(**options)
        return
    defaults = stock.get_parser()
    for name in _ELSEWHERE:
        if options.get(name) != defaults.get_default(name):
            remedy = "run asr.sh with --use_lm false" if name.startswith(("lm_", "word_lm_")) else "leave it out"
            raise UsageError(
                f"--{name} {options[name]}: has no place beside --policy, whose texts are those of CTC (see --search); {remedy}"
            )
    _decode(stock, argparse.Namespace(**options), _decoding_config(own, options["batch_size"]))


def add_options(parser: Any) -> Any:
    """Adds to the stock parser what a decoding configuration of ours holds, so that it also takes one as its ``--config``."""
    group = parser.add_argument_group("Early exit")
    group.add_argument("--policy", help="when an utterance stops: a decoding configuration (YAML), or a policy's name")
    group.add_argument("--policy_conf", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the policy")
    group.add_argument("--search", nargs="+", default=[], metavar="KEY=VALUE", help="with a policy: kind=beam beam=10 lm=FILE")
    group.add_argument("--num_threads", type=int, metavar="N", help="CPU threads, with a policy")
    return parser


def ctc_weight(options: Mapping[str, Any]) -> float:
    """The weight of CTC in stock search; that of a model without a decoder is 1.0, else its hypotheses would be arbitrary.

    With less, ESPnet prunes before CTC is asked, by the scores of all others: of none.
    """
    asked, path = options["ctc_weight"], options["asr_train_config"]
    if path is None or asked == 1.0:
        return asked
    trained = read_yaml(path, "give the config.yaml that training wrote")
    decoder, conf = trained.get("decoder"), trained.get("model_conf") or {}
    # A model that was trained by CTC alone is made without its decoder, but for a transducer's.
    if decoder is not None and (decoder == "transducer" or conf.get("ctc_weight") != 1.0):
        return asked
    print(f"{path}: the model has no decoder, so it is searched with ctc_weight 1.0 in place of {asked}", file=sys.stderr)
    return 1.0


def _check_model_file(name: str | None) -> None:
    """Raises UserError for a file that training did not make: asr.sh asks for valid.acc.ave.pth where nobody names another."""
    if name is None or Path(name).is_file():
        return
    try:
        experiment_files(Path(name).parent, Path(name).name)
    except UserError as error:
        raise UserError(f"{error} (asr.sh: --inference_asr_model)") from None


def _decoding_config(own: Mapping[str, Any], batch_size: int) -> DecodingConfig:
    """The decoding configuration that the options stand for."""
    policy, settings, search, threads = (own[name] for name in _OWN)
    if isinstance(settings, list):  # words of the command line; in a YAML file it is a table
        settings = pairs(settings, "--policy_conf")
    if not isinstance(settings or {}, Mapping):
        raise UserError(f"policy_conf must be 'key: value' lines, not {settings!r}")
    changes: dict[str, Any] = {"search": _search(search)} if search else {}
    if isinstance(policy, str) and (policy.endswith((".yaml", ".yml")) or Path(policy).is_file()):
        return replace(DecodingConfig.read(policy).changed(settings=settings, num_threads=threads), **changes)
    return replace(DecodingConfig().changed(policy, settings, batch_size=batch_size, num_threads=threads), **changes)


def _search(search: Any) -> SearchConfig:
    """The search that a table, or words KEY=VALUE, stand for."""
    try:
        return SearchConfig.from_mapping(values(search, "--search") if isinstance(search, list) else search)
    except UserError as error:
        raise UsageError(str(error)) from None


def _decode(stock: ModuleType, options: argparse.Namespace, config: DecodingConfig) -> None:
    if options.asr_model_file is None:
        raise UsageError("--asr_model_file: name the model's parameters")
    logging.basicConfig(level=options.log_level, format="%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s")
    train_config = options.asr_train_config or Path(options.asr_model_file).with_name("config.yaml")
    model, trained = load_trained(train_config, options.asr_model_file, "cuda" if options.ngpu else "cpu")
    vars(model)["speech_volume"] = None  # ESPnet's preprocessing, which loads the utterances, has seen to that
    session, out = TorchSession(model), Path(options.output_dir)
    policy = config.policy_for(session.exit_layers)
    session.use_threads(config.num_threads)
    written: dict[str, dict[str, str]] = {name: {} for name in FILES}
    failed: dict[str, str] = {}
    for batch in _batches(_load(stock, options, trained), config.batch_size):
        with _timed(batch) as texts:
            results, reasons = recognise_each(lambda speech: recognise(session, config, speech), batch)
            texts |= {key: result.text for key, result in results.items()}
        failed |= reasons
        for name, value_of in FILES.items():
            written[name] |= {key: value_of(result) for key, result in results.items()}
    layers = [int(layer) for layer in written["utt2exit"].values()]
    if not layers:
        raise UserError("{}: {}".format(*next(iter(failed.items()), ("--key_file", "there is no utterance to recognise"))))
    for name, table in written.items():
        # Stage 13 pairs the lines of two files by their number: an utterance without a text has an empty line.
        write_scp(out / name, {**(dict.fromkeys(failed, "") if name.startswith(BEST) else {}), **table})
    depth = sum(layers) / len(layers)
    print(f"policy {policy.name}: {len(layers)} utterances, mean exit layer {depth:.2f} of {session.exit_layers[-1]}")
    write_failed(out, failed)
    if failed:
        first = "{}: {}".format(*next(iter(failed.items())))
        print(f"warning: {len(failed)} utterances have no text, see {out / FAILED}; {first}", file=sys.stderr, flush=True)


@contextmanager
def _timed(batch: Mapping[str, np.ndarray]) -> Iterator[dict[str, str]]:
    """Writes to the log what ESPnet's search writes, and asr.sh counts as real-time factor: from each length to its text.

    Of several utterances at once the first one has the time of all.
    """
    texts = dict.fromkeys(batch, "")
    lengths = [len(speech) for speech in batch.values()]
    logging.info("speech length: %d", lengths[0])
    yield texts
    for number, text in enumerate(texts.values()):
        if number:
            logging.info("speech length: %d", lengths[number])
        logging.info("best hypo: %s", text)


def _load(stock: ModuleType, options: argparse.Namespace, trained: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """The utterances as ESPnet loads them: all its types of data, its ``key_file``, its preprocessing."""
    task, args = stock.ASRTask, argparse.Namespace(**trained)
    loader = task.build_streaming_iterator(
        options.data_path_and_name_and_type,
        dtype="float32",
        batch_size=1,
        key_file=options.key_file,
        num_workers=options.num_workers,
        preprocess_fn=task.build_preprocess_fn(args, False),
        collate_fn=task.build_collate_fn(args, False),
        allow_variable_data_keys=options.allow_variable_data_keys,
        inference=True,
    )
    for keys, batch in loader:
        yield keys[0], batch["speech"][0].numpy()


def _batches(utterances: Iterator[tuple[str, np.ndarray]], size: int) -> Iterator[dict[str, np.ndarray]]:
    while batch := dict(islice(utterances, size)):
        yield batch
