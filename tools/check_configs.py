#!/usr/bin/env python3
"""Says of each of ESPnet's ASR training configurations in a folder what becomes of it as an early-exit model.

Each gets the edit of egs/TEMPLATE/README.md (encoder: early_exit_*, exits after every second block, model: early_exit,
ctc_weight: 1.0), is parsed by ESPnet's own parser and built over a small vocabulary, on torch's meta device: without memory
or time. In place of a pre-trained frontend, which may need a package or a download, stands another of the width that preencoder_conf
says. One line a file, then how many build, and why the others do not; what ESPnet's own parser refuses is not of this ESPnet.

    python3 tools/check_configs.py ESPNET/egs2
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from espnet_ee.errors import UserError
from espnet_ee.host.signature import parameters_of
from espnet_ee.plugin.classes import PREFIX, STOCK_ENCODERS
from espnet_ee.plugin.task import EarlyExitASRTask
from espnet_ee.store.build import build_model

TOKENS = ["<blank>", "<unk>", "<space>", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'", "<sos/eos>"]
BUILDS, REFUSED, OTHER, NOT_ESPNET = "builds", "refused", "other encoder", "not of this ESPnet"
PRETRAINED = ("s3prl", "fused", "huggingface", "whisper", "espnet_ssl", "wav2vec_cnn")


@dataclass(frozen=True)
class Verdict:
    """What becomes of one configuration.

    Attributes:
        path: of the file.
        kind: BUILDS, REFUSED, OTHER or NOT_ESPNET.
        reason: why it does not build; the encoder's name where it is none of those that are driven block by block; of one that
            builds, the pre-trained frontend that it needs.
    """

    path: Path
    kind: str
    reason: str = ""

    def __str__(self) -> str:
        return "\t".join(filter(None, (self.kind, str(self.path), self.reason)))


def main() -> None:
    """Checks a folder; the exit status is 0 whatever is found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with configurations (*.yaml, *.yml) anywhere below it")
    folder = parser.parse_args().folder
    logging.disable(logging.WARNING)
    verdicts = []
    for verdict in check_folder(folder):
        verdicts.append(verdict)
        print(verdict, flush=True)
    print("\n".join(summary(verdicts)))


def check_folder(folder: Path) -> Iterator[Verdict]:
    """The verdict of every training configuration below a folder; other files are passed over."""
    for path in sorted(path for pattern in ("*.yaml", "*.yml") for path in folder.rglob(pattern)):
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError, OSError):
            continue
        if isinstance(config, dict) and isinstance(config.get("encoder"), str):
            yield check(path, config)


def check(path: Path, config: Mapping[str, Any]) -> Verdict:
    """The verdict of one configuration.

    Args:
        path: where it was read from.
        config: with an encoder.
    """
    if config["encoder"] not in STOCK_ENCODERS:
        return Verdict(path, OTHER, config["encoder"])
    try:
        parsed(config)
    except UserError as error:
        return Verdict(path, NOT_ESPNET, str(error))
    try:
        with torch.device("meta"):
            build_model(vars(parsed(edited(config))), "")
    except UserError as error:
        return Verdict(path, REFUSED, " ".join(str(error).split()).removeprefix(": ").removeprefix("configuration: "))
    return Verdict(path, BUILDS, f"given frontend {config['frontend']}" if config.get("frontend") in PRETRAINED else "")


def edited(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as an early-exit model's, by the edit that egs/TEMPLATE/README.md describes.

    >>> edited({"encoder": "transformer", "encoder_conf": {"num_blocks": 5}})["encoder_conf"]["exit_layers"]
    [2, 4, 5]
    """
    conf = dict(config.get("encoder_conf") or {})
    blocks = conf.get("num_blocks", parameters_of(STOCK_ENCODERS[config["encoder"]])["num_blocks"].default)
    conf["exit_layers"] = [*range(2, blocks, 2), blocks]
    changed = {
        **config,
        "encoder": PREFIX + config["encoder"],
        "encoder_conf": conf,
        "model": "early_exit",
        "model_conf": {**(config.get("model_conf") or {}), "ctc_weight": 1.0},
    }
    if config.get("frontend") in PRETRAINED:
        changed |= {"frontend": "default", "frontend_conf": {"n_mels": width(config)}}
    if "stats_file" not in (config.get("normalize_conf") or {}):
        changed |= {"normalize": None, "normalize_conf": {}}  # recipes give it on the command line
    return changed


def width(config: Mapping[str, Any]) -> int:
    """Values of a frame that a pre-trained frontend gives: what its configuration counts on, or what a sum of several comes to.

    >>> width({"frontend": "fused", "frontend_conf": {"frontends": [{}, {}], "proj_dim": 100}})
    200
    """
    conf = config.get("frontend_conf") or {}
    if config["frontend"] == "fused":
        return len(conf["frontends"]) * conf.get("proj_dim", 100)
    return (config.get("preencoder_conf") or {}).get("input_size", 768)


def parsed(config: Mapping[str, Any]) -> argparse.Namespace:
    """What ESPnet's parser makes of a configuration. Raises UserError for what it refuses."""
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.yaml"
        path.write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
        try:
            with contextlib.redirect_stderr(said):
                args = EarlyExitASRTask.get_parser().parse_args(["--config", str(path), "--output_dir", folder])
        except SystemExit:
            line = said.getvalue().strip().splitlines()[-1]
            raise UserError(line.partition("error: ")[2].replace(f" (from {path})", "")) from None
    args.token_list = TOKENS
    return args


def summary(verdicts: list[Verdict]) -> list[str]:
    """Lines of counts: those that build of those with our encoders, and the others by reason, the commonest first."""
    ours = [verdict for verdict in verdicts if verdict.kind in (BUILDS, REFUSED)]
    lines = ["", f"{sum(verdict.kind == BUILDS for verdict in ours)} of {len(ours)} configurations build"]
    for kind in (BUILDS, REFUSED, NOT_ESPNET, OTHER):
        reasons = Counter(verdict.reason for verdict in verdicts if verdict.kind == kind and verdict.reason)
        lines += [
            f"{count}\t{kind}: {reason}" for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
        ]
    return lines


if __name__ == "__main__":
    sys.exit(main())
