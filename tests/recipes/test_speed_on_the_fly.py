"""Speeds drawn on the fly: what the recipe hands to ESPnet makes each utterance 1/f times as long, in training only."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

pytestmark = pytest.mark.process

ARGUMENTS = """#!/usr/bin/env bash
set -euo pipefail
fly_factors=$1 fs=16000 common_args=()
. {template}/utils/stages_train.sh
add_speeds
printf '%s\\n' ${{common_args[@]+"${{common_args[@]}}"}}
"""


@pytest.fixture
def preprocessors(bash, template, tmp_path):
    """The preprocessors (training, validation) that ESPnet builds from the recipe's words."""
    from espnet_ee.plugin.task import EarlyExitASRTask

    result = bash("0.9 1.0 1.1", text=ARGUMENTS.format(template=template))
    assert result.returncode == 0, result.stderr
    (tmp_path / "tokens").write_text("<blank>\n<unk>\na\n<sos/eos>\n")
    words = [*result.stdout.splitlines(), "--token_list", str(tmp_path / "tokens"), "--token_type", "char"]
    arguments = EarlyExitASRTask.get_parser().parse_args([*words, "--output_dir", str(tmp_path)])
    return [EarlyExitASRTask.build_preprocess_fn(arguments, train=train) for train in (True, False)]


def test_every_speed_is_drawn_about_as_often(preprocessors) -> None:
    training, validation = preprocessors
    sample = np.random.default_rng(0).normal(size=16000).astype(np.float32)
    lengths = Counter(len(training("u", {"speech": sample, "text": "a"})["speech"]) for _ in range(150))
    assert set(lengths) == {17778, 16000, 14546}
    assert min(lengths.values()) > 20
    np.testing.assert_array_equal(validation("u", {"speech": sample, "text": "a"})["speech"], sample)


def test_without_factors_nothing_is_handed_over(bash, template) -> None:
    assert bash("", text=ARGUMENTS.format(template=template)).stdout.split() == []


def test_stored_features_have_no_speed(bash, root) -> None:
    result = bash(str(root / "egs/librispeech/asr1/run.sh"), "--feats_type", "extracted")
    assert result.returncode == 2
    assert "give '--speed_perturb stored' with '--feats_type extracted'" in result.stderr
