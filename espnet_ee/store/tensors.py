"""A model's parameters as a file: safetensors in packages, ESPnet's checkpoints in experiments. Tensors only, never a pickle."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from espnet_ee.errors import UserError, first_line, is_mendable
from espnet_ee.files import atomic_write, refuse_pointer

SAFETENSORS = ".safetensors"
MAX_HEADER_BYTES = 4 << 20  # some ten thousand tensors
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Reads a file of tensors; nothing else in it is unpickled, and no tensor is larger than what the file holds.

    Raises:
        UserError: missing, damaged, or anything else than the parameters of a model.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; give a model file that is there")
    if path.suffix == SAFETENSORS:
        read_header(path)
        return load_file(path)
    refuse_pointer(path)
    return _read_checkpoint(path)


def write_safetensors(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Writes tensors atomically, each on its own: two names of one parameter are two copies."""
    alone = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()}
    with atomic_write(path, "wb") as stream:
        stream.write(save(alone, {"format": "pt"}))


def read_header(path: Path) -> dict[str, torch.Tensor]:
    """The tensors that a safetensors file declares, on torch's ``meta`` device: names, shapes and types, and no memory.

    The library checks that they fill the file, neither more nor less, and do not overlap.

    Raises:
        UserError: missing, damaged, or of types that no model of ours has.
    """
    try:
        refuse_pointer(path)
        with path.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
        if size > MAX_HEADER_BYTES:
            raise UserError(f"{path}: declares a header of {size} bytes, more than {MAX_HEADER_BYTES}, refused")
        with safe_open(path, "pt") as file:
            declared = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            return {
                name: torch.empty(part.get_shape(), dtype=_dtype(part.get_dtype(), name), device="meta")
                for name, part in declared.items()
            }
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; this is no package of espnet_ee") from None
    except (SafetensorError, RuntimeError, TypeError, ValueError, OverflowError, OSError) as error:
        if isinstance(error, OSError) and is_mendable(error):
            raise
        raise UserError(f"{path}: damaged, or not a safetensors file, refused: {first_line(error)}") from None


def _dtype(name: str, tensor: str) -> torch.dtype:
    if name not in _DTYPES:
        raise ValueError(f"{tensor} is of type {name}, which no model here has")
    return _DTYPES[name]


def _read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    try:
        # torch stores tensors uncompressed: an archive that would unpack to more than itself was made to fill memory.
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                    raise UserError(f"{path}: declares sizes beyond its own, refused")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # whatever torch says of bytes that it did not write; its advice is to unpickle them
        if isinstance(error, OSError) and is_mendable(error):
            raise
        advice = "give the parameters of an epoch or their average (*epoch.pth, *.ave.pth), not checkpoint.pth"
        raise UserError(f"{path}: damaged, or not a file of tensors only, refused; {advice}") from error
    if isinstance(state, dict) and "pytorch-lightning_version" in state:  # espnet3 saves with Lightning
        state = state.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(name, str) and _is_plain(value) for name, value in state.items()):
        raise UserError(f"{path}: not a model's parameters; give *.best.pth or *.ave.pth, not checkpoint.pth")
    for name, value in state.items():
        # A view may repeat one number a million times a million times.
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(f"{path}: {name} of shape {tuple(value.shape)} is larger than what is stored, refused")
    return state


def _is_plain(value: object) -> bool:
    """Whether it is a tensor of numbers that are there, one after the other: no sparse one, and none of torch's ``meta`` device."""
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta
