"""Files that are either whole or not there, lines of text, and plain YAML."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml
from yaml.error import MarkedYAMLError

from espnet_ee.errors import UsageError, UserError

# libyaml reads a long list of tokens in a tenth of the time, where PyYAML was built with it.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_POINTERS = (b"version https://git-lfs.github.com/", b"/annex/objects/")
MAX_YAML_DEPTH = 20
MAX_YAML_BYTES = 4 << 20  # of what a stranger made


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """Opens a temporary file beside ``path`` and renames it onto ``path`` when the block succeeds.

    Args:
        path: the file to make or replace; its folder is made if needed.
        mode: ``"w"`` (UTF-8 text) or ``"wb"``.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    encoding = None if "b" in mode else "utf-8"
    # Of a long name a part: with more behind it, it would be longer than the system takes.
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:50]}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, mode, encoding=encoding) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # of a full disk: say where
            error.filename = str(path)
        raise


@contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Yields an empty folder beside ``path`` that takes ``path``'s place when the block succeeds.

    An existing folder at ``path`` is replaced whole: nothing is ever appended to it. A link stays, and what it leads to
    is replaced: people put large folders on another disk.
    """
    path = Path(path)
    if path.is_symlink():
        path = Path(os.path.realpath(path))
    with temporary_dir(path) as temporary:
        yield temporary
        old = temporary.with_suffix(".old")
        try:
            if path.exists():
                path.rename(old)
            temporary.rename(path)
        except BaseException:
            if old.exists() and not path.exists():
                old.rename(path)
            raise
    shutil.rmtree(old, ignore_errors=True)


def refuse_other_folder(out: Path, marks: tuple[str, ...], inputs: Sequence[str | Path] = ()) -> None:
    """Raises UserError if ``out`` exists and replacing it would destroy something that is not ours.

    Args:
        out: the folder to be replaced.
        marks: names one of which is in every folder of the kind that may be replaced.
        inputs: files that are read; none may lie in ``out``.
    """
    if not out.exists():
        return
    for path in inputs:
        if out.resolve() in Path(path).resolve().parents:
            raise UserError(f"{out}: is to be replaced but holds {path}; give another folder")
    if not out.is_dir() or (any(out.iterdir()) and not any((out / mark).exists() for mark in marks)):
        raise UserError(f"{out}: exists and was not made by this command; give another name or delete it")


def refuse_overlap(source: str | Path, out: str | Path) -> None:
    """Raises UsageError if ``out`` and ``source`` are one folder, or one lies in the other: both would change."""
    old, new = Path(source).resolve(), Path(out).resolve()
    if old == new or new in old.parents or old in new.parents:
        raise UsageError(f"{out}: is to be replaced but holds {source}, or lies in it; give another folder")


@contextmanager
def temporary_dir(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside ``path`` that is gone after the block.

    What a killed process left of an earlier attempt at ``path`` goes, too, for it may be a corpus large.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path)
    owner = f"{socket.gethostname()}-{os.getpid()}"
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.{owner}.", suffix=".tmp", dir=path.parent))
    temporary.chmod(0o777 & ~_umask())
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_abandoned(path: Path) -> None:
    """Removes the temporary folders of ``path`` whose process on this host is dead; those of other hosts stay."""
    owned = re.compile(rf"\.{re.escape(f'{path.name}.{socket.gethostname()}')}-(\d+)\.\w+\.(tmp|old)")
    for entry in path.parent.iterdir():
        owner = owned.fullmatch(entry.name)
        if owner and not _is_alive(int(owner[1])):
            shutil.rmtree(entry, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def is_file(path: str | Path) -> bool:
    """Whether there is such a file; a path longer than the system takes leads to none."""
    try:
        return Path(path).is_file()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def is_beside(name: Any) -> bool:
    """Whether it names a file of the same folder, and no hidden one: a stranger's file names no others."""
    return isinstance(name, str) and bool(name) and name == os.path.basename(name) and not name.startswith(".")


def refuse_pointer(path: str | Path) -> None:
    """Raises UserError for what stands in a file's place until Git LFS or git-annex fetches it."""
    with open(path, "rb") as stream:
        if stream.read(64).startswith(_POINTERS):
            raise UserError(
                f"{path}: a pointer of Git LFS or git-annex stands in its place; fetch the file (git lfs pull, git annex get)"
            )


