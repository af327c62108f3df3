"""Corpora, data directories, audio and features: everything before the first training step."""
