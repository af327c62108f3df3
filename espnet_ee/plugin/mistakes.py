"""What is wrong with a training's configuration, as one line; a bug of ours keeps its traceback."""

from __future__ import annotations

import argparse
import importlib
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from espnet_ee.errors import UserError, is_mendable
from espnet_ee.model.early_exit import NO_POSTENCODER
from espnet_ee.plugin.classes import MODELS

# Decoders that change what a model is. The others ESPnet itself leaves out under ctc_weight 1.0.
_OTHER_DECODERS = ("transducer", "mlm", "linear_decoder")


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Turns what ESPnet, or torch under it, says of a configuration into a UserError; ``what`` is built from it."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error)) from error  # a configuration is at fault, not a command line
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"configuration: {error.filename}: no such file; run from the recipe's folder") from error
    except Exception as error:
        if is_ours(error) or (isinstance(error, OSError) and is_mendable(error)):
            raise
        reason = str(error).strip() or type(error).__name__
        raise UserError(f"configuration: no {what} can be built from it: {reason}") from error


def is_ours(error: BaseException) -> bool:
    """Whether an error is a bug of ours: raised by our code, or by a library that our code called.

    The innermost frame that is ours or ESPnet's decides: what ESPnet was given is the configuration's.
    """
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        package = str(frame.f_globals.get("__name__")).split(".")[0]
        if package in ("espnet", "espnet2", "espnet_ee"):
            return package == "espnet_ee"
    return True


def refuse_ignored(args: argparse.Namespace) -> None:
    """Refuses what ``model: early_exit`` would pass over without a word, what would undo a pre-training, and a frontend without its package.

    Raises:
        UserError: names the key.
    """
    if getattr(args, "input_size", None) is None:
        _need_s3prl(getattr(args, "frontend", None), getattr(args, "frontend_conf", None) or {})
    if getattr(args, "encoder", None) == "early_exit_hf" and getattr(args, "init", None):
        raise UserError(f"init: {args.init}: would make the pre-trained weights random again; remove it")
    if getattr(args, "model", None) not in MODELS:
        return
    if getattr(args, "decoder", None) in _OTHER_DECODERS:
        raise UserError(
            f"decoder: {args.decoder}: model early_exit has CTC heads and transformer decoders; set decoder: transformer or null"
        )
    if getattr(args, "postencoder", None):  # before it is fetched: it may be a language model
        raise UserError(NO_POSTENCODER)
    if (args.model_conf or {}).get("aux_ctc"):
        raise UserError("model_conf: aux_ctc: model early_exit trains no auxiliary CTC; remove it")


def _need_s3prl(frontend: str | None, conf: Mapping[str, Any]) -> None:
    """Refuses ``s3prl``, also as a part of ``fused``, where that package is not there or does not load; ESPnet prints, and raises anything."""
    parts = conf.get("frontends") if frontend == "fused" else [{"frontend_type": frontend}]
    named = [part.get("frontend_type") for part in parts or () if isinstance(part, dict)]
    if "s3prl" not in named:
        return
    try:
        importlib.import_module("s3prl.nn")
    except Exception as error:
        raise UserError(
            f"frontend: s3prl: its package does not load ({error}); install one that suits this torch and torchaudio, or take "
            "encoder: early_exit_hf, which has exits in wav2vec 2.0, HuBERT and WavLM themselves"
        ) from error
