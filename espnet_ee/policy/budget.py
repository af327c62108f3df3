"""Keeps a budget of compute that changes while the recogniser runs, by moving along a calibrated curve.

Between utterances the controller chooses the policy for the next one. It keeps an account of what was allowed and what
was spent, so that an error of the calibration, or the chance of single utterances, is paid back by those that follow.
"""

from __future__ import annotations

import bisect
import csv
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_ee.compute import MacTable
from espnet_ee.errors import UserError
from espnet_ee.policy.base import ExitPolicy
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.fixed import FixedExitPolicy

Budget = Callable[[float], float]
_LENGTHS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0)  # seconds of audio; mean utterances of a set are no shorter and no longer
_TOLERANCE = 0.15  # of padding, and of short utterances among them


@dataclass(frozen=True)
class CurvePoint:
    """One calibrated operating point.

    Attributes:
        macs_per_second: what it cost on the development set, per second of audio.
        policy: what reaches it.
        name: of its decoding configuration, or of the fixed exit.
    """

    macs_per_second: float
    policy: ExitPolicy
    name: str = ""


def schedule(steps: Sequence[tuple[float, float]]) -> Budget:
    """A budget that changes at given times: (seconds of audio from which it holds, MACs per second of audio), times rising from 0.

    Raises:
        UserError: no step, the times do not rise from 0, or a budget is not above 0.
    """
    times = [time for time, _ in steps]
    if not times or times[0] != 0 or not all(a < b for a, b in itertools.pairwise(times)):
        raise UserError(f"budget: the steps' times are {times}; they must rise from 0")
    for _, budget in steps:
        if not 0 < budget < math.inf:
            raise UserError(f"budget: {budget} MACs per second; give a number above 0")
    return lambda now: steps[bisect.bisect_right(times, now) - 1][1]


def read_curve(
    exits_csv: str | Path,
    configs: Mapping[str, DecodingConfig],
    model: MacTable | None = None,
    frame_rate: float | None = None,
) -> list[CurvePoint]:
    """The points of a scored model: its calibrated policies of one family, and the fixed exits beyond them at both ends.

    Args:
        exits_csv: of stage 13; a package carries it. Of a point's sets the mean counts.
        configs: the model's decoding configurations by name; the family is that of the first that was scored.
        model: what the model costs; a table of another model is refused.
        frame_rate: its feature frames per second; None: not known, so that exits alone are compared.

    Raises:
        UserError: the file is missing or no table of exits, or one of another model or of other thresholds.
    """
    macs: dict[str, list[float]] = {}
    exits: dict[str, FixedExitPolicy] = {}
    try:
        with open(exits_csv, encoding="utf-8-sig", newline="") as stream:
            for row in csv.DictReader(stream):
                if row["kind"] == "fixed":
                    exits[row["name"]] = FixedExitPolicy(_whole(float(row["depth"])))
                if row["kind"] == "fixed" or row["name"] in configs:
                    macs.setdefault(row["name"], []).append(_finite(float(row["macs_per_second"])))
                if row["name"] in configs:
                    _check_threshold(row, configs[row["name"]])
        mean = {name: sum(values) / len(values) for name, values in macs.items()}
        if model is not None:
            _check_model({exits[name].exit_layer: mean[name] for name in exits}, model, frame_rate)
    except UserError as error:
        raise UserError(f"{exits_csv}: {error}") from None
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(
            f"{exits_csv}: not a table of a model's exits ({error}); take the model's own, or score it again"
        ) from None
    scored = [(mean[name], config.policy, name) for name, config in configs.items() if config.policy and name in mean]
    family = [CurvePoint(*point) for point in scored if point[1].name == scored[0][1].name]
    costs = [point.macs_per_second for point in family]
    ends = [name for name in exits if not family or not min(costs) <= mean[name] <= max(costs)]
    return family + [CurvePoint(mean[name], exits[name], name) for name in ends]


def _whole(value: float) -> int:
    if not 0 < value == round(_finite(value)):
        raise ValueError(f"{value:g} is no exit layer")
    return int(value)


