"""An exported model as the engine of the loop that stops, computed by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from espnet_ee.decode.session import OutOfMemoryError, UtteranceError, check_utterance, usable_threads
from espnet_ee.errors import UserError, first_line
from espnet_ee.exported import KINDS as PRECISIONS
from espnet_ee.files import is_file
from espnet_ee.policy.attending import AttentionConfig
from espnet_ee.policy.frames import Frames
from espnet_ee.runtime.model import Export
from espnet_ee.runtime.onnx_file import FLOAT, INT64, Signature, Value, read_signature
from espnet_ee.search.joint import JointTexts
from espnet_ee.text import token_type_of

FIRST, LATER = ("x", "x_lens"), ("hidden", "lens")
KINDS = {"x": (FLOAT, 3), "x_lens": (INT64, 1), "hidden": (FLOAT, 3), "lens": (INT64, 1),
         "label": (INT64, 2), "log_confidence": (FLOAT, 2), "entropy": (FLOAT, 2), "log_probs": (FLOAT, 3)}  # fmt: skip
"""Type of the elements and number of dimensions of what a segment takes and gives; ``NAME_out`` becomes the next one's ``NAME``."""
READ = ("label", "log_confidence", "entropy", "log_probs")
MAX_WIDTH = 1 << 16
_OUT_OF_MEMORY = ("Failed to allocate memory", "bad_alloc", "bad allocation")

Values = dict[str, Any]  # OrtValue: lies where ONNX Runtime put it, and is copied if it is looked at


@dataclass(frozen=True)
class OnnxState:
    """Where a batch stands.

    Attributes:
        layer: blocks computed so far.
        feature_frames: length of each utterance's features.
        rows: of each utterance, what the next segment takes (before the first) or what the last one gave.
        frames: real encoder frames of each; none before the first segment.
    """

    layer: int
    feature_frames: tuple[int, ...]
    rows: tuple[Values, ...]
    frames: tuple[int, ...] = ()


