"""A trained model as a folder ``onnx/``: graphs, ``model.yaml``, ``tokens.txt`` and decoding configurations; nothing of torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from espnet2.asr.espnet_model import ESPnetASRModel

from espnet_ee.errors import UsageError, UserError
from espnet_ee.files import atomic_dir, atomic_write, refuse_other_folder
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.store.onnx_description import describe_model, token_lines
from espnet_ee.store.onnx_modules import segments_of

if TYPE_CHECKING:
    import onnx

FOLDER, DESCRIPTION = "onnx", "model.yaml"
KINDS = ("fp32", "int8")


@dataclass(frozen=True)
class OnnxExport:
    """What is written beside the segments' graphs.

    Attributes:
        configs: decoding configurations by name.
        default: the name of the one that is used where none is asked for, and that the self-stopping file holds; None: none.
        exit_layers: exits that are also written as a file of their own.
        int8: 8-bit files beside those of 32 bits.
        exits_csv: scores of stage 13, for ``model.yaml``.
    """

    configs: Mapping[str, DecodingConfig]
    default: str | None = None
    exit_layers: Sequence[int] = ()
    int8: bool = False
    exits_csv: Path | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of files."""
        return KINDS if self.int8 else KINDS[:1]


def export_onnx(
    model: ESPnetASRModel,
    sample_rate: int,
    out: str | Path,
    export: OnnxExport,
    progress: Callable[[str], None] = lambda line: None,
) -> Path:
    """Writes ``onnx/`` into a folder, whole or not at all; an earlier one is replaced.

    Args:
        model: loaded.
        sample_rate: of the audio it takes, in Hz.
        out: the folder, made if needed; what else lies there stays.
        export: what to write.
        progress: is told of every file.

    Returns:
        ``out/onnx``.

    Raises:
        UserError: a part of the model has no ONNX form, an exit is none of the model's, or ``out/onnx`` is something else.
    """
    _check_library(export.int8)
    folder = Path(out) / FOLDER
    refuse_other_folder(folder, (DESCRIPTION,))
    for layer in export.exit_layers:
        if layer not in model.encoder.exit_layers:
            have = ", ".join(map(str, model.encoder.exit_layers))
            raise UsageError(f"exit_layer {layer}: no exit there; the exits are {have}")
    description = describe_model(model, sample_rate, export.exits_csv)
    with atomic_dir(folder) as temporary:
        dict(_segments(model, export, temporary, description, progress))
        with atomic_write(temporary / description["tokens"]) as stream:
            stream.writelines(f"{line}\n" for line in token_lines(model.token_list, model.blank_id))
        for name, config in export.configs.items():
            _write_yaml(temporary / f"decode_{name}.yaml", config.to_mapping())
        description["default"] = export.default
        _write_yaml(temporary / DESCRIPTION, description)
    return folder


def _segments(
    model: ESPnetASRModel, export: OnnxExport, folder: Path, description: dict[str, Any], progress: Callable[[str], None]
) -> Iterator[tuple[int, dict[str, onnx.ModelProto]]]:
    """Writes the segments' graphs and their names, and yields them by exit layer, each by kind."""
    from espnet_ee.store.onnx_graphs import quantised, trace_segment, write_model

    segments = segments_of(model)
    description["segments"], size = [], dict.fromkeys(export.kinds, 0)
    for number, (layer, segment) in enumerate(segments.items(), 1):
        graphs = {"fp32": trace_segment(segment)}
        if export.int8:
            graphs["int8"] = quantised(graphs["fp32"])
        entry: dict[str, Any] = {"layer": layer}
        for kind, graph in graphs.items():
            entry[kind] = file_name(f"segment_{layer:02d}", kind)
            write_model(folder / entry[kind], graph)
            size[kind] += (folder / entry[kind]).stat().st_size
        description["segments"].append(entry)
        description["exits"][number - 1]["mb"] = {kind: round(count / 1e6, 3) for kind, count in size.items()}
        progress(f"{' and '.join(entry[kind] for kind in graphs)}: {number} of {len(segments)} segments")
        yield layer, graphs


def file_name(stem: str, kind: str) -> str:
    """Name of a graph's file."""
    return f"{stem}.onnx" if kind == "fp32" else f"{stem}.{kind}.onnx"


def _write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_write(path) as stream:
        yaml.safe_dump(dict(content), stream, sort_keys=False, allow_unicode=True)


def _check_library(int8: bool) -> None:
    """Says what to install where the exporter's libraries are missing."""
    try:
        import onnxscript  # noqa: F401

        if int8:
            import onnxruntime.quantization  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error}; the export needs it: pip install 'espnet_ee[onnx]'") from None
