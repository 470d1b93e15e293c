"""Text alone: lines, paragraphs and columns, and how a run trains on it."""

import json
import random
import tracemalloc
from pathlib import Path

import pytest
import torch
from list_source import ListSource
from tiny_models import tiny_text_codec

from ddit.config.data import DataConfig, FoldersData, JsonData, SourceConfig, TextData
from ddit.config.runs import DualRun
from ddit.data.check import check_source
from ddit.data.samples import CorruptSample, Source, Turn
from ddit.data.sources import TextSource, open_source
from ddit.data.sources.guess import Hints, guess_source
from ddit.devices import Ranks
from ddit.model import DualDiTConfig
from ddit.prompts import MINI
from ddit.train.batches import ImageFacts, StepData
from ddit.train.heldout_samples import held_out_samples

TEXT = "\ufeffa dog\r\n\r\n  \n  ein  Käfer 🙂\t\nline \u2028 separator\nlast"
LINES = ["a dog", "ein Käfer 🙂", "line separator", "last"]
CODEC = tiny_text_codec()


def read_all(path: Path | str, **settings) -> list[str]:
    source = open_source(TextData(str(path), **settings))
    assert isinstance(source, TextSource)
    return [source.text(index) for index in range(len(source))]


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_a_sample_is_a_line_without_an_image(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", TEXT)
    assert read_all(path) == LINES
    source = open_source(TextData(str(path)))
    sample = source.sample(1, random.Random(0), i2t=True)
    assert (sample.image, sample.caption, sample.turns) == (None, None, (Turn(None, "ein Käfer 🙂"),))
    assert source.sizes().tolist() == [[0, 0]] * 4
    assert source.name(1) == f"{path}[1]"


@pytest.mark.parametrize("end", ["", "\n", "\n\n \n"])
def test_a_paragraph_ends_with_a_blank_line(end: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\n\none\ntwo\n \t\n\nthree\r\n\r\nfour\nfive" + end)
    assert read_all(path, unit="paragraph") == ["one two", "three", "four five"]
    assert read_all(path) == ["one", "two", "three", "four", "five"]


@pytest.mark.parametrize("text", ["", "\n", " \n\t\n", "\ufeff"])
def test_an_empty_file_has_no_sample(text: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", text)
    assert read_all(path) == read_all(path, unit="paragraph") == []
    with pytest.raises(ValueError, match="the source holds no sample"):
        check_source(TextData(str(path)))


def test_folders_and_patterns_are_read_one_file_after_another(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name, text in {
        "b.TXT": "3\n4",
        "a.md": "1\n2",
        "sub/c.txt": "5",
        ".hidden.txt": "x",
        "d.png": "x",
    }.items():
        write(tmp_path / name, text)
    assert read_all(tmp_path) == ["1", "2", "3", "4", "5"]
    assert read_all(f"{tmp_path}/?.[tm]*") == ["1", "2"]
    assert open_source(TextData(str(tmp_path))).name(4) == f"{tmp_path}/sub/c.txt[0]"


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_column_of_csv_may_hold_line_breaks_and_quotes(delimiter: str, tmp_path: Path) -> None:
    rows = ["id|text", '1|"a ""red"" dog,\nleft; of\ta car"', "2|plain", "", "3|", '4|"last"']
    path = write(
        tmp_path / ("a.tsv" if delimiter == "\t" else "a.csv"), "\n".join(rows).replace("|", delimiter)
    )
    source = open_source(TextData(str(path)))
    assert len(source) == 4
    texts = [source.sample(i, random.Random(0), i2t=True).turns[0].answer for i in (0, 1, 3)]
    assert texts == ['a "red" dog, left; of a car', "plain", "last"]
    with pytest.raises(CorruptSample, match="no text"):
        source.sample(2, random.Random(0), i2t=True)
    assert read_all(path, text_key="id") == ["1", "2", "3", "4"]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_key_of_json(suffix: str, tmp_path: Path) -> None:
    entries = [{"text": "a dog"}, {"body": "ein Käfer 🙂", "text": "b"}, {"text": 3}, {"text": " "}]
    text = json.dumps(entries) if suffix == ".json" else "\n".join(map(json.dumps, entries)) + "\n{broken"
    path = write(tmp_path / f"a{suffix}", text)
    report = check_source(TextData(str(path)))
    assert {c: f.num for c, f in report.corrupt.items()} == {"no text": 2} | (
        {"bad JSON": 1} if "l" in suffix else {}
    )
    assert open_source(TextData(str(path), text_key="body")).sample(1, random.Random(0), i2t=True).turns[
        0
    ] == (
        None,
        "ein Käfer 🙂",
    )


def test_a_column_of_parquet(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"title": ["x", "y"], "text": ["a dog", "ein Käfer"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert guess_source(str(tmp_path / "a.parquet")) == TextData(str(tmp_path / "a.parquet"))
    assert read_all(tmp_path / "a.parquet") == ["a dog", "ein Käfer"]
    assert read_all(tmp_path, text_key="title") == ["x", "y"]
    with pytest.raises(ValueError, match="has no column body; it has title, text"):
        read_all(tmp_path / "a.parquet", text_key="body")


def test_what_is_no_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "wide.txt").write_bytes("a dog".encode("utf-16"))
    (tmp_path / "zero.txt").write_bytes(b"PK\0\0\0")
    (tmp_path / "a.txt.gz").write_bytes(b"x")
    write(tmp_path / "two.csv", "a,b\n1,2")
    write(tmp_path / "none.csv", "")
    write(tmp_path / "a.txt", "x")
    (tmp_path / "empty").mkdir()
    for name, fault, settings in (
        ("wide.txt", "is text in UTF-16: save it in UTF-8", {}),
        ("zero.txt", "is not a text file: it holds zero bytes", {}),
        ("a.txt.gz", "is compressed, which allows no reading from its middle", {}),
        ("two.csv", "has the columns a, b: set text_key to that of the texts", {}),
        ("two.csv", "has no column c; it has a, b", {"text_key": "c"}),
        ("none.csv", "is empty: its first row must name the columns", {}),
        ("a.txt", "is plain text, which has no column c: leave text_key out", {"text_key": "c"}),
        ("empty", "there is no text file", {}),
        ("x*.txt", "does not exist: give a text file", {}),
    ):
        with pytest.raises(ValueError, match=fault) as caught:
            read_all(tmp_path / name, **settings)
        assert "\n" not in str(caught.value)


def test_a_line_of_another_encoding_is_one_corrupt_sample(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good\n" + "Käfer\n".encode("latin-1") + b"good")
    report = check_source(TextData(str(tmp_path / "a.txt")))
    assert {cause: fault.first for cause, fault in report.corrupt.items()} == {
        "bad text": (f"{tmp_path}/a.txt[1]",)
    }
    assert report.num_without_image == 2
    assert report.images is None


@pytest.mark.parametrize("seed", range(3))
def test_any_bytes_end_in_samples_or_in_one_line(seed: int, tmp_path: Path) -> None:
    rng, faults, causes = random.Random(seed), [], set()
    pieces = [
        b"a dog",
        b"\n",
        b"\r\n",
        b'"',
        b",",
        b";",
        b"text",
        b"\xff",
        "Käfer 🙂".encode(),
        b"\t",
        b" ",
        b"{}",
        b"[1]",
    ]
    for number in range(150):
        data = b"".join(rng.choices(pieces, k=rng.randrange(30)))
        for suffix in (".txt", ".csv", ".jsonl", ".json"):
            path = tmp_path / f"{number}{suffix}"
            path.write_bytes(data)
            for unit in ("line", "paragraph"):
                try:
                    source = open_source(TextData(str(path), unit=unit))
                except ValueError as error:
                    faults.append(str(error))
                    continue
                assert len(source.digests()) == len(source)
                for index in range(len(source)):
                    try:
                        assert source.sample(index, rng, i2t=True).turns[0].answer.strip()
                    except CorruptSample as error:
                        causes.add(error.cause)
    assert faults
    assert not any("\n" in fault for fault in faults)
    assert causes == {"no text", "bad text", "bad JSON"}


def test_only_offsets_are_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "a.txt").open("w") as file:
        file.writelines(f"{number} {'word ' * 200}\n" for number in range(5_000))
    monkeypatch.setattr("ddit.data.sources.text._KEPT_FROM", 0)
    tracemalloc.start()
    source = open_source(TextData(str(tmp_path / "a.txt")))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 400_000 < (tmp_path / "a.txt").stat().st_size / 10
    assert (tmp_path / "a.txt.lines.npz").is_file()
    assert source.sample(4_999, random.Random(0), i2t=True).turns[0].answer.startswith("4999 word")
    again = open_source(TextData(str(tmp_path / "a.txt")))
    assert (len(again), again.name(3)) == (len(source), source.name(3))


def test_text_is_recognised(tmp_path: Path) -> None:
    for name, text in {"a.txt": "x", "b.csv": "text\nx", "c.jsonl": '{"text": "x", "source": "y"}'}.items():
        path = str(write(tmp_path / name, text))
        assert guess_source(path) == TextData(path)
    path = str(tmp_path / "c.jsonl")
    assert guess_source(path, Hints(fields=(("image_key", "source"), ("caption_key", "text")))).kind == "json"
    assert guess_source(str(write(tmp_path / "d.jsonl", '{"text": "x", "image": "y.png"}'))).kind == "json"
    assert guess_source(path, Hints(fields=(("unit", "paragraph"), ("weight", "0.1")))) == TextData(
        path, unit="paragraph", weight=0.1
    )


# --- training ---


def test_text_alone_cannot_be_generated_as_an_image() -> None:
    with pytest.raises(ValueError, match=r"data\.t2i\.1 is text alone, .*: name it in data\.i2t"):
        DataConfig(t2i=(FoldersData("x"), TextData("x")))


def test_a_batch_has_its_share_of_texts_with_the_null_image(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\n".join(["a red dog"] * 7))
    shown, told = JsonData("shown"), TextData(str(path), weight=1 / 3)
    sources: dict[SourceConfig, Source] = {shown: ListSource(50), told: open_source(told)}
    data = DataConfig(t2i=(shown,), i2t=(shown, told), image_size=32, t2i_length=10, i2t_length=32)
    model = DualDiTConfig(
        in_channels=4, patch_size=2, hidden_size=32, depth=1, num_heads=2, text_dim=24, vocab_size=CODEC.vocab_size,
        sample_size=8, pos_embed_max_size=8,
    )  # fmt: skip
    cfg = DualRun(
        out="run", vae="vae", text="text", data=data, model=model, prompts="mini", global_batch_size=80
    )
    steps = StepData(cfg, CODEC, ImageFacts(4, 4), Ranks(0, 1), open_with=sources.__getitem__)
    batch = steps.rank_batch(5)
    assert batch.t2i is not None
    assert batch.t2i.images.is_null is None
    assert batch.i2t is not None
    is_null = batch.i2t.images.is_null
    assert is_null is not None
    assert is_null.sum() == 10
    expected = CODEC.token_ids("a red dog")
    for row in batch.i2t.input_ids[is_null]:
        assert any(row[i : i + len(expected)].tolist() == expected for i in range(len(row)))
    assert batch.corrupt == {}


def test_held_out_text_is_measured_apart_from_captions(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "a red dog\na cat\na car")
    shown, told = JsonData("shown"), TextData(str(path))
    sources: dict[SourceConfig, Source] = {shown: ListSource(3), told: open_source(told)}
    data = DataConfig(held_out=(shown, told), image_size=32, t2i_length=10, i2t_length=32)
    held = held_out_samples(
        data, 6, CODEC, ImageFacts(4, 4), style=MINI, patch_size=2, open_with=sources.__getitem__
    )
    assert torch.equal(held.is_text, ~held.has_caption)
    assert held.is_text.sum() == 3