def _finite(value: float) -> float:
    if not 0 <= value < math.inf:
        raise ValueError(f"{value:g} is no number of MACs")
    return value


def _check_threshold(row: Mapping[str, str], config: DecodingConfig) -> None:
    """Raises UserError if a policy was scored with another threshold than it has now."""
    scored, threshold = row.get("threshold"), getattr(config.policy, "threshold", None)
    if scored and threshold is not None and float(scored) != threshold:
        raise UserError(
            f"{row['name']} was scored with threshold {scored}, and has {threshold:g} now: another calibration, or another "
            "model; score it again"
        )


def _check_model(costs: Mapping[int, float], model: MacTable, frame_rate: float | None) -> None:
    """Raises UserError if the fixed exits are not those of the model, or no speech of any length costs what they cost."""
    layers = list(model.blocks)
    if sorted(costs) != layers:
        raise UserError(f"is of another model: its exits are {sorted(costs)}, not {layers}; give the model's own")
    if frame_rate is None:
        return
    for layer, cost in costs.items():
        possible = []
        for seconds in _LENGTHS:
            frames = max(model.min_frames, round(seconds * frame_rate))
            macs = model.encoder_macs(layer, frames) + model.head_macs(layer, model.encoder_frames(frames))
            possible.append(macs / seconds)
        low, high = min(possible) * (1 - _TOLERANCE), max(possible) * (1 + _TOLERANCE)
        if not low <= cost <= high:
            raise UserError(
                f"is of another model: exit {layer} costs {cost / 1e6:.3g} million MACs per second of audio there, in this "
                f"one {low / 1e6:.3g} to {high / 1e6:.3g}; give the model's own"
            )


class BudgetController:
    """Chooses the policy of each utterance so that the compute keeps to a budget, on average.

    Args:
        curve: calibrated points of one policy family, in any order.
        budget: the MACs allowed per second of audio at a time (seconds of audio recognised so far): a
            :func:`schedule`, or a callback that asks the load or the battery.
        horizon: seconds of audio over which a debt is paid back or savings are used up.

    Raises:
        UserError: the curve has no point, or the horizon is not above 0.

    The points are :func:`read_curve`'s. With a recogniser: ``asr.use(controller.next_point().policy)`` before an utterance,
    ``controller.spend(seconds, result.macs)`` after it.

    Example:
        >>> points = [CurvePoint(1e6, FixedExitPolicy(2)), CurvePoint(2e6, FixedExitPolicy(4))]
        >>> controller = BudgetController(points, schedule([(0.0, 2e6)]))
        >>> controller.next_point().policy
        FixedExitPolicy(exit_layer=4)
        >>> controller.spend(audio_seconds=1.0, macs=22e6)  # 20 million too many
        >>> controller.next_point().policy
        FixedExitPolicy(exit_layer=2)
    """

    def __init__(self, curve: Sequence[CurvePoint], budget: Budget, horizon: float = 20.0) -> None:
        if not curve:
            raise UserError("budget: the curve has no point; calibrate a policy first")
        if not 0 < horizon < math.inf:
            raise UserError(f"budget: the horizon is {horizon} seconds; give a number above 0")
        self.curve = sorted(curve, key=lambda point: point.macs_per_second)
        self.budget, self.horizon = budget, horizon
        self.seconds = self.spent = self.allowed = 0.0

    @property
    def wanted(self) -> float:
        """MACs per second of audio that the next utterance may cost: the budget, more after savings, less after debts."""
        return self.budget(self.seconds) + (self.allowed - self.spent) / self.horizon

    def next_point(self) -> CurvePoint:
        """The point for the next utterance: the one nearest to what it may cost."""
        return min(self.curve, key=lambda point: abs(point.macs_per_second - self.wanted))

    def spend(self, audio_seconds: float, macs: float) -> None:
        """Enters an utterance into the account: its length, and what recognising it cost."""
        self.allowed += self.budget(self.seconds) * audio_seconds
        self.seconds += audio_seconds
        self.spent += macs
