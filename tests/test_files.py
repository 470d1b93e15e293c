"""Files and folders that are written whole or not at all; JSON that is read with one-line errors."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from ddit.files import read_json, read_text, write_atomically, write_folder_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_in_the_middle(write: Callable[[Path], AbstractContextManager[Path]], path: Path) -> None:
    with write(path) as part:
        (part / "third.txt" if part.is_dir() else part).write_text("third")
        raise OSError("full")


def test_a_folder_is_not_there_until_all_of_it_is(tmp_path: Path) -> None:
    with write_folder_atomically(tmp_path / "run") as part:
        (part / "half.txt").write_text("half")
        assert not (tmp_path / "run").exists()
    assert names(tmp_path) == ["run"]


def test_a_folder_replaces_an_earlier_one_and_a_failure_leaves_that_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for text in ("first", "second"):
        with write_folder_atomically(folder) as part:
            (part / f"{text}.txt").write_text(text)
    assert names(folder) == ["second.txt"]
    with pytest.raises(OSError, match="full"):
        fail_in_the_middle(write_folder_atomically, folder)
    assert names(folder) == ["second.txt"]
    assert names(tmp_path) == ["run"]


def test_a_file_replaces_an_earlier_one_and_a_failure_leaves_that_alone(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    for text in ("first", "second"):
        with write_atomically(path) as part:
            part.write_text(text)
    with pytest.raises(OSError, match="full"):
        fail_in_the_middle(write_atomically, path)
    assert path.read_text() == "second"
    assert names(tmp_path) == ["file.txt"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "is incomplete: it has no a.json"),
        ("{", "is not valid JSON"),
        ("[]", "a JSON object, not a list"),
        ('{"a":' * 100_000, "is not valid JSON: it is nested too deep"),
        ('{"a": ' + "9" * 5000 + "}", "is not valid JSON"),
    ],
)
def test_json_that_cannot_be_read_is_one_line(tmp_path: Path, text: str | None, fault: str) -> None:
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=fault) as raised:
        read_json(path)
    assert "\n" not in str(raised.value)


def test_json_may_be_asked_to_be_a_list(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[1]")
    assert read_json(path, list) == [1]
    path.write_text("{}")
    with pytest.raises(ValueError, match="a JSON list, not a dict"):
        read_json(path, list)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_json_and_text_are_read_with_any_byte_order_mark_and_line_end(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.json"
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    path.write_bytes(f'{mark}{{\r\n"a":\r"\u00e9\u2028"}}\n'.encode(encoding))
    assert read_json(path) == {"a": "\u00e9\u2028"}
    assert read_text(path) == '{\n"a":\n"\u00e9\u2028"}\n'


def test_bytes_of_another_encoding_are_said(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\u00e9".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.txt' is not text in UTF-8"):
        read_text(path)
