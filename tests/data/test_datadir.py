"""The writer of data directories leaves whole ones or none; the reader names file and line of what is wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from espnet_ee.data.datadir import read_data_dir, validate_data_dir
from espnet_ee.data.draft import new_data_dir
from espnet_ee.data.inputs import read_inputs
from espnet_ee.errors import UsageError, UserError
from espnet_ee.files import refuse_overlap


def test_valid_directory_is_returned(data_dir: Path) -> None:
    data = validate_data_dir(data_dir)
    assert data.utt_ids == ["a-1", "a-2", "b-1"]
    assert data.tables["text"]["a-1"] == "GO ON"


BREAKS: dict[str, tuple[Callable[[str], str], str, str]] = {
    # what: (edit of the file, file, message)
    "value missing": (lambda t: t.replace("a-2 a", "a-2"), "utt2spk", r"utt2spk:2: nothing follows the key 'a-2'"),
    "path missing": (lambda t: t.splitlines()[0] + "\na-2\n", "wav.scp", r"wav\.scp:2: nothing follows"),
    "duplicate": (lambda t: t + "b-1 GO\n", "text", r"text:4: the key 'b-1' was given before"),
    "empty line": (lambda t: t.replace("\n", "\n\n", 1), "text", r"text:2: empty line"),
    "utterance without text": (lambda t: t.replace("a-2 NO\n", ""), "text", r"wav\.scp:2: 'a-2' is not in .*text"),
    "text without utterance": (lambda t: t + "c-1 GO\n", "text", r"text:4: 'c-1' is not in .*wav\.scp"),
    "out of order": (lambda t: "b-0 GO\n" + t, "text", r"text:2: 'a-1' is out of order; sort"),
    "tab between words": (lambda t: t.replace("GO ON", "GO\tON"), "text", r"text:1: '\\t' between words .*; put blanks"),
    "no-break space": (lambda t: t.replace("GO ON", "GO\u00a0ON"), "text", r"text:1: '\\xa0' between words"),
    "zero-width space": (
        lambda t: t.replace("GO ON", "GO\u200b ON\u200b\u00ad"),
        "text",
        r"text:1: '\\u200b' is invisible, .* \(3 such signs in the file\); remove it \(LC_ALL=C sed -i 's/\\xe2\\x80\\x8b//g'\)",
    ),
    "control sign": (lambda t: t.replace("NO", "N\x07O"), "text", r"text:2: '\\x07' is invisible"),
    "slash in id": (lambda t: t + "c/1 GO\n", "text", r"text:4: an id must not"),
    "dot at the front": (lambda t: ".a GO\n" + t, "text", r"text:1: an id must not"),
    "speaker of two words": (lambda t: t.replace("b-1 b", "b-1 b c"), "utt2spk", r"utt2spk:3: a speaker is one word"),
    "path as speaker": (lambda t: t.replace("b-1 b", "b-1 ../b"), "utt2spk", r"utt2spk:3: an id must not"),
    "no audio": (lambda t: t.replace("b-1.wav", "b-2.wav"), "wav.scp", r"wav\.scp:3: there is no file .*b-2\.wav"),
    "path too long": (lambda t: t.replace("b-1.wav", "b" * 5000), "wav.scp", r"wav\.scp:3: there is no file .*bbb; mend"),
    "command": (lambda t: t.replace("b-1.wav", "b-1.wav |"), "wav.scp", r"wav\.scp:3: commands are not run"),
    "old spk2utt": (lambda t: t.replace("a-1 a-2", "a-1"), "spk2utt", r"spk2utt: does not fit"),
    "nothing at all": (lambda t: "", "wav.scp", r"wav\.scp: lists no utterances"),
}


@pytest.mark.parametrize("what", BREAKS)
def test_broken_directory_is_refused(what: str, data_dir: Path) -> None:
    edit, name, message = BREAKS[what]
    path = data_dir / name
    path.write_text(edit(path.read_text()))
    with pytest.raises(UserError, match=message) as caught:
        validate_data_dir(data_dir)
    assert "\n" not in str(caught.value) and ";" in str(caught.value), "a remedy follows the semicolon"


def test_signs_that_a_writing_needs_are_none_that_nobody_sees(data_dir: Path) -> None:
    text = data_dir / "text"
    text.write_text(
        text.read_text().replace("GO ON", "\u0645\u06cc\u200c\u062e \u0915\u094d\u200d\u0937 \u0600"), encoding="utf-8"
    )
    validate_data_dir(data_dir)


@pytest.mark.parametrize("count", ["0", "-1", "1.5", "x"])
def test_counts_are_positive_integers(count: str, data_dir: Path) -> None:
    (data_dir / "utt2num_samples").write_text(f"a-1 1\na-2 {count}\nb-1 1\n")
    with pytest.raises(UserError, match=r"utt2num_samples:2: .* is not a count"):
        read_data_dir(data_dir)


@pytest.mark.parametrize("name", ["wav.scp", "text", "utt2spk"])
def test_missing_table_is_named(name: str, data_dir: Path) -> None:
    (data_dir / name).unlink()
    with pytest.raises(UserError, match=f"set/{name}: no such file"):
        read_data_dir(data_dir)


def test_a_note_that_is_no_text_is_named(data_dir: Path) -> None:
    (data_dir / "feats_type").write_bytes(b"\xff")
    with pytest.raises(UserError, match="feats_type: not UTF-8; run"):
        read_data_dir(data_dir)


def test_feats_type_asks_for_its_table(data_dir: Path) -> None:
    with pytest.raises(UserError, match=r"feats\.scp: no such file"):
        read_data_dir(data_dir, "extracted")
    (data_dir / "feats_type").write_text("fbank\n")
    with pytest.raises(UserError, match="feats_type: 'fbank' is not known"):
        read_data_dir(data_dir)


def test_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such data directory"):
        read_data_dir(tmp_path / "nowhere")


def test_empty_transcript_is_allowed(data_dir: Path) -> None:
    (data_dir / "text").write_text("a-1\na-2 NO\nb-1 GO\n")
    assert validate_data_dir(data_dir).tables["text"]["a-1"] == ""


def write(out: Path, source: Path, **changes: dict[str, str]) -> None:
    with new_data_dir(out) as draft:
        draft.tables.update(read_data_dir(source).tables)
        for name, table in changes.items():
            draft.tables[name] = table


def test_writer_sorts_and_makes_spk2utt(tmp_path: Path, data_dir: Path) -> None:
    with new_data_dir(tmp_path / "new") as draft:
        for name, table in read_data_dir(data_dir).tables.items():
            draft.tables[name] = dict(reversed(table.items()))
    assert (tmp_path / "new" / "text").read_text() == (data_dir / "text").read_text()
    assert (tmp_path / "new" / "spk2utt").read_text() == "a a-1 a-2\nb b-1\n"
    validate_data_dir(tmp_path / "new")


@pytest.mark.parametrize("failure", ["exception", "interrupt", "invalid"])
def test_writer_leaves_the_old_directory_when_it_fails(
    failure: str, tmp_path: Path, data_dir: Path, tree_bytes: Callable[[Path], dict[str, bytes]]
) -> None:
    out = tmp_path / "out" / "set"
    write(out, data_dir)
    before = tree_bytes(tmp_path)
    kinds = {"exception": RuntimeError, "interrupt": KeyboardInterrupt, "invalid": UserError}
    with pytest.raises(kinds[failure]), new_data_dir(out) as draft:
        draft.tables.update(read_data_dir(data_dir).tables)
        (draft.folder / "half").touch()
        if failure != "invalid":
            raise kinds[failure]
        draft.tables["text"] = {"a-1": "GO"}
    assert tree_bytes(tmp_path) == before


def test_writer_follows_a_link_to_another_disk(tmp_path: Path, data_dir: Path) -> None:
    (tmp_path / "out").symlink_to("disk")
    for _ in range(2):
        write(tmp_path / "out", data_dir)
        assert (tmp_path / "out").is_symlink() and validate_data_dir(tmp_path / "disk").path == tmp_path / "disk"
    assert not list(tmp_path.glob(".*"))


def test_writer_refuses_empty_values(tmp_path: Path, data_dir: Path) -> None:
    speakers = {"a-1": "a", "a-2": "", "b-1": "b"}
    with pytest.raises(UserError, match="new/utt2spk:2: nothing follows"):
        write(tmp_path / "new", data_dir, utt2spk=speakers)
    assert not (tmp_path / "new").exists()


def test_writer_never_replaces_another_folder(tmp_path: Path, data_dir: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    with pytest.raises(UserError, match="home: exists and was not made by this command"):
        write(tmp_path / "home", data_dir)
    assert (tmp_path / "home" / "thesis.tex").exists()


def test_writer_never_replaces_a_directory_made_by_hand(tmp_path: Path, data_dir: Path) -> None:
    shutil.copytree(data_dir, tmp_path / "mine")
    with pytest.raises(UserError, match="mine: exists and was not made by this command"):
        write(tmp_path / "mine", data_dir)


@pytest.mark.parametrize("name", ["text", "utt2spk", "spk2gender"])
def test_writer_never_replaces_what_was_corrected(name: str, tmp_path: Path, data_dir: Path) -> None:
    out = tmp_path / "new"
    write(out, data_dir)
    (out / ".done").touch()  # of a recipe
    write(out, data_dir)
    with (out / name).open("a") as stream:
        stream.write("c-1 MORE\n")
    with pytest.raises(UserError, match=f"new/{name}: was changed or added"):
        write(out, data_dir)
    assert (out / name).read_text().endswith("c-1 MORE\n")
    (out / name).unlink()  # whoever deletes a table wants it made again
    write(out, data_dir)
    validate_data_dir(out)


def test_writer_never_replaces_a_folder_that_was_put_there(tmp_path: Path, data_dir: Path) -> None:
    out = tmp_path / "new"
    write(out, data_dir)
    (out / "data").mkdir()  # where audio and features are
    write(out, data_dir)
    (out / "raw" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match="new/raw: was put into"):
        write(out, data_dir)
    assert (out / "raw" / "train").is_dir()


@pytest.mark.parametrize(("source", "out"), [("a", "a"), ("a/b", "a"), ("a", "a/b"), ("a", "c/../a")])
def test_overlapping_folders_are_refused(source: str, out: str, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    with pytest.raises(UsageError, match="give another folder"):
        refuse_overlap(tmp_path / source, tmp_path / out)


def test_a_pipe_is_no_missing_file(data_dir: Path) -> None:
    lines = (data_dir / "wav.scp").read_text().splitlines()
    (data_dir / "wav.scp").write_text("\n".join([lines[0], "a-2 sph2pipe -f wav x.sph |", *lines[2:], ""]))
    for read in (read_data_dir, lambda folder: read_inputs(folder, 16000)):
        with pytest.raises(UserError, match=r"wav\.scp:2: commands are not run"):
            read(data_dir)
