"""Every shell script stops at the first error and is linked where recipes expect it. (tools/test.sh runs shellcheck.)"""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted([*ROOT.glob("egs/**/*.sh"), *ROOT.glob("tools/*.sh"), ROOT / ".ci" / "run"])
SOURCED = {
    "parse_options.sh",
    "run_settings.sh",
    "stage.sh",
    "stages_data.sh",
    "stages_lm.sh",
    "stages_train.sh",
    "stages_decode.sh",
    "stages_share.sh",
    "path.sh",
    "cmd.sh",
    "db.sh",
}
RECIPES = sorted(path.parent for path in ROOT.glob("egs/*/*/run.sh"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_stop_at_errors(path: Path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n")
    # A sourced file must not change its caller's settings; all others stop at the first error.
    assert ("\nset -euo pipefail\n" in text) != (path.name in SOURCED)
    assert not any(line.split("#")[0].split()[:1] == ["eval"] for line in text.splitlines())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.parent.name)
def test_a_recipe_is_short_and_links_to_the_template(recipe: Path):
    for name in ("asr_ee.sh", "cmd.sh", "path.sh", "db.sh", "utils"):
        link = recipe / name
        assert link.is_symlink() and link.resolve() == ROOT / "egs" / "TEMPLATE" / "asr1" / name
    lines = (recipe / "run.sh").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 30 and lines[-1].strip() == '"$@"'
    assert (recipe / "README.md").is_file()
    for name in ("run.sh", "local/data.sh"):
        assert (recipe / name).stat().st_mode & 0o111, f"{name} is not executable"
