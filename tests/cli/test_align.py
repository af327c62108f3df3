"""Forced alignment from the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from espnet_ee.cli.main import main
from espnet_ee.errors import UsageError, UserError
from tests.cli.test_decode import experiment  # noqa: F401


def align(folder: Path, *words: object) -> None:
    main(["align", "--model", str(folder), *map(str, words)])


def test_words_lie_in_their_utterances_and_a_bad_one_is_named(
    experiment: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "set"
    data.mkdir()
    for name in ("wav.scp", "utt2spk"):
        (data / name).write_text((experiment / "set" / name).read_text())
    texts = ["AB A", "C D", "A", "A B C D A B C D", "Ö", "D"]  # of utt3 0.03 s are too short, utt4 has a strange letter
    (data / "text").write_text("".join(f"utt{number} {text}\n" for number, text in enumerate(texts)))
    with pytest.raises(SystemExit) as stop:
        align(experiment, "--data", data, "--exit_layer", 2, "--out", tmp_path / "out.ctm")
    said = capsys.readouterr()
    assert stop.value.code == 1
    assert "utt3: 0.03 s are too short" in said.err and "utt4: 'Ö' cannot be spelled" in said.err
    seconds = [length / 16000 for length in (16000, 9000, 30000, 500, 12000, 20000)]
    lines = [line.split() for line in (tmp_path / "out.ctm").read_text().splitlines()]
    for number, text in enumerate(texts):
        mine = [line for line in lines if line[0] == f"utt{number}"]
        assert [line[4] for line in mine] == ([] if number in (3, 4) else text.split())
        ends = [0.0]
        for _, channel, start, duration, _, confidence in mine:
            assert channel == "1" and float(start) >= ends[-1] - 1e-3 and 0 < float(confidence) <= 1
            ends.append(float(start) + float(duration))
        assert ends[-1] <= seconds[number] + 1e-3
    align(experiment, "--audio", experiment / "0.wav", "--text", "AB A", "--exit_layer", 2)
    alone = [line.split()[1:] for line in capsys.readouterr().out.splitlines()]
    assert alone == [line[1:] for line in lines if line[0] == "utt0"]
    policies = experiment / "policies"
    policies.mkdir()
    (policies / "decode_entropy.yaml").write_text(
        "policy: entropy\npolicy_conf: {threshold: 0.1}\nword_exit: 2\nword_shift: [-0.02, 0]\n"
    )
    align(experiment, "--audio", experiment / "0.wav", "--text", "AB A")
    moved = [line.split()[1:] for line in capsys.readouterr().out.splitlines()]
    shutil.rmtree(policies)
    assert [float(line[1]) for line in moved] == [pytest.approx(max(0, float(line[1]) - 0.02), abs=2e-3) for line in alone]
    with pytest.raises(UserError, match="no exit after layer 3"):
        align(experiment, "--data", data, "--exit_layer", 3)


@pytest.mark.parametrize(
    "words", [(), ("--data", "x", "--audio", "y", "--text", "z"), ("--audio", "y"), ("--data", "x", "--text", "z")]
)
def test_what_does_not_fit_together_is_said_first(words: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        align(tmp_path / "no model", *words)
