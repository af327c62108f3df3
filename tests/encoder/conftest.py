"""What tests of several encoders share."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a saved pre-trained model, made once."""
    from tests import hf  # skips where transformers is not installed

    made: dict[tuple, str] = {}

    def folder(family: str, pre_norm: bool = False, **changes: Any) -> str:
        key = (family, pre_norm, *sorted(changes.items()))
        if key not in made:
            made[key] = hf.save(tmp_path_factory.mktemp(family), family, pre_norm, **changes)
        return made[key]

    return folder
