"""espnet_ee: early-exit speech recognition on ESPnet. Train one model, get every speed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from espnet_ee.api import EarlyExitASR

__all__ = ["EarlyExitASR", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # On demand: a policy or a scorer that imports its room must not load torch.
    if name == "EarlyExitASR":
        from espnet_ee.api import EarlyExitASR

        return EarlyExitASR
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
