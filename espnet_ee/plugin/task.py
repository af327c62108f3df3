"""The ASR task with the early-exit classes in its tables."""

from __future__ import annotations

import argparse
import gc
import importlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from espnet2.tasks.abs_task import optim_classes, scheduler_classes
from espnet2.tasks.asr import ASRTask, encoder_choices
from espnet2.train.abs_espnet_model import AbsESPnetModel
from espnet2.train.trainer import Trainer

from espnet_ee.encoder.base import trains_with_others
from espnet_ee.errors import UserError
from espnet_ee.files import read_yaml
from espnet_ee.host.signature import parameters_of, reject_unknown_keys
from espnet_ee.plugin.checkpoints import mend_folder, whole_files
from espnet_ee.plugin.classes import ENCODERS
from espnet_ee.plugin.finetuning import adapt_optimizers, begin_from_pretrained, remember_architecture
from espnet_ee.plugin.mistakes import one_line, refuse_ignored
from espnet_ee.plugin.register import register
from espnet_ee.plugin.trainer import EarlyExitTrainer

# At import, so that a spawned child that unpickles the task by name has the tables filled, too.
register()


class EarlyExitASRTask(ASRTask):
    """``espnet2.tasks.asr.ASRTask``, able to build ``early_exit_*`` encoders and models.

    What ESPnet's classes find wrong with their settings is one line; a bug of ours keeps its traceback.
    """

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> AbsESPnetModel:
        """As in ESPnet.

        Raises:
            UserError: no model can be built from the configuration.
        """
        refuse_ignored(args)
        with one_line("model"):
            model = super().build_model(args)
        remember_architecture(args, model)
        return model

    @classmethod
    def build_optimizers(cls, args: argparse.Namespace, model: torch.nn.Module) -> list[torch.optim.Optimizer]:
        """As in ESPnet; the scheduler, which ESPnet makes next, has its keys checked here."""
        with one_line("optimizer"):
            for key, classes in (("optim", optim_classes), ("scheduler", scheduler_classes)):
                name = getattr(args, key)
                if name in classes:
                    reject_unknown_keys(classes[name], f"{key}_conf", getattr(args, f"{key}_conf"))
            optimizers = super().build_optimizers(args, model)
            adapt_optimizers(optimizers, model, args.scheduler)
            return optimizers

    @classmethod
    def build_model_from_file(cls, *arguments: Any, **keywords: Any) -> tuple[AbsESPnetModel, argparse.Namespace]:
        """As in ESPnet, whose ``Speech2Text`` comes here; warns of what it then gets wrong."""
        model, trained = super().build_model_from_file(*arguments, **keywords)
        if len(getattr(model, "exit_ctc", ())):
            logging.warning(
                "stock inference reads every exit with the last exit's head: the text of the last exit is right, "
                "encoder_interctc_layer*.txt is not; the other exits are read by espnet-ee decode"
            )
        return model, trained

    @classmethod
    def main_worker(cls, args: argparse.Namespace) -> None:
        """As in ESPnet, but its files are written whole, and what an earlier run left broken is set aside first.

        ESPnet leaves its process group to the interpreter's end; here it is left while all is alive.

        A thread of gloo that lets go of its last tensor during that end takes the interpreter's lock and is torn down with
        it: "terminate called without an active exception", after a training that had succeeded.
        """
        if getattr(args, "encoder", None) in ENCODERS:
            refuse_other_positions(args.init_param, args.encoder, getattr(args, "encoder_conf", None) or {})
            begin_from_pretrained(args)
        if torch.distributed.is_available():
            # Left to DistributedDataParallel, this import would come after the group: a default of its functions for good.
            importlib.import_module("torch.distributed.nn.functional")
        if getattr(args, "resume", False) and not args.collect_stats:
            mend_folder(Path(args.output_dir), args.best_model_criterion)
        # DeepSpeed, and ESPnet with it, takes no trainer but ESPnet's.
        cls.trainer = Trainer if getattr(args, "use_deepspeed", False) else EarlyExitTrainer
        with whole_files():
            super().main_worker(args)
        # Not after an error: then the others may still wait for this process within a collective.
        if trains_with_others():
            gc.collect()  # the wrapped model, which holds the group, too
            torch.distributed.destroy_process_group()


