"""What an ONNX file says of itself, read without loading it: a few fields of its protobuf messages, in the standard library.

ONNX Runtime would follow a tensor's "external data" to any file, and allocate what a tensor declares before it looks for the
numbers. So a stranger's file is looked through first: its weights lie in it, nothing is larger than what the file holds, and
its operators are those that ONNX Runtime itself brings. The numbers themselves are passed over.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from espnet_ee.errors import UserError
from espnet_ee.files import refuse_pointer

MAX_BYTES = 1 << 31  # protobuf's own limit
MAX_DEPTH = 20
DOMAINS = ("", "ai.onnx", "com.microsoft")  # ONNX's operators and ONNX Runtime's own
FLOAT, INT64 = 1, 7  # TensorProto.DataType
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
# Field numbers of onnx.proto.
_MODEL = {"graph": 7, "opset": 8, "functions": 25, "training": 20}
_GRAPH = {"node": 1, "name": 2, "initializer": 5, "input": 11, "output": 12, "sparse": 15}
_NODE = {"attribute": 5, "op_type": 4, "domain": 7}
_ATTRIBUTE = {"tensor": 5, "graph": 6, "tensors": 10, "graphs": 11, "sparse": 22, "sparse_tensors": 23}
_TENSOR = {"dims": 1, "name": 8, "external": 13, "location": 14}
_TENSOR_DATA = (4, 5, 6, 7, 9, 10, 11)
_EXTERNAL = 1
_MOST_ELEMENTS = 1 << 64

Field = tuple[int, int, "memoryview | int"]


@dataclass(frozen=True)
class Value:
    """An input or output: type of its elements and its dimensions; None for one that is free."""

    element: int
    dims: tuple[int | None, ...]


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a graph by name, and what it calls itself."""

    name: str
    inputs: Mapping[str, Value]
    outputs: Mapping[str, Value]


def read_signature(path: Path) -> Signature:
    """Looks through an ONNX file that nobody vouches for.

    Raises:
        UserError: it is missing, no ONNX, or asks for what a package may not ask for.
    """
    try:
        if not 0 < path.stat().st_size < MAX_BYTES:
            raise UserError(f"{path}: of {path.stat().st_size} bytes, which no graph of ours has, refused")
        refuse_pointer(path)
        with path.open("rb") as stream:
            # Of a large file only the pages between the numbers are read. It is closed when nothing looks at it any more.
            return _Model(path).read(memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; export the model again") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged, or no ONNX file, refused: {error}") from None


