"""Exported models on a device: ONNX Runtime, NumPy, PyYAML and soundfile; no torch, no ESPnet, no SciPy."""
