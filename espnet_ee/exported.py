"""What an exported model's folder and its parts are called."""

from __future__ import annotations

from pathlib import Path

FOLDER, DESCRIPTION, FORMAT = "onnx", "model.yaml", 1
KINDS = ("fp32", "int8")


def export_folder(source: Path) -> Path:
    """Where the graphs lie: in the folder ``onnx`` of what was given, or there."""
    inside = source / FOLDER
    return inside if inside.is_dir() else source


def is_exported(source: Path) -> bool:
    """Whether a folder holds, or is, an exported model."""
    return (export_folder(source) / DESCRIPTION).is_file()
