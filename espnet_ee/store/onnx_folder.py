"""A trained model as a folder ``onnx/``: graphs, ``model.yaml``, ``tokens.txt`` and decoding configurations; nothing of torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from espnet2.asr.espnet_model import ESPnetASRModel

from espnet_ee.exported import DESCRIPTION, FOLDER, KINDS
from espnet_ee.files import atomic_dir, atomic_write, refuse_other_folder, write_yaml
from espnet_ee.frontend.kaldi_fbank import KaldiFbank
from espnet_ee.model.inputs import input_width
from espnet_ee.policy.base import ExitPolicy
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.packaged import write_configs
from espnet_ee.policy.searching import SearchConfig
from espnet_ee.store import onnx_graphs
from espnet_ee.store.export_stock import check_exit_layer
from espnet_ee.store.onnx_description import describe_model, token_lines
from espnet_ee.store.onnx_files import Shape, self_stopping, single_exit
from espnet_ee.store.onnx_int8 import quantised
from espnet_ee.store.onnx_modules import segments_of
from espnet_ee.store.onnx_stop import stop_rule


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
    folder = Path(out) / FOLDER
    refuse_other_folder(folder, (DESCRIPTION,))
    for layer in export.exit_layers:
        check_exit_layer(model, layer)
    description = describe_model(model, sample_rate, export.exits_csv)
    policy = None if export.default is None else export.configs[export.default].policy_for(model.encoder.exit_layers)
    if policy is not None:
        stop_rule(policy, len(model.token_list), model.blank_id)  # what cannot be is said before minutes have passed
    with atomic_dir(folder) as temporary:
        graphs = dict(_segments(model, export, temporary, description, progress))
        for kind in export.kinds:
            segments = {layer: by_kind[kind] for layer, by_kind in graphs.items()}
            _recognisers(segments, kind, policy, export, model, temporary, description, progress)
        with atomic_write(temporary / description["tokens"]) as stream:
            stream.writelines(f"{line}\n" for line in token_lines(model.token_list, model.blank_id))
        write_configs(temporary, export.configs)
        description["default"] = export.default
        write_yaml(temporary / DESCRIPTION, description)
    return folder


def _segments(
    model: ESPnetASRModel, export: OnnxExport, folder: Path, description: dict[str, Any], progress: Callable[[str], None]
) -> Iterator[tuple[int, dict[str, onnx.ModelProto]]]:
    """Writes the segments' graphs and their names, and yields them by exit layer, each by kind."""
    segments = segments_of(model)
    description["segments"], size = [], dict.fromkeys(export.kinds, 0)
    for number, (layer, segment) in enumerate(segments.items(), 1):
        graphs = {"fp32": onnx_graphs.trace_segment(segment)}
        if export.int8:
            graphs["int8"] = quantised(graphs["fp32"], model.encoder.output_size())
        # So that a device can tell files of two exports apart.
        entry: dict[str, Any] = {"layer": layer, "graph": f"{description['parameters_sha256'][:16]} exit {layer}"}
        for kind, graph in graphs.items():
            graph.graph.name, entry[kind] = entry["graph"], file_name(f"segment_{layer:02d}", kind)
            onnx_graphs.write_model(folder / entry[kind], graph)
            size[kind] += (folder / entry[kind]).stat().st_size
        description["segments"].append(entry)
        description["exits"][number - 1]["mb"] = {kind: round(count / 1e6, 3) for kind, count in size.items()}
        progress(f"{' and '.join(entry[kind] for kind in graphs)}: {number} of {len(segments)} segments")
        yield layer, graphs


def _recognisers(
    segments: Mapping[int, onnx.ModelProto],
    kind: str,
    policy: ExitPolicy | None,
    export: OnnxExport,
    model: ESPnetASRModel,
    folder: Path,
    description: dict[str, Any],
    progress: Callable[[str], None],
) -> None:
    """Writes the self-stopping file and those of single exits, and their names."""
    shape = shape_of(model)
    if policy is not None:
        # Without its search: that is for whoever reads the file's output.
        greedy = replace(export.configs[str(export.default)], search=SearchConfig())
        entry = description.setdefault("self_stopping", {"policy": greedy.to_mapping()})
        entry[kind] = file_name("self_stopping", kind)
        onnx_graphs.write_model(folder / entry[kind], self_stopping(segments, policy, shape))
        progress(f"{entry[kind]}: stops by {policy.name}")
    entries = description.setdefault("single_exits", [{"layer": layer} for layer in export.exit_layers])
    for entry in entries:
        entry[kind] = file_name(f"exit_{entry['layer']:02d}", kind)
        onnx_graphs.write_model(folder / entry[kind], single_exit(segments, entry["layer"], shape))
        progress(f"{entry[kind]}: exit {entry['layer']} alone")


def shape_of(model: ESPnetASRModel) -> Shape:
    """What whole files need to know of a model beside its graphs."""
    encoder = model.encoder
    in_steps = isinstance(model.frontend, KaldiFbank) and encoder.stride >= 4
    factor = encoder.stride if in_steps else None
    return Shape(input_width(model), encoder.min_frames, factor, len(model.token_list), model.blank_id)


def file_name(stem: str, kind: str) -> str:
    """Name of a graph's file."""
    return f"{stem}.onnx" if kind == "fp32" else f"{stem}.{kind}.onnx"
