"""report.html: what it holds, that it is one harmless file, and that a browser shows and changes what a user clicks."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from espnet_ee.kaldi import write_scp
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.score.report import audio_beside
from tests.score.test_experiment import edit, quick_picture, score  # noqa: F401

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def content(experiment: Path) -> dict[str, Any]:
    text = (experiment / "report.html").read_text(encoding="utf-8")
    [data] = re.findall(r'<script id="data" type="application/json">(.*?)</script>', text)
    return json.loads(data)


def test_every_point_has_its_configuration(experiment: Path) -> None:
    score(experiment)
    data = content(experiment)
    assert [one["name"] for one in data["sets"]] == ["test", "dev"]
    for name in ("entropy_wer_loss0", "entropy_wer_loss34", "entropy_macs_per_second1"):
        read = DecodingConfig.read(experiment / f"policies/decode_{name}.yaml")
        assert DecodingConfig.from_mapping(yaml.safe_load(data["configs"][name]), name) == read
    assert yaml.safe_load(data["configs"]["exit 4"])["policy_conf"] == {"exit_layer": 4}
    swept = data["sweeps"]["entropy"].replace("THRESHOLD", "0.325")
    assert DecodingConfig.from_mapping(yaml.safe_load(swept), "swept") == DecodingConfig.read(
        experiment / "policies/decode_entropy_wer_loss0.yaml"
    )


def test_the_numbers_are_those_of_the_page(experiment: Path) -> None:
    score(experiment)
    test, dev = content(experiment)["sets"]
    points = {point["name"]: point for point in test["points"]}
    assert (points["exit 4"]["wer"], points["exit 4"]["stops"]) == (20.0, [0, 4, 0])
    online = points["entropy_wer_loss0"]
    assert (online["kind"], online["wer"], online["depth"], online["stops"]) == ("online", 30.0, 3.5, [1, 3, 0])
    assert online["promise"] == "21.43 % WER, +0.0 % against the last exit"
    [sweep] = [point for point in test["points"] if point["kind"] == "sweep" and point["threshold"] == 0.265]
    assert sum(sweep["stops"]) == 4 and sweep["stops"] == [0, 3, 1]  # a c d f at 6 4 4 4
    assert test["exits"]["entropy_wer_loss0"] == [1, 1, 1, 0]
    [utterance] = [one for one in dev["utterances"] if one["id"] == "b"]
    assert (utterance["reference"], utterance["errors"], utterance["at"]) == ("on a mat", [0, 1, 0], [0, 1, 0])
    assert utterance["texts"] == ["on a mat", "on the mat"]


def test_the_page_is_one_file_in_which_a_text_stays_a_text(experiment: Path) -> None:
    evil = "</script><script>alert(1)</script> <img src=x onerror=alert(2)> & @SCRIPT@ <!--"
    edit(experiment.parent.parent / "data/test/text", "hello", evil)
    score(experiment)
    text = (experiment / "report.html").read_text(encoding="utf-8")
    assert text.count("<script") == 2 and text.count("</script") == 2 and "<img" not in text and "<!--" not in text
    assert not re.search(r"(?:src|href)=\"?(?:https?:)?//|@import|url\(", text)
    assert evil in [one["reference"] for one in content(experiment)["sets"][0]["utterances"]]
    assert len(text) < 60_000


def test_audio_is_played_where_it_lies_beside(tmp_path: Path) -> None:
    data, exp, sound = tmp_path / "data", tmp_path / "exp/ee", tmp_path / "so und"
    assert audio_beside(data, exp) == {}
    sound.mkdir()
    (sound / "a#1.flac").write_bytes(b"")
    lines = {"a": f"{sound}/a#1.flac", "b": f"{sound}/gone.wav", "c": "sox x.wav -t wav - |", "d": "dump/x.ark:17"}
    write_scp(data / "wav.scp", lines)
    assert audio_beside(data, exp) == {"a": "../../so%20und/a%231.flac"}
    write_scp(data / "segments", {"a-1": "a 0.5 1.25", "b-1": "b 0 1", "a-2": "a 3"})
    assert audio_beside(data, exp) == {"a-1": "../../so%20und/a%231.flac#t=0.5,1.25"}


CLICKS = """
const told = {}, press = (item) => { item.scrollIntoView(); const box = item.getBoundingClientRect();
  const at = { clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, bubbles: true };
  const hit = document.elementFromPoint(at.clientX, at.clientY);
  for (const kind of ["mousemove", "click"]) hit.dispatchEvent(new MouseEvent(kind, at)); };