class ElsewhereTask(EarlyExitASRTask):
    """For stock commands that decode with parts which no model with exits has: one line in place of an AssertionError."""

    @classmethod
    def build_model_from_file(cls, *arguments: Any, **keywords: Any) -> tuple[AbsESPnetModel, argparse.Namespace]:
        """As in ESPnet.

        Raises:
            UserError: the model has exits.
        """
        model, trained = super().build_model_from_file(*arguments, **keywords)
        if trained.encoder in ENCODERS:
            raise UserError(
                f"encoder {trained.encoder}: is decoded by asr_inference alone (asr.sh: without --use_streaming and --use_maskctc); "
                "live audio: espnet-ee transcribe --live"
            )
        return model, trained


class LightningTask(EarlyExitASRTask):
    """For ``lightning_train``, which builds the model and does no more of what :meth:`main_worker` does."""

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> AbsESPnetModel:
        """As in ESPnet.

        Raises:
            UserError: parameters to begin with, which ESPnet's Lightning trainer passes over; or no model can be built.
        """
        if args.encoder in ENCODERS:
            if args.init_param:
                raise UserError(
                    f"--init_param {args.init_param[0]}: ESPnet's Lightning trainer does not read it; train with --use_lightning false"
                )
            begin_from_pretrained(args)
        return super().build_model(args)


def refuse_other_positions(init_param: Sequence[str], encoder: str, conf: Mapping[str, Any]) -> None:
    """Refuses to begin with a stock encoder whose parameters fit ours in name and shape, but not in arithmetic.

    Args:
        init_param: ESPnet's option, ``FILE[:SOURCE:TARGET:EXCLUDED]`` each; the FILE's config.yaml is read if it lies beside.
        encoder: of the model that is to be trained.
        conf: its ``encoder_conf``.

    Raises:
        UserError: one has ESPnet's older kind of relative positions, and the other the newer.
    """
    own = relative_positions(encoder, conf)
    for entry in init_param:
        file, _, part = entry.partition(":")
        path = Path(file).with_name("config.yaml")
        if not path.is_file() or part.split(":")[0].split(".")[0] not in ("", "encoder"):
            continue
        config = read_yaml(path, "give the config.yaml that training wrote")
        theirs = relative_positions(str(config.get("encoder")), config.get("encoder_conf") or {})
        if None not in (own, theirs) and own != theirs:
            raise UserError(
                f"--init_param {file}: {path} has rel_pos_type {theirs}, and this configuration {own}: names and shapes fit, the "
                f"arithmetic does not; write encoder_conf: rel_pos_type: {theirs}"
            )


def relative_positions(encoder: str, conf: Mapping[str, Any]) -> str | None:
    """The relative positions of an encoder of ESPnet's table: ``legacy``, the stock conformer's default, or ``latest``; None:
    others."""
    if encoder not in encoder_choices.classes:
        return None
    known = parameters_of(encoder_choices.get_class(encoder))
    kind, version = (
        conf.get(name, known[name].default if name in known else None) for name in ("pos_enc_layer_type", "rel_pos_type")
    )
    if kind == "legacy_rel_pos" or (kind == "rel_pos" and version == "legacy"):
        return "legacy"
    return "latest" if kind == "rel_pos" else None


def adopt(command: ModuleType) -> None:
    """Gives a stock command, an imported module of ``espnet2.bin``, our task in place of ESPnet's.

    ESPnet spawns the children of a distributed training with a method of the task: of ours, it brings this
    module along into every child, and with it the registration.
    """
    if getattr(command, "ASRTask", None) is ASRTask:
        vars(command)["ASRTask"] = ElsewhereTask if command.__name__.endswith(("_streaming", "_maskctc")) else EarlyExitASRTask
    choices = getattr(command, "task_choices", {})  # of lightning_train
    choices |= {name: LightningTask for name, task in choices.items() if task is ASRTask}
