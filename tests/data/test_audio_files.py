"""What a word of the command line means: a file, a folder, a list."""

from __future__ import annotations

from pathlib import Path

import pytest

from espnet_ee.data.audio_files import AudioFile, audio_files
from espnet_ee.errors import UserError


def test_files_folders_and_lists(tmp_path: Path) -> None:
    for name in ("b.wav", "a.FLAC", "deep/c.ogg", "notes.md", "deep/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x.wav\n\n y z.wav\n")
    (tmp_path / "wav.scp").write_text("utt1 some where.wav\nutt2 b.wav\n")
    assert [file.name for file in audio_files(str(tmp_path))] == [
        f"{tmp_path}/{name}" for name in ("a.FLAC", "b.wav", "deep/c.ogg")
    ]
    assert list(audio_files(f"{tmp_path}/wav.scp")) == [
        AudioFile("utt1", Path("some where.wav")),
        AudioFile("utt2", Path("b.wav")),
    ]
    assert [file.name for file in audio_files(f"{tmp_path}/deep/d.txt")] == ["x.wav", " y z.wav"]
    assert list(audio_files("nowhere/x.wav")) == [AudioFile("nowhere/x.wav", Path("nowhere/x.wav"))]


def test_nothing_in_a_folder_is_left_out_silently(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    for place in (folder, elsewhere):
        place.mkdir()
    (elsewhere / "b.wav").write_text("")
    (folder / "linked").symlink_to(elsewhere)
    (elsewhere / "round").symlink_to(folder)
    (folder / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    assert [file.path.relative_to(folder) for file in audio_files(str(folder))] == [Path("gone.wav"), Path("linked/b.wav")]


def test_names_for_files_and_tables() -> None:
    assert AudioFile("a/b c.d.wav", Path("a/b c.d.wav")).stem == "b_c.d"
    assert AudioFile("utt.1", Path("a/b.wav")).stem == "utt.1"


def test_nothing_to_hear_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "pipe.scp").write_text("utt sox x.wav |\n")
    (tmp_path / "none.txt").write_text("\n")
    for name, message in (("empty", "no audio file"), ("pipe.scp", "commands are not run"), ("none.txt", "no audio file")):
        with pytest.raises(UserError, match=message):
            list(audio_files(str(tmp_path / name)))
