"""The recogniser that the options of ``espnet-ee transcribe`` ask for, in this process and in others."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from espnet_ee.cli.reports import Problems
from espnet_ee.policy.budget import Budget, BudgetController, read_curve

if TYPE_CHECKING:
    import numpy as np

    from espnet_ee.api import EarlyExitASR
    from espnet_ee.decode.transcript import Recognise, Recognised

EXITS = "exits.csv"  # beside a scored model


def open_recogniser(options: argparse.Namespace, hotwords: Mapping[str, float]) -> EarlyExitASR:
    """Loads the model, with the policy that is asked for."""
    with quiet():
        from espnet_ee.api import EarlyExitASR  # ESPnet takes seconds to import

        int8 = options.int8 or None
        recogniser = EarlyExitASR.from_pretrained(options.model, options.policy, options.device, options.engine, int8, hotwords)
    numbers = {"batch_size": options.batch_size, "num_threads": options.num_threads}
    name = recogniser.policy_name
    recogniser.use(recogniser.config.changed(**numbers))
    recogniser.policy_name = name
    if options.num_threads is not None:
        recogniser.session.use_threads(options.num_threads)
    return recogniser


def build_worker(options: argparse.Namespace, hotwords: Mapping[str, float]) -> Recognise:
    """What recognises in a worker: on one thread, if nobody asks for more, for there are several workers."""
    recogniser = open_recogniser(options, hotwords)
    if options.num_threads is None:
        recogniser.session.use_threads(recogniser.config.num_threads)
    return recognising(recogniser)


def recognising(recogniser: EarlyExitASR, controller: BudgetController | None = None) -> Recognise:
    """Recognises batches; with a controller each by the policy that keeps its budget."""

    def recognise(batch: Sequence[np.ndarray]) -> list[Recognised]:
        name = recogniser.policy_name
        if controller:
            point = controller.next_point()
            name = point.name
            recogniser.use(replace(recogniser.config, policy=point.policy))
        results = recogniser.recognise(batch)
        for samples, recognition in zip(batch, results, strict=True):
            if controller:
                controller.spend(len(samples) / recogniser.sample_rate, recognition.macs)
        return [(recognition, name) for recognition in results]

    return recognise


def open_controller(
    options: argparse.Namespace, budget: Budget, recogniser: EarlyExitASR, problems: Problems
) -> BudgetController:
    """What keeps the budget; one that no point of the model keeps is said."""
    session = recogniser.session
    rate = None if session.frame_seconds is None else session.macs.stride / session.frame_seconds
    controller = BudgetController(read_curve(Path(options.model) / EXITS, recogniser.configs, session.macs, rate), budget)
    ends = {"even the cheapest": controller.curve[0], "the dearest": controller.curve[-1]}
    low, high = (point.macs_per_second for point in ends.values())
    if not low <= options.budget * 1e6 <= high:
        kind, point = list(ends.items())[options.budget * 1e6 > high]
        costs = f"takes {point.macs_per_second / 1e6:.3g} million MACs per second of audio"
        problems.say(f"--budget {options.budget:g}: {kind} point of the model, {point.name}, {costs}; it is taken throughout")
    return controller


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what ESPnet and its libraries print and warn of while they are imported: stdout is for texts, stderr for problems."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
