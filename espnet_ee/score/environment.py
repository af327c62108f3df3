"""The lines of a page that say where its numbers come from: written, and read back from an experiment's page."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import espnet_ee

TITLE = "## Environments"
_LINE = re.compile(r"- ([^:`]+): `(.*)`")


def environment_lines(facts: Mapping[str, object]) -> list[str]:
    """A line for every fact that is known."""
    # A backquote or a line break inside would end the code span.
    known = {name: " ".join(str(value).replace("`", "'").split()) for name, value in facts.items() if value}
    return [f"- {name}: `{value}`" for name, value in known.items()]


def read_environment(page: Path) -> dict[str, str]:
    """What :func:`environment_lines` has written on a page; nothing where there is no page."""
    text = page.read_text(encoding="utf-8", errors="replace") if page.is_file() else ""
    matches = (_LINE.fullmatch(line) for line in text.partition(f"\n{TITLE}\n")[2].splitlines())
    return {match[1]: match[2] for match in matches if match}


def git_hash() -> str:
    """The commit of the package's own repository, or nothing when it has none or git is missing."""
    package = Path(espnet_ee.__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        # An environment inside some other repository would report that repository's commit.
        git("ls-files", "--error-unmatch", "__init__.py")
        changed = git("status", "--porcelain", "--", ".")
        return git("rev-parse", "HEAD") + (" (with local changes)" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return ""