class OnnxSession:
    """Computes an exported model segment by segment; see :class:`espnet_ee.decode.session.ExitSession`.

    A graph is read when an utterance first goes that deep: the first exit works before the upper files are there. Each
    utterance of a batch is computed alone: int8 graphs scale a layer's input by its largest number, and a neighbour's would
    change the result. A graph computes its exit's head whether that is read or not.

    Args:
        export: the model.
        int8: whether to take the graphs with 8-bit weights; None: only where there are no others.

    Raises:
        UserError: the export has no such graphs.
    """

    def __init__(self, export: Export, int8: bool | None = None) -> None:
        self.export, self.precision = export, _precision(export, int8)
        self.exit_layers, self.macs, self.blank = export.exit_layers, export.macs, export.blank
        self.tokens: Sequence[str] = export.tokens
        self.token_type = token_type_of(export.tokens)
        self.sample_rate: int | None = export.sample_rate
        self.frame_seconds = export.frame_seconds
        self._threads = 1
        self._signatures: dict[int, Signature] = {}
        self._loaded: dict[int, Any] = {}

    def use_threads(self, count: int) -> None:
        """Computes with so many CPU threads from now on, or as many as there are processors; graphs are loaded again when it changes."""
        count = usable_threads(count)
        if count != self._threads:
            self._threads, self._loaded = count, {}

    def start(self, batch: Sequence[np.ndarray]) -> OnnxState:
        """Makes the features of each utterance."""
        rows = []
        for place, speech in enumerate(batch):
            try:
                rows.append(self.features(speech))
            except UserError as error:
                raise UtteranceError(str(error), place) from None
        lengths = tuple(row["x"].shape()[1] for row in rows)
        return OnnxState(0, lengths, tuple(rows))

    def features(self, speech: np.ndarray) -> Values:
        """What the first graph takes of one utterance: features, padded with zeros to the least length, and their real number."""
        extract = self.export.features
        check_utterance(speech, None if extract.takes_audio else extract.size)
        features = extract(speech)
        padded = np.pad(features, ((0, max(0, self.export.min_frames - len(features))), (0, 0)))
        return {"x": _value_of(padded[None]), "x_lens": _value_of(np.array([len(features)]))}

    def advance(self, state: OnnxState) -> OnnxState:
        """Computes the blocks up to the next exit, and its head."""
        number = sum(layer <= state.layer for layer in self.exit_layers)
        graph = self._graph(number)
        rows = tuple(self._run(graph, number, row) for row in state.rows)
        frames = tuple(self._checked_frames(number, row) for row in rows)
        return OnnxState(self.exit_layers[number], state.feature_frames, rows, frames)

    def read(self, state: OnnxState, places: Sequence[int], want: frozenset[str] = frozenset()) -> list[Frames]:
        """The exit's frames of some utterances."""
        return [self._frames(state.rows[place], state.frames[place], "log_probs" in want) for place in places]

    def select(self, state: OnnxState, places: Sequence[int]) -> OnnxState:
        """Keeps some utterances."""
        lengths = tuple(state.feature_frames[place] for place in places)
        rows, frames = tuple(state.rows[place] for place in places), tuple(state.frames[place] for place in places)
        return OnnxState(state.layer, lengths, rows, frames)

    def require_decoders(self) -> None:
        """Raises UserError: attention decoders are not exported."""
        raise UserError(
            f"search: kind attention: {self.export.path} is an export, which has the CTC heads alone; search with kind: greedy or "
            "beam, or take the engine torch"
        )

    def attend(self, state: OnnxState, place: int, frames: Frames, config: AttentionConfig) -> JointTexts:
        """Raises UserError; see :meth:`require_decoders`."""
        self.require_decoders()
        raise AssertionError

    def _frames(self, row: Values, count: int, with_table: bool) -> Frames:
        # These arrays keep ONNX Runtime's memory alive.
        labels, log_confidence = row["label"].numpy()[0, :count], row["log_confidence"].numpy()[0, :count]
        entropy, table = row["entropy"].numpy()[0, :count], row["log_probs"].numpy()[0, :count] if with_table else None
        return Frames(labels, log_confidence, entropy, len(self.tokens), table)

    def _run(self, graph: Any, number: int, row: Values) -> Values:
        signature = self._signatures[number]
        suffix, wanted = "_out" if number else "", list(signature.outputs)
        inputs = {name: row[f"{name}{suffix}"] for name in signature.inputs}
        try:
            outputs = dict(zip(wanted, graph.run_with_ort_values(wanted, inputs), strict=True))
        except Exception as error:  # ONNX Runtime's classes have no common base but this one
            if isinstance(error, MemoryError) or any(sign in str(error) for sign in _OUT_OF_MEMORY):
                raise OutOfMemoryError("does not fit into memory; cut the audio") from None
            raise self._refusal(number, error) from None
        return outputs

    def _checked_frames(self, number: int, outputs: Values) -> int:
        """Number of real frames of what a graph gives, which belongs together."""
        shapes = {name: value.shape() for name, value in outputs.items()}
        count = int(outputs["lens_out"].numpy()[0]) if shapes.pop("lens_out") == [1] else -1
        frames = shapes["label"][1]
        if not 0 <= count <= frames or any(shapes[name][:2] != [1, frames] for name in READ):
            raise UserError(f"{self._path(number)}: gives outputs of {shapes} for {count} frames; export the model again")
        width = shapes["log_probs"][2]
        if width != len(self.tokens):  # a graph may leave it open
            raise UserError(
                f"{self._path(number)}: gives {width} tokens where {self.export.path} has {len(self.tokens)}, refused"
            )
        return count

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": {}}  # another process loads the graphs itself

    def _graph(self, number: int) -> Any:
        if number not in self._loaded:
            path = self._path(number)
            if not is_file(path):
                layer = self.exit_layers[number]
                raise UserError(
                    f"{path}: no such file, so exit {layer} cannot be computed; copy it, or choose a policy below it"
                )
            self._check_signature(number)
            try:
                self._loaded[number] = onnxruntime.InferenceSession(path, self._options(), providers=["CPUExecutionProvider"])
            except Exception as error:  # as above
                raise self._refusal(number, error) from None
        return self._loaded[number]

    def _options(self) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self._threads, 1
        # It would keep a plan of its memory for every length that it ever saw; reading lengths as they come costs no time.
        options.enable_mem_pattern = False
        options.log_severity_level = 4  # what goes wrong is raised, too
        return options

    def _path(self, number: int) -> Path:
        return self.export.segments[number].paths[self.precision]

    def _refusal(self, number: int, error: Exception) -> UserError:
        return UserError(
            f"{self._path(number)}: ONNX Runtime cannot compute it ({first_line(error)[:300]}); export the model again"
        )

    def _check_signature(self, number: int) -> None:
        """Compares what a graph declares with ``model.yaml`` and its neighbours, before it is loaded."""
        path = self._path(number)
        signature = self._signatures[number] = read_signature(path)
        called = self.export.segments[number].graph
        if called is not None and signature.name != called:
            raise UserError(
                f"{path}: is another segment, or of another export, than {self.export.path} names; copy the whole folder"
            )
        below = self._signatures[number - 1].outputs if number else {}
        takes, gives = LATER if number else FIRST, [f"{name}_out" for name in LATER]
        _check_values(path, "takes", signature.inputs, takes)
        _check_values(path, "gives", signature.outputs, [*gives, *READ])
        for name in takes:
            if KINDS[name][1] == 3:
                _check_size(
                    path, name, signature.inputs[name], below[f"{name}_out"].dims[2] if number else self.export.features.size
                )
        _check_size(path, "log_probs", signature.outputs["log_probs"], len(self.tokens))


def _value_of(array: np.ndarray) -> Any:
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _precision(export: Export, int8: bool | None) -> str:
    """The kind of graphs that is asked for and that every segment names."""
    named = [kind for kind in PRECISIONS if all(kind in segment.paths for segment in export.segments)]
    if int8 is not None:
        named = [kind for kind in named if kind == ("int8" if int8 else "fp32")]
    there = [kind for kind in named if is_file(export.segments[0].paths[kind])]
    if not there:
        wanted = "graphs" if int8 is None else "int8 graphs" if int8 else "fp32 graphs"
        raise UserError(f"{export.path}: no {wanted} of every segment, or the first file is missing; export again, or copy it")
    return there[0]


def _check_values(path: Path, verb: str, values: Mapping[str, Value], expected: Sequence[str]) -> None:
    """Raises UserError if these are not the inputs or outputs that an export has here."""
    if set(values) != set(expected):
        raise UserError(f"{path}: {verb} {', '.join(sorted(values)) or 'nothing'}, not {', '.join(expected)}, refused")
    for name in expected:
        element, rank = KINDS[name.removesuffix("_out")]
        if values[name].element != element or len(values[name].dims) != rank:
            raise UserError(f"{path}: {verb} {name} of another type or number of dimensions than an export has, refused")
        for size in values[name].dims:
            if size is not None and not 1 <= size <= MAX_WIDTH:
                raise UserError(f"{path}: {verb} {name} of size {size}, beyond {MAX_WIDTH}, refused")


def _check_size(path: Path, name: str, value: Value, wanted: int | None) -> None:
    if wanted is not None and value.dims[2] not in (wanted, None):
        raise UserError(f"{path}: {name} is {value.dims[2]} wide where the model has {wanted}; it is of another model, refused")
