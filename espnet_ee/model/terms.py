"""Terms of the joint loss: what each exit is trained for.

Source: arXiv 2309.09546, eq. (1): L = sum over exits m of w_m * L_m, every w_m = 1 by default. L_m is the sum of the
terms; a new one is one class in a file of its own and one line in ``TERMS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from espnet2.asr.espnet_model import ESPnetASRModel

from espnet_ee.errors import UsageError
from espnet_ee.model.attention import AttentionTerm
from espnet_ee.model.cluster_heads import ClusterTerm
from espnet_ee.model.consistency import ConsistencyTerm
from espnet_ee.model.ctc import CTCTerm
from espnet_ee.model.span_distillation import SpanDistillationTerm
from espnet_ee.model.term import ExitBatch, Term
from espnet_ee.model.text_distillation import TextDistillationTerm
from espnet_ee.values import is_number, is_whole

TERMS: dict[str, type[Term]] = {
    "ctc": CTCTerm,
    "attention": AttentionTerm,
    "cr_ctc": ConsistencyTerm,
    "span_distillation": SpanDistillationTerm,
    "text_distillation": TextDistillationTerm,
    "clusters": ClusterTerm,
}


class JointTerms(torch.nn.Module):
    """The weighted sum of terms that ``model_conf: exit_terms`` asks for.

    Args:
        settings: by name in ``TERMS``, a weight, or a table of ``weight``, ``after`` (training steps without the term) and
            ``warmup`` (further steps in which the weight rises from 0 in proportion).
        model: see :class:`Term`.

    Raises:
        UsageError: no such term, or a weight that is no positive number, or a warm-up that is no number of steps.
    """

    step: torch.Tensor

    def __init__(self, settings: Mapping[str, float | Mapping[str, float]], model: ESPnetASRModel) -> None:
        super().__init__()
        if not isinstance(settings, Mapping) or not settings:
            raise UsageError(f"model_conf: exit_terms {settings!r} is not a table of weights such as {{ctc: 1.0}}")
        for name in settings:
            if name not in TERMS:
                raise UsageError(f"model_conf: exit_terms: {name!r} is not one of {', '.join(sorted(TERMS))}")
        self.schedules = {name: read_schedule(name, setting) for name, setting in settings.items()}
        self.terms = torch.nn.ModuleDict({name: TERMS[name](model) for name in settings})
        if any(schedule.warmup or schedule.after for schedule in self.schedules.values()):
            # Kept with the parameters: a training that goes on goes on with its warm-up. Others have no use for it.
            self.register_buffer("step", torch.zeros((), dtype=torch.long))

    @property
    def copies(self) -> int:
        """How often an utterance stands in a training batch, each time with other masks."""
        return max(TERMS[name].copies for name in self.schedules)

    def forward(self, batch: ExitBatch) -> dict[str, torch.Tensor]:
        """Every term's share of the joint loss, by name and exit (M,)."""
        step = int(self.step) if hasattr(self, "step") else 0
        weights = {name: schedule.weight_at(step) for name, schedule in self.schedules.items()}
        shares = {name: weight * self.terms[name](batch) for name, weight in weights.items()}
        if self.training and hasattr(self, "step"):
            self.step += 1
        return shares


@dataclass(frozen=True)
class Schedule:
    """How much a term counts.

    Attributes:
        weight: in the end.
        warmup: training steps until then; the weight rises in proportion, from 0 at the first.
        after: training steps before these, in which the term does not count: a teacher must first have learned something.
    """

    weight: float
    warmup: int = 0
    after: int = 0

    def weight_at(self, step: int) -> float:
        """The weight at a training step, from 0 on."""
        if step < self.after:
            return 0.0
        return self.weight * min(1.0, (step - self.after) / self.warmup) if self.warmup else self.weight


def read_schedule(name: str, setting: float | Mapping[str, float]) -> Schedule:
    """A term's setting in ``exit_terms``; see :class:`JointTerms`."""
    table: Mapping[str, Any] = setting if isinstance(setting, Mapping) else {"weight": setting}
    weight, steps = table.get("weight", 0), {key: table.get(key, 0) for key in ("warmup", "after")}
    if set(table) - {"weight", *steps} or not is_number(weight, 0) or not weight:
        raise UsageError(
            f"model_conf: exit_terms: {name}: {setting!r} is no positive number, nor {{weight: 0.2, warmup: 2000}}"
        )
    for key, count in steps.items():
        if not is_whole(count, 0):
            raise UsageError(f"model_conf: exit_terms: {name}: {key} {count!r} is no number of steps")
    return Schedule(float(weight), **steps)
