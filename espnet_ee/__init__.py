"""espnet_ee: early-exit speech recognition on ESPnet. Train one model, get every speed."""

__version__ = "0.1.0"
