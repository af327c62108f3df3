"""An exported model's folder: ``model.yaml``, ``tokens.txt`` and a graph for each segment. Nothing in it is trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from espnet_ee.compute import MacTable
from espnet_ee.errors import UserError
from espnet_ee.exported import DESCRIPTION as MODEL
from espnet_ee.exported import FOLDER, FORMAT, KINDS, export_folder
from espnet_ee.files import is_beside, is_file, read_lines, read_untrusted_yaml
from espnet_ee.hub import model_folder
from espnet_ee.kaldi import is_count
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.packaged import DESCRIPTION as PACKAGE
from espnet_ee.policy.packaged import PREFIX, PackagedConfigs, read_configs, read_packaged
from espnet_ee.runtime.features import Features, build_features
from espnet_ee.values import is_number, is_whole

DOWNLOADED = (f"{FOLDER}/*", MODEL, PACKAGE, f"{PREFIX}*.yaml", "tokens.txt", "*.onnx", "*.arpa")
MAX_EXITS, MAX_TOKENS, MAX_MIN_FRAMES = 256, 1_000_000, 100_000
MAX_RATE, MAX_FRAME_SECONDS = 200_000, 10


@dataclass(frozen=True)
class SegmentFiles:
    """The graphs of one segment.

    Attributes:
        layer: exit layer at its end.
        paths: by precision, ``fp32`` or ``int8``; a file need not be there.
        graph: what the graphs call themselves: of which export and exit they are; None: they need not say.
    """

    layer: int
    paths: Mapping[str, Path]
    graph: str | None = None


@dataclass(frozen=True)
class Export:
    """What a folder says of its model; no graph is loaded yet.

    Attributes:
        path: its ``model.yaml``, for messages.
        sample_rate: of the audio it takes, in Hz.
        blank: blank id.
        tokens: the vocabulary, in the order of its numbers.
        features: makes what the first graph takes.
        min_frames: the shortest input of the first graph.
        segments: from the bottom up.
        macs: what the model costs.
        configs: decoding configurations by name.
        default: the name of the one that is used where none is asked for; None: the final exit.
        frame_seconds: length of an encoder frame; None: of stored features, whose frames the model does not know.
    """

    path: Path
    sample_rate: int
    blank: int
    tokens: tuple[str, ...]
    features: Features
    min_frames: int
    segments: tuple[SegmentFiles, ...]
    macs: MacTable
    configs: Mapping[str, DecodingConfig] = field(default_factory=dict)
    default: str | None = None
    frame_seconds: float | None = None

    @property
    def exit_layers(self) -> tuple[int, ...]:
        """The model's exits, rising."""
        return tuple(segment.layer for segment in self.segments)


def open_export(source: str | Path) -> Export:
    """Reads an exported model, but its graphs.

    Args:
        source: a package with an ``onnx`` folder, such a folder itself, or ``owner/model`` of the hub.

    Raises:
        UserError: there is none, or it is damaged; names file and key.
    """
    given = model_folder(source, DOWNLOADED)
    folder = export_folder(given)
    path = folder / MODEL
    if not is_file(path):
        raise UserError(f"{given}: holds no exported model ({FOLDER}/{MODEL}); make one with espnet-ee export")
    content = read_untrusted_yaml(path)
    if content.get("format") != FORMAT:
        raise UserError(f"{path}: format {content.get('format')!r}, not {FORMAT}; update espnet_ee")
    try:
        segments = _segments(content.get("segments"), folder)
        layers = [segment.layer for segment in segments]
        rate = _whole(content, "sample_rate", MAX_RATE)
        if content.get("normalize", "none") != "none":
            raise UserError(f"normalize {content['normalize']!r} is unknown here; update espnet_ee")
        tokens = _tokens(_place(folder, content.get("tokens"), "tokens"))
        blank = _whole(content, "blank", len(tokens) - 1, 0)
        _check_said(content, "vocabulary", len(tokens), "tokens.txt has")
        _check_said(content, "exit_layers", layers, "its segments end after")
        features = build_features(content.get("features"), rate)
        least = _whole(content, "min_frames", MAX_MIN_FRAMES)
        macs = _macs(content.get("macs"), layers)
        packaged = _configs(given, folder, content.get("default"), layers)
        step = _frame_seconds(content)
    except UserError as error:
        message = str(error)
        raise UserError(message if message.startswith(str(given)) else f"{path}: {message}") from None
    return Export(path, rate, blank, tokens, features, least, segments, macs, packaged.configs, packaged.default, step)


