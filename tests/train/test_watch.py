"""What a run reports: figures with utilisation, a sample grid, a table, event files."""

import json
from dataclasses import replace

from ddit.config.data import WorldData
from ddit.config.runs import DualRun
from ddit.images import read_image
from ddit.train.log import read_log
from ddit.train.loop import train


def test_a_run_shows_its_rate_its_images_and_its_texts(joint: DualRun) -> None:
    joint = replace(
        joint, max_steps=2, report=replace(joint.report, grid_every=1, peak_tflops=0.01, tensorboard=True)
    )
    out = train(joint)
    rates = [event for event in read_log(out / "log.jsonl") if "pairs_per_second" in event]
    assert len(rates) == 2
    assert all(0 < event["mfu"] < 100 for event in rates)
    assert list((out / "tensorboard").glob("events.*"))

    names = sorted(path.name for path in (out / "samples").iterdir())
    assert names == [
        "0000001.jsonl", "0000001.md", "0000001.png", "0000002.jsonl", "0000002.md", "0000002.png", "images",
    ]  # fmt: skip
    rows = [json.loads(line) for line in (out / "samples" / "0000002.jsonl").read_text().splitlines()]
    captions, answers = ([row for row in rows if (row["question"] is None) == kind] for kind in (True, False))
    assert len(captions) == joint.report.num_grid
    assert 0 < len(answers) <= joint.report.num_grid
    assert all(row["truth"] for row in rows)
    assert read_image(out / "samples" / "images" / f"{rows[0]['image']}.png").size == (128, 128)


def test_a_run_of_images_only_saves_no_table_and_without_held_out_sources_nothing(joint: DualRun) -> None:
    assert isinstance(joint.data.held_out[0], WorldData)
    images_only = replace(joint, max_steps=1, objective=replace(joint.objective, i2t_fraction=0.0))
    assert [path.name for path in (train(images_only) / "samples").iterdir()] == ["0000001.png"]
    blind = replace(joint, out=f"{joint.out}-blind", max_steps=1, data=replace(joint.data, held_out=()))
    assert not (train(blind) / "samples").exists()