def read_lines(path: str | Path, remedy: str = "check the path, or run the stage that makes it first") -> list[str]:
    """Reads a text file of a corpus or a data directory into its lines.

    Args:
        path: the file.
        remedy: what to do when it is not there.

    Raises:
        UserError: it is missing or not UTF-8, holds NUL, or has Windows' mark at its start or its line ends, which one
            tool takes for a blank and the next for a part of the word.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {remedy}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend the path or make the file again") from None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8; convert the file (iconv -t UTF-8)") from None
    if lines and not lines[-1]:
        lines.pop()
    refuse_mark(path, lines[0] if lines else "")
    for number, text in enumerate(lines, 1):
        if "\r" in text:
            raise UserError(f"{path}:{number}: ends with a carriage return; convert the file (sed -i 's/\\r$//')")
        if "\0" in text:
            raise UserError(f"{path}:{number}: holds a NUL sign, so it is damaged or no text; make the file again")
    return lines


def refuse_mark(path: str | Path, line: str) -> None:
    """Raises UserError if the first line of a file begins with Windows' mark."""
    if line.startswith("\ufeff"):
        raise UserError(f"{path}:1: begins with a byte order mark; remove it (sed -i '1s/^\\xef\\xbb\\xbf//')")


def files_digest(paths: Sequence[str | Path]) -> str:
    """What some files hold; raises as :func:`file_digest`."""
    return " ".join(map(file_digest, paths))


def file_digest(path: str | Path, algorithm: str = "") -> str:
    """What a file holds, in hexadecimal: by an algorithm of :mod:`hashlib`; by default blake2b of 16 bytes.

    Raises:
        UserError: it is missing or cannot be read.
    """
    digest = hashlib.new(algorithm) if algorithm else hashlib.blake2b(digest_size=16)
    try:
        with open(path, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend the path or make the file again") from None
    return digest.hexdigest()


def read_yaml(path: str | Path, remedy: str, allow_empty: bool = False, aliases: bool = True) -> dict[str, Any]:
    """Reads a table of settings from plain YAML; no tag of it builds anything. Its keys are for the caller to check.

    Args:
        path: the file.
        remedy: what to do when there is no such file, or something else in it.
        allow_empty: an empty file is an empty table.
        aliases: see :func:`parse_yaml`.

    Raises:
        UserError: the file is missing or unreadable, not UTF-8, not plain YAML or no table, or a key is there twice.
    """
    try:
        content = parse_yaml(Path(path).read_text(encoding="utf-8"), aliases)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {remedy}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _not_yaml(path, error) from None
    if content is None and allow_empty:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be 'key: value' lines; {remedy}")
    return content


def write_yaml(path: str | Path, content: Mapping[str, Any]) -> None:
    """Writes a table of settings as plain YAML, its keys in their order, atomically."""
    with atomic_write(path) as stream:
        yaml.safe_dump(dict(content), stream, sort_keys=False, allow_unicode=True)


def parse_yaml(text: str, aliases: bool = True) -> Any:
    """What a text of plain YAML says; no tag of it builds anything.

    Args:
        text: looked through as it is parsed, up to the first thing that reading it as a whole would suffer from.
        aliases: whether it may have some; nested ones grow without end when they are walked through.

    Raises:
        yaml.YAMLError: not plain YAML, nested so deep that libyaml would crash, or a key is there twice (of which YAML's readers
            take the last without a word).
    """
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_YAML_DEPTH:
            raise yaml.YAMLError(f"is nested deeper than {MAX_YAML_DEPTH}, refused")
        if isinstance(event, yaml.AliasEvent) and not aliases:
            raise yaml.YAMLError("has aliases, refused")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        _refuse_repeats(node)
        return None if node is None else loader.construct_document(node)
    except ValueError as error:  # of a date that is none, of an endless number
        raise yaml.YAMLError(str(error)) from None
    finally:
        loader.dispose()


def _refuse_repeats(root: yaml.Node | None) -> None:
    waiting, seen = [root], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))  # an anchored one is met again at each alias
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
            continue
        keys = set[tuple[str, str]]()
        for key, value in node.value:
            waiting.append(value)
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in keys:
                    raise MarkedYAMLError(None, None, f"the key {key.value!r} is there twice; delete one", key.start_mark)
                keys.add((key.tag, key.value))


def _not_yaml(path: str | Path, error: yaml.YAMLError | UnicodeDecodeError) -> UserError:
    if isinstance(error, UnicodeDecodeError):
        return UserError(f"{path}: not UTF-8, so not plain YAML; convert the file (iconv -t UTF-8)")
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return UserError(f"{path}: not plain YAML: {error}")
    tab = " (a tab? YAML wants blanks)" if "cannot start any token" in str(error.problem) else ""
    return UserError(f"{path}:{error.problem_mark.line + 1}: not plain YAML: {error.problem}{tab}")


def read_untrusted_yaml(path: Path) -> dict[str, Any]:
    """Reads a small table of plain YAML, without aliases, of a stranger's package."""
    if is_file(path) and path.stat().st_size > MAX_YAML_BYTES:
        raise UserError(f"{path}: larger than {MAX_YAML_BYTES >> 20} MiB, refused")
    return read_yaml(path, "this is no package of espnet_ee", aliases=False)