def _check_said(content: Mapping[str, Any], key: str, there: Any, where: str) -> None:
    """Raises UserError if the file says of its parts what they are not; it need not say it."""
    if (said := content.get(key, there)) != there:
        raise UserError(f"{key} is {said!r:.100}, but {where} {there!r:.100}; copy the whole folder, or export again")


def _configs(given: Path, folder: Path, default: Any, layers: list[int]) -> PackagedConfigs:
    """Those that came with the export; in a package its own, too, and its default."""
    exported = read_configs(folder, default, folder / MODEL, layers)
    if given == folder or not is_file(given / PACKAGE):
        return exported
    packaged = read_packaged(given, layers)
    return PackagedConfigs({**exported.configs, **packaged.configs}, packaged.default)


def _segments(listed: Any, folder: Path) -> tuple[SegmentFiles, ...]:
    entries = listed if isinstance(listed, list) and all(isinstance(entry, dict) for entry in listed) else []
    if not 1 <= len(entries) <= MAX_EXITS:
        raise UserError("segments: no list of graphs; export again")
    segments = []
    for entry in entries:
        names = {precision: entry[precision] for precision in KINDS if entry.get(precision) is not None}
        paths = {precision: _place(folder, name, f"segments: {precision}") for precision, name in names.items()}
        if not all(path.suffix == ".onnx" for path in paths.values()):  # ONNX Runtime would read .ort as another format
            raise UserError(f"segments: {', '.join(names.values())}: a graph's name ends in .onnx; refused")
        graph = entry.get("graph")
        segments.append(SegmentFiles(_whole(entry, "layer", MAX_EXITS), paths, None if graph is None else str(graph)))
    layers = [segment.layer for segment in segments]
    if layers != sorted(set(layers)):
        raise UserError(f"segments: the layers {layers} do not rise; export again")
    return tuple(segments)


def _macs(mapping: Any, layers: list[int]) -> MacTable:
    try:
        return MacTable.from_mapping(mapping, layers)
    except ValueError as error:
        raise UserError(f"macs: {error}; export again") from None


def _whole(table: Mapping[str, Any], key: str, most: int, least: int = 1) -> int:
    value = table.get(key)
    if not is_whole(value, least, most):
        raise UserError(f"{key} is {value!r}; a whole number from {least} to {most} was due; export again")
    return value


def _frame_seconds(table: Mapping[str, Any]) -> float | None:
    value = table.get("frame_seconds")
    if value is not None and not (is_number(value, 0, MAX_FRAME_SECONDS) and value):
        raise UserError(f"frame_seconds is {value!r}; seconds up to {MAX_FRAME_SECONDS} were due; export again")
    return value


def _place(folder: Path, name: Any, key: str) -> Path:
    """A file of the folder, which need not be there; nothing outside of it is ever read."""
    if not is_beside(name):
        raise UserError(f"{key} {name!r} is not a file beside it, refused")
    return folder / name


def _tokens(path: Path) -> tuple[str, ...]:
    """Reads ``symbol id`` lines, in any order."""
    if not is_file(path):
        raise UserError(f"{path}: no such file; export the model again")
    tokens: dict[int, str] = {}
    lines = read_lines(path)
    for number, line in enumerate(lines, 1):
        symbol, _, place = line.rpartition(" ")
        if not symbol or not is_count(place) or int(place) >= min(len(lines), MAX_TOKENS):
            raise UserError(f"{path}:{number}: {line[:100]!r} is not 'symbol number' of {len(lines)} tokens; export again")
        if tokens.setdefault(int(place), symbol) != symbol:
            raise UserError(f"{path}:{number}: the number {place} is given twice; export again")
    if not tokens or len(tokens) != len(lines):
        raise UserError(f"{path}: {len(tokens)} tokens in {len(lines)} lines; export again")
    return tuple(tokens[place] for place in range(len(tokens)))