const mark = (name) => document.querySelector(`[data-point="${name}"]`);
const first = () => document.querySelector("#utterances tbody tr");
told.title = document.title; told.chosen = document.querySelector("#detail h2").textContent;
press(mark("entropy_macs_per_second1"));
told.tip = document.getElementById("tip").textContent; told.config = document.getElementById("config").textContent;
told.stops = document.getElementById("stops").textContent; told.policy = document.getElementById("policy").value;
told.harm = [...document.querySelectorAll("#utterances tbody tr")].map((row) => [row.cells[0].firstChild.data, row.cells[5].textContent]);
told.marks = [...first().querySelectorAll("mark, del")].map((one) => [one.tagName, one.textContent]);
press(document.getElementById("copy"));
press([...document.querySelectorAll("#utterances th button")][0]);
told.sorted = [...document.querySelectorAll("#utterances tbody tr")].map((row) => row.cells[0].firstChild.data);
document.getElementById("filter").value = "HELLO"; document.getElementById("filter").oninput();
told.filtered = document.getElementById("count").textContent;
press(mark("oracle")); told.oracle = document.getElementById("detail").textContent;
press([...document.querySelectorAll("#sets button")][1]); told.dev = document.getElementById("count").textContent;
press(mark("exit 4")); told.fixed = document.getElementById("config").textContent;
setTimeout(() => { document.body.replaceChildren("TOLD" + JSON.stringify(told) + "END"); }, 50);
"""


def browse(page: Path, script: str, folder: Path) -> dict[str, Any]:
    """What a script of clicks tells of the page, opened as a file in a headless browser."""
    clicked = page.with_name("clicked.html")
    text = page.read_text(encoding="utf-8")
    watch = "<script>window.onerror = (message) => { document.title = 'ERROR ' + message; };</script>"
    clicked.write_text(text.replace("<head>", f"<head>{watch}").replace("</body>", f"<script>{script}</script></body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={folder}"]
    command = [str(BROWSER), *options, "--window-size=1280,900", "--virtual-time-budget=5000", "--dump-dom", clicked.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r"TOLD(.*)END", done.stdout, re.DOTALL)
    assert found, done.stdout[:2000] + done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


@pytest.mark.process
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (Debian: apt-get install chromium)")
def test_clicks_in_a_browser(experiment: Path, tmp_path: Path) -> None:
    score(experiment)
    told = browse(experiment / "report.html", CLICKS, tmp_path / "profile")
    assert told["title"] == "ee" and told["chosen"] == "entropy_macs_per_second1"
    assert "threshold: 2" in told["tip"] and "WER: 50.00 % [" in told["tip"] and "7.6 MMACs/s" in told["tip"]
    assert yaml.safe_load(told["config"])["policy_conf"] == {"threshold": 2.0}
    assert "exit 24 (100 %)" in told["stops"] and told["policy"] == "entropy_macs_per_second1"
    assert told["harm"] == [["a", "2"], ["c", "1"], ["f", "0"], ["d", "-1"]]  # the worst first
    assert ["MARK", "bat"] in told["marks"] and any(tag == "DEL" for tag, _ in told["marks"])
    assert told["sorted"] == ["a", "c", "d", "f"] and told["filtered"] == "1 of 1 utterances"
    assert "A bound, no method" in told["oracle"]
    assert told["dev"].startswith("1 of 1") and yaml.safe_load(told["fixed"])["policy_conf"] == {"exit_layer": 4}
