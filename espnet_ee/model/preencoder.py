"""ESPnet's ``preencoder: linear``, which stock recipes put between a pre-trained frontend and the encoder."""

from __future__ import annotations

from dataclasses import replace
from types import NoneType
from typing import Any

from espnet2.asr.preencoder.linear import LinearProjection

from espnet_ee.compute import MacTable
from espnet_ee.errors import UsageError


def check_preencoder(preencoder: Any, frontend: Any) -> None:
    """Refuses what no exit can be read through: what mixes frames, or a layer that does not fit its frontend (None: stored features).

    Raises:
        UsageError: says what to do.
    """
    if not isinstance(preencoder, NoneType | LinearProjection):
        raise UsageError(
            f"preencoder: exits are read through linear or none, not {type(preencoder).__name__}; choose one of them"
        )
    if preencoder is None or frontend is None:
        return
    takes, gives = preencoder.linear_out.in_features, frontend.output_size()
    if takes != gives:
        raise UsageError(f"preencoder_conf: input_size is {takes}, where the frontend gives {gives}; write {gives}")


def with_preencoder(table: MacTable, preencoder: LinearProjection | None) -> MacTable:
    """An encoder's table with the cost of the linear layer for every frame that comes in."""
    if preencoder is None:
        return table
    macs = preencoder.linear_out.in_features * preencoder.linear_out.out_features
    front = tuple(cost + macs * (table.min_frames + more) for more, cost in enumerate(table.front))
    return replace(table, front=front, front_step=table.front_step + macs * table.stride)