class _Model:
    """One file that is looked through."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, message: memoryview) -> Signature:
        graphs = []
        for number, kind, value in _fields(message):
            if number == _MODEL["graph"]:
                graphs.append(_bytes(kind, value))
            elif number == _MODEL["opset"]:
                self._check_domain(_text(_bytes(kind, value), 1))
            elif number in (_MODEL["functions"], _MODEL["training"]):
                raise UserError(f"{self.path}: has functions or a training of its own, which no export of ours has, refused")
        if len(graphs) != 1:
            raise UserError(f"{self.path}: holds {len(graphs)} graphs, not one, refused")
        return self._graph(graphs[0], 0)

    def _graph(self, message: memoryview, depth: int) -> Signature:
        if depth > MAX_DEPTH:
            raise UserError(f"{self.path}: is nested deeper than {MAX_DEPTH}, refused")
        inputs: dict[str, Value] = {}
        outputs: dict[str, Value] = {}
        for number, kind, value in _fields(message):
            if number == _GRAPH["node"]:
                self._node(_bytes(kind, value), depth)
            elif number == _GRAPH["initializer"]:
                self._tensor(_bytes(kind, value))
            elif number in (_GRAPH["input"], _GRAPH["output"]):
                part = _bytes(kind, value)
                (inputs if number == _GRAPH["input"] else outputs)[_text(part, 1)] = _value(part)
            elif number == _GRAPH["sparse"]:
                raise UserError(f"{self.path}: has sparse tensors, which no export of ours has, refused")
        return Signature(_text(message, _GRAPH["name"]), inputs, outputs)

    def _node(self, message: memoryview, depth: int) -> None:
        for number, kind, value in _fields(message):
            if number == _NODE["domain"]:
                self._check_domain(bytes(_bytes(kind, value)).decode())
            elif number == _NODE["attribute"]:
                self._attribute(_bytes(kind, value), depth)

    def _attribute(self, message: memoryview, depth: int) -> None:
        for number, kind, value in _fields(message):
            if number in (_ATTRIBUTE["tensor"], _ATTRIBUTE["tensors"]):
                self._tensor(_bytes(kind, value))
            elif number in (_ATTRIBUTE["graph"], _ATTRIBUTE["graphs"]):
                self._graph(_bytes(kind, value), depth + 1)
            elif number in (_ATTRIBUTE["sparse"], _ATTRIBUTE["sparse_tensors"]):
                raise UserError(f"{self.path}: has sparse tensors, which no export of ours has, refused")

    def _tensor(self, message: memoryview) -> None:
        elements, data, name = 1, 0, ""
        for number, kind, value in _fields(message):
            if number == _TENSOR["dims"]:
                for size in [value] if isinstance(value, int) else _varints(value):
                    elements = min(elements * size, _MOST_ELEMENTS)  # a product without end would take hours
            elif number == _TENSOR["name"]:
                name = bytes(_bytes(kind, value)).decode()
            elif number == _TENSOR["external"] or (number == _TENSOR["location"] and value == _EXTERNAL):
                raise UserError(f"{self.path}: the numbers of {name or 'a tensor'} lie in another file, refused")
            elif number in _TENSOR_DATA:
                data += 8 if isinstance(value, int) else len(value)
        if elements > data:  # no element takes less than a byte
            raise UserError(f"{self.path}: {name or 'a tensor'} declares {elements} numbers and holds {data} bytes, refused")

    def _check_domain(self, domain: str) -> None:
        if domain not in DOMAINS:
            raise UserError(f"{self.path}: has operators of {domain!r}, which are not ONNX Runtime's own, refused")


def _value(message: memoryview) -> Value:
    """Of a ValueInfoProto: its type, a tensor's."""
    tensor = _message(_message(message, 2), 1)
    element = next((value for number, _, value in _fields(tensor) if number == 1 and isinstance(value, int)), 0)
    dims: list[int | None] = []
    for number, kind, value in _fields(_message(tensor, 2)):
        if number == 1:
            sizes = [size for key, _, size in _fields(_bytes(kind, value)) if key == 1 and isinstance(size, int)]
            dims.append(sizes[-1] if sizes else None)
    return Value(element, tuple(dims))


def _message(message: memoryview, wanted: int) -> memoryview:
    """The last field of a number, itself a message; an empty one where there is none."""
    parts = [_bytes(kind, value) for number, kind, value in _fields(message) if number == wanted]
    return parts[-1] if parts else memoryview(b"")


def _text(message: memoryview, wanted: int) -> str:
    return bytes(_message(message, wanted)).decode()


def _bytes(kind: int, value: memoryview | int) -> memoryview:
    if kind != _BYTES or isinstance(value, int):
        raise ValueError("a field of another kind than ONNX has")
    return value


def _fields(message: memoryview) -> Iterator[Field]:
    """The fields of a protobuf message: number, kind of coding, and value; of numbers of fixed width the bytes."""
    place, end = 0, len(message)
    while place < end:
        key, place = _varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, place = _varint(message, place)
            yield number, kind, value
            continue
        if kind == _BYTES:
            length, place = _varint(message, place)
        elif kind in (_EIGHT, _FOUR):
            length = 8 if kind == _EIGHT else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if length > end - place:
            raise ValueError("a field reaches beyond the end")
        yield number, kind, message[place : place + length]
        place += length


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """A number from 0 to 2**64 - 1, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            raise ValueError("it is cut off")
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, place
    raise ValueError("a number without end")


def _varints(message: memoryview) -> Iterator[int]:
    place = 0
    while place < len(message):
        value, place = _varint(message, place)
        yield value
