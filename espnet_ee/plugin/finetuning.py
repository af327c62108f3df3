"""Fine-tuning of a pre-trained encoder: its weights' origin, its learning rates, and when it begins to train."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

import torch

from espnet_ee.encoder.hf import EarlyExitHfEncoder
from espnet_ee.errors import UsageError

# Schedulers that set every learning rate themselves, whatever a group of parameters began with.
_SAME_FOR_ALL = ("piecewiselinearwarmuplr", "cycliclr", "onecyclelr", "cosineannealingwarmuprestarts")


def begin_from_pretrained(args: argparse.Namespace) -> None:
    """Lets a training that names pre-trained weights begin with them, also where it was given another one's config.yaml."""
    conf = getattr(args, "encoder_conf", None) or {}
    if conf.get("pretrained"):
        args.encoder_conf = {key: value for key, value in conf.items() if key != "architecture"}


def remember_architecture(args: argparse.Namespace, model: torch.nn.Module) -> None:
    """Puts what the pre-trained model is into the configuration that ESPnet writes: who reads that needs its weights no more."""
    encoder = getattr(model, "encoder", None)
    if isinstance(encoder, EarlyExitHfEncoder):
        args.encoder_conf = {**args.encoder_conf, "architecture": encoder.architecture}


def adapt_optimizers(optimizers: Iterable[torch.optim.Optimizer], model: torch.nn.Module, scheduler: str | None) -> None:
    """Gives the blocks their learning rates in new optimisers of all parameters, and lets the encoder count updates.

    Raises:
        UsageError: the scheduler takes no notice of rates that differ.
    """
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, EarlyExitHfEncoder):
        return
    for optimizer in optimizers:
        if encoder.layer_decay < 1.0:
            if scheduler in _SAME_FOR_ALL:
                raise UsageError(
                    f"encoder_conf: layer_decay {encoder.layer_decay}: {scheduler} gives every block the same learning rate; "
                    "take scheduler: warmuplr or tristagelr"
                )
            split_by_rate(optimizer, encoder.learning_rates())
        if encoder.unfreeze_step:
            _count_updates(optimizer, encoder)


def split_by_rate(optimizer: torch.optim.Optimizer, factors: dict[torch.nn.Parameter, float]) -> None:
    """Splits a new optimiser's groups by the factors of their parameters (1 where there is none), which multiply the learning
    rates."""
    groups = []
    for group in optimizer.param_groups:
        by_factor: dict[float, list[torch.nn.Parameter]] = {}
        for parameter in group["params"]:
            by_factor.setdefault(factors.get(parameter, 1.0), []).append(parameter)
        groups += [
            {**group, "params": parameters, "lr": group["lr"] * factor}
            for factor, parameters in sorted(by_factor.items(), reverse=True)  # the heads' first: ESPnet logs it as lr0
        ]
    optimizer.param_groups[:] = groups


def _count_updates(optimizer: torch.optim.Optimizer, encoder: EarlyExitHfEncoder) -> None:
    def before(*_: Any) -> None:
        if encoder.frozen:
            # Among processes that train together they are zero, not missing; weight decay would move what it belongs to.
            for parameter in encoder.pretrained_parameters():
                parameter.grad = None

    def after(*_: Any) -> None:
        encoder.count_update()

    encoder.counting = True
    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
