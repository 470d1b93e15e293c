import json
import math
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from list_source import ListSource
from tiny_models import tiny_image_codec, tiny_text_codec

from ddit.config.data import JsonData, LlavaData, SourceConfig, TarData
from ddit.config.runs import DataConfig, DualRun, LatentsRun, ObjectiveConfig
from ddit.data.samples import Source
from ddit.data.world_files import WorldScenes, write_world
from ddit.devices import Ranks
from ddit.diffusion.flow import shifted
from ddit.model import DualDiTConfig
from ddit.model.text_blocks import text_blocks
from ddit.objectives import FlowConfig, MaskedConfig
from ddit.train import precompute as making
from ddit.train.batch import Batch, I2TBatch, T2IBatch
from ddit.train.batches import ImageFacts, StepData
from ddit.train.loader import CorruptCounter, step_loader
from ddit.world import PRESETS

CODEC = tiny_text_codec()
FACTS = ImageFacts(4, 4)
CAPTIONED, TALKED = JsonData("captioned"), LlavaData("talked", weight=0.5)
MODEL = DualDiTConfig(
    in_channels=4, patch_size=2, hidden_size=32, depth=1, num_heads=2, text_dim=24, vocab_size=CODEC.vocab_size,
    sample_size=8, pos_embed_max_size=8,
)  # fmt: skip


def sources() -> dict[SourceConfig, Source]:
    return {CAPTIONED: ListSource(50), TALKED: ListSource(20, tag="blue", without=frozenset(range(0, 20, 3)))}


def config(**changes) -> DualRun:
    data = DataConfig(t2i=(CAPTIONED,), i2t=(CAPTIONED, TALKED), image_size=32, t2i_length=10, i2t_length=32)
    settings = {"data": data, "prompts": "mini", "global_batch_size": 16, "seed": 3}
    return DualRun(out="run", vae="vae", text="text", model=MODEL, **(settings | changes))


def steps(cfg: DualRun, rank: int = 0, num_ranks: int = 1, found: dict | None = None) -> StepData:
    found = sources() if found is None else found
    return StepData(cfg, CODEC, FACTS, Ranks(rank, num_ranks), open_with=found.__getitem__)


def flat(half: T2IBatch | I2TBatch | None) -> dict[str, torch.Tensor]:
    assert half is not None
    tensors = {name: value for name, value in half._asdict().items() if isinstance(value, torch.Tensor)}
    images = {f"images.{name}": value for name, value in half.images._asdict().items() if value is not None}
    return tensors | images


def assert_same(found: list[Batch], expected: Batch) -> None:
    """The micro-batches in order are the halves of the whole batch."""
    for half in ("t2i", "i2t"):
        parts, whole = [flat(getattr(batch, half)) for batch in found], flat(getattr(expected, half))
        for name, tensor in whole.items():
            assert torch.equal(torch.cat([part[name] for part in parts]), tensor), (half, name)


def test_a_global_batch_is_the_same_for_any_ranks_and_micro_batches() -> None:
    whole = steps(config())[5][0]
    assert whole.t2i is not None
    assert len(whole.t2i.t) == 8
    for num_ranks in (1, 2, 4):
        for micro in (2, 4):
            cfg = config(micro_batch_size=micro)
            ranks = [steps(cfg, rank, num_ranks) for rank in range(num_ranks)]
            batches = [ranks[rank][5] for rank in range(num_ranks)]
            assert [len(own) for own in batches] == [16 // num_ranks // micro] * num_ranks
            assert_same([batch for own in batches for batch in own], whole)


def test_batches_differ_from_step_to_step_and_seed_to_seed() -> None:
    first, second, other = (
        flat(steps(config(seed=seed))[step][0].t2i) for seed, step in ((3, 0), (3, 1), (4, 0))
    )
    for name in ("noise", "t", "images.pixels", "images.sampling_noise", "prompt_ids"):
        assert not torch.equal(first[name], second[name]), name
        assert not torch.equal(first[name], other[name]), name


def test_a_batch_is_what_its_docstrings_say() -> None:
    data = steps(config())
    t2i, i2t = flat(data[0][0].t2i), flat(data[0][0].i2t)
    assert t2i["images.pixels"].dtype == torch.uint8
    assert t2i["images.pixels"].shape == (8, 3, 32, 32)
    assert t2i["noise"].shape == t2i["images.sampling_noise"].shape == (8, 4, 8, 8)
    assert "images.is_null" not in t2i
    assert i2t["images.is_null"].dtype == torch.bool
    masked = i2t["noisy_ids"] != i2t["input_ids"]
    assert (i2t["noisy_ids"][masked] == CODEC.mask_token_id).all()
    assert i2t["answer_mask"][masked].all()
    slices = (i2t["t"].sort().values * 8).floor().long()
    assert slices.tolist() == list(range(8))  # one time in each slice
    texts = [CODEC.decode(ids) for ids in i2t["input_ids"]]
    assert all(text.startswith("Q: is there a dog A:") for text in texts)


def test_in_blocks_each_has_its_time_and_a_conversation_has_one_answer() -> None:
    model = replace(MODEL, image_attends_text=False, text_block_size=4)
    data, num_turns = steps(replace(config(), model=model)), Counter()
    for step in range(4):
        i2t = flat(data[step][0].i2t)
        ids, answer, t = i2t["input_ids"], i2t["answer_mask"], i2t["t"]
        blocks = text_blocks(answer, 4).expand_as(ids)
        assert t.shape == ids.shape
        first = (blocks == 1) & (blocks.roll(1, 1) == 0)
        assert (t[first].sort().values * 8).floor().tolist() == list(range(8))  # one in each slice
        for row_ids, row_answer, row_blocks, row_t in zip(ids, answer, blocks, t, strict=True):
            start = int(row_answer.nonzero()[0])
            assert row_answer[start:].all()
            prompt, said = CODEC.tokenizer.decode(row_ids[:start]), CODEC.decode(row_ids[start:])
            assert len(said.split()) == 1
            num_turns[prompt.count("A:")] += 1
            times = [row_t[row_blocks == block].unique() for block in range(1, int(row_blocks.max()) + 1)]
            assert all(len(time) == 1 for time in times)
            gaps = torch.cat(times).sort().values.diff()
            torch.testing.assert_close(gaps, torch.full_like(gaps, 1 / len(times)), atol=2e-3, rtol=0)
    assert set(num_turns) == {1, 2}


def test_null_images_are_blank_and_marked() -> None:
    data, seen = steps(config()), Counter()
    for step in range(30):
        i2t = flat(data[step][0].i2t)
        blank = (i2t["images.pixels"] == 0).flatten(1).all(1)
        assert torch.equal(blank, i2t["images.is_null"])
        seen.update(i2t["images.is_null"].tolist())
    assert seen[True] == pytest.approx(240 / 3 * 7 / 20, abs=6)  # a third are conversations, 7 of 20 without


def test_captions_are_dropped_as_often_as_asked_and_noise_is_normal() -> None:
    cfg = config(objective=ObjectiveConfig(caption_dropout=0.25))
    data = steps(cfg)
    empty = data._empty_prompt
    batches = [flat(data[step][0].t2i) for step in range(100)]
    dropped = torch.cat([(batch["prompt_ids"] == empty).all(1) for batch in batches]).float().mean()
    assert 0.19 < dropped < 0.31
    noise = torch.cat([batch["noise"] for batch in batches])
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    t = torch.cat([batch["t"] for batch in batches])
    assert abs(t.logit(eps=1e-3).mean()) < 0.15
    assert abs(t.logit(eps=1e-3).std() - 1) < 0.1


def test_a_share_of_the_texts_is_masked_throughout() -> None:
    objective = ObjectiveConfig(i2t_fraction=0.5, text=MaskedConfig(all_masked_share=0.75))
    (batch,) = steps(config(objective=objective))[0]
    assert batch.i2t is not None
    assert (batch.i2t.t == 1).sum() == 6  # of 8
    hidden = (batch.i2t.noisy_ids == CODEC.mask_token_id) | ~batch.i2t.answer_mask
    assert hidden[batch.i2t.t == 1].float().mean() > 0.95  # t = 1 leaves one token in a thousand


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_texts_in_a_row_are_about_one_image_on_any_number_of_ranks(num_ranks: int) -> None:
    cfg = replace(config(), model=replace(MODEL, image_attends_text=False))
    several = replace(cfg, data=replace(cfg.data, texts_per_image=4))
    ranks = [flat(steps(several, rank, num_ranks)[2][0].i2t) for rank in range(num_ranks)]
    found = {name: torch.cat([rank[name] for rank in ranks]) for name in ranks[0]}
    assert (len(found["input_ids"]), len(found["images.pixels"])) == (8, 2)
    # A batch of two plain samples shows the same images.
    half = ObjectiveConfig(i2t_fraction=0.2)
    plain = flat(steps(replace(cfg, global_batch_size=10, objective=half))[2][0].i2t)
    assert torch.equal(found["images.pixels"], plain["images.pixels"])
    assert len(found["input_ids"][:4].unique(dim=0)) > 1


def test_settings_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="8 t2i and 8 i2t samples cannot be shared equally by 3 ranks"):
        steps(config(), 0, 3)
    with pytest.raises(ValueError, match=r"needs model\.image_attends_text=false"):
        config(data=replace(config().data, texts_per_image=4))
    apart = replace(config(), model=replace(MODEL, image_attends_text=False))
    with pytest.raises(ValueError, match=r"shared equally by 1 ranks.*data\.texts_per_image=3"):
        steps(replace(apart, data=replace(apart.data, texts_per_image=3)))
    with pytest.raises(ValueError, match=r"data\.t2i names no source"):
        steps(config(data=DataConfig(image_size=32)))
    wide = replace(config().data, image_size=64, num_buckets=5)
    with pytest.raises(ValueError, match=r"sides of up to 88 pixels, but the model's positions end at 64"):
        steps(config(data=wide))
    with pytest.raises(ValueError, match="alignment_weight is above 0, which needs cached latents"):
        steps(config(objective=ObjectiveConfig(alignment_weight=0.5, alignment_block=0)))
    with pytest.raises(ValueError, match="leaves no room"):
        steps(config(data=replace(config().data, i2t_length=4)))


def test_a_wide_image_is_seen_whole_with_buckets() -> None:
    wide = ListSource(40, sizes=(128, 64))
    gradient = wide.sample

    def sample(index, rng, *, i2t, with_image=True):
        found = gradient(index, rng, i2t=i2t, with_image=with_image)
        found.image.paste((255, 255, 255), (0, 0, 8, 64))  # what a square crop would lose
        return found

    wide.sample = sample
    data = DataConfig(t2i=(CAPTIONED,), image_size=32, t2i_length=10, i2t_length=32)
    for num_buckets, is_seen in ((1, False), (5, True)):
        cfg = config(data=replace(data, num_buckets=num_buckets))
        pixels = flat(steps(cfg, found={CAPTIONED: wide})[0][0].t2i)["images.pixels"]
        assert pixels.shape[2:] == ((24, 48) if is_seen else (32, 32))
        assert bool((pixels[:, :, :, 0] > 200).all()) == is_seen


def test_the_shift_of_the_times_is_that_of_the_bucket() -> None:
    found = {CAPTIONED: ListSource(60, sizes=[(64, 64), (96, 48), (48, 96)] * 20)}
    data, objective = (
        DataConfig(t2i=(CAPTIONED,), image_size=32, t2i_length=10, i2t_length=32, num_buckets=5),
        config().objective,
    )
    plain = steps(config(data=data), found=found)
    flow = FlowConfig(shift_from_size=16)
    moved = steps(config(data=data, objective=replace(objective, flow=flow)), found=found)
    areas = set()
    for step in range(8):
        before, after = (flat(of.rank_batch(step).t2i) for of in (plain, moved))
        area = math.prod(before["images.pixels"].shape[2:])
        torch.testing.assert_close(after["t"], shifted(before["t"], area**0.5 / 16))
        assert torch.equal(after["noise"], before["noise"])
        areas.add(area)
    assert len(areas) > 1


def test_each_half_of_a_batch_has_one_shape() -> None:
    sizes = [(64, 64), (96, 48), (48, 96)] * 20
    found = {CAPTIONED: ListSource(60, sizes=sizes), TALKED: ListSource(20, without=frozenset(range(10)))}
    cfg = config(data=replace(config().data, num_buckets=5), global_batch_size=8)
    data, shapes = steps(cfg, found=found), Counter()
    for step in range(40):
        batch = data[step][0]
        assert batch.t2i is not None
        assert flat(batch.t2i)["noise"].shape[2:] == tuple(
            side // 4 for side in flat(batch.t2i)["images.pixels"].shape[2:]
        )
        shapes[tuple(batch.t2i.noise.shape[2:])] += 1
    assert len(shapes) == 3
    assert max(shapes.values()) - min(shapes.values()) <= 3


def test_corrupt_samples_are_replaced_and_counted() -> None:
    corrupt = frozenset(range(0, 400, 100))
    found = {CAPTIONED: ListSource(400, corrupt=corrupt), TALKED: ListSource(20)}
    cfg = config(global_batch_size=40)
    data, counter = steps(cfg, found=found), CorruptCounter(0.02)
    clean = steps(cfg, found={CAPTIONED: ListSource(400), TALKED: ListSource(20)})
    for step in range(20):  # an epoch of the t2i half
        batch, expected = data[step], clean[step]
        counter.add(batch[0].corrupt, 40)
        for half in ("t2i", "i2t"):
            one, other = flat(getattr(batch[0], half)), flat(getattr(expected[0], half))
            for name in one.keys() & {"noise", "t", "images.sampling_noise"}:
                assert torch.equal(
                    one[name], other[name]
                )  # a replacement leaves the position's randomness alone
        pixels = flat(batch[0].t2i)["images.pixels"].flatten(1)
        assert (pixels != 0).any(1).all()
    t2i, i2t = 4, 400 * 2 / 3 / 100  # of an epoch, and of two thirds of one
    assert counter.causes.keys() == {"not an image"}
    assert t2i + i2t - 2.7 <= counter.num_corrupt <= t2i + i2t + 3
    assert counter.num_samples == 800


def test_too_many_corrupt_samples_stop_the_run_with_their_causes() -> None:
    counter = CorruptCounter(0.02)
    counter.add({"not an image": 50}, 100)  # too early to tell
    with pytest.raises(ValueError, match=r"51 of 251 samples .* \(no file: 1, not an image: 50\)"):
        counter.add({"no file": 1}, 100)


def test_a_source_without_a_usable_sample_is_an_error_of_one_line() -> None:
    found = sources() | {CAPTIONED: ListSource(50, corrupt=frozenset(range(50)))}
    with pytest.raises(ValueError, match=r"100 samples in a row .* list\[\d+\]: not an image"):
        steps(config(), found=found)[0]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_loader_gives_the_batches_of_its_steps_in_order(
    num_workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    data = steps(config(micro_batch_size=4))
    found = list(step_loader(data, 3, 8, num_workers))
    assert [step for step, _ in found] == [3, 4, 5, 6, 7]
    for step, batches in found:
        assert len(batches) == 4
        assert_same(batches, data.rank_batch(step))
    assert "fork" not in capfd.readouterr().err


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_of_a_worker_is_one_line(num_workers: int) -> None:
    found = sources() | {CAPTIONED: ListSource(50, corrupt=frozenset(range(50)))}
    with pytest.raises(ValueError, match=r"^100 samples in a row") as raised:
        next(step_loader(steps(config(), found=found), 0, 2, num_workers))
    assert "\n" not in str(raised.value)


def test_stopping_early_leaves_no_process() -> None:
    import multiprocessing

    before = set(multiprocessing.active_children())
    loader = step_loader(steps(config()), 0, 1000, 2)
    next(loader)
    assert len(set(multiprocessing.active_children()) - before) == 2
    loader.close()
    assert not set(multiprocessing.active_children()) - before


def precomputed(root: Path, monkeypatch: pytest.MonkeyPatch, **changes) -> tuple[dict, ImageFacts]:
    """The sources, their latents made and named in their configurations, and the facts of the autoencoder."""
    codec = tiny_image_codec()
    codec.save_pretrained(root / "vae")
    found: dict[SourceConfig, Source] = {}
    for cfg, source in sources().items():
        cached = replace(cfg, latents=str(root / cfg.kind))
        found |= {cfg: source, cached: source}
        monkeypatch.setattr(making, "open_source", found.__getitem__)
        run = LatentsRun(
            out=str(root / cfg.kind), vae=str(root / "vae"), source=cfg, image_size=32, bucket_unit=8,
            shard_size=16, batch_size=7, **changes,
        )  # fmt: skip
        making.precompute(run, Ranks(), num_workers=0)
    return found, ImageFacts.of(codec)


def with_latents(cfg: DualRun, root: Path) -> DualRun:
    def named(sources: tuple) -> tuple:
        return tuple(replace(source, latents=str(root / source.kind)) for source in sources)

    data = replace(cfg.data, t2i=named(cfg.data.t2i), i2t=named(cfg.data.i2t))
    return replace(cfg, data=data)


def test_cached_latents_give_the_batch_of_live_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, facts = precomputed(tmp_path, monkeypatch)
    codec, live = tiny_image_codec(), config()
    cached = StepData(with_latents(live, tmp_path), CODEC, facts, Ranks(), open_with=found.__getitem__)
    for step in (0, 7):
        batches = cached[step][0], steps(live)[step][0]
        for half in ("t2i", "i2t"):
            one, other = (flat(getattr(batch, half)) for batch in batches)
            mean, std = codec.encode_distribution(other.pop("images.pixels"))
            null = one.get("images.is_null", torch.zeros(len(mean), dtype=torch.bool))
            torch.testing.assert_close(one.pop("images.mean")[~null], mean[~null], rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(one.pop("images.std")[~null], std[~null], rtol=1e-3, atol=1e-3)
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in one)


def test_latents_that_do_not_fit_the_run_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, facts = precomputed(tmp_path, monkeypatch)
    cfg = with_latents(config(), tmp_path)

    def make(cfg: DualRun, facts: ImageFacts) -> StepData:
        return StepData(cfg, CODEC, facts, Ranks(), open_with=found.__getitem__)

    with pytest.raises(ValueError, match="made with another autoencoder"):
        make(cfg, facts._replace(fingerprint="other"))
    with pytest.raises(ValueError, match="are of images of 32x32, but the run wants 64x64"):
        make(replace(cfg, data=replace(cfg.data, image_size=64)), facts)
    with pytest.raises(
        ValueError, match=r"either all sources of data\.i2t have cached latents or none: 1 of 2"
    ):
        make(replace(cfg, data=replace(cfg.data, i2t=(cfg.data.i2t[0], TALKED))), facts)
    with pytest.raises(ValueError, match="holds no teacher's features"):
        make(replace(cfg, objective=ObjectiveConfig(alignment_weight=1.0, alignment_block=0)), facts)


@pytest.mark.parametrize("form", ["json", "tar"])
def test_training_goes_on_over_one_percent_of_corrupt_images(form: str, tmp_path: Path) -> None:
    path = write_world(tmp_path, WorldScenes(PRESETS["fixed"], "train", 200), form)
    if form == "json":
        entries = json.loads(path.read_text())
        for number in (17, 111):
            (path.parent / entries[number]["image_path"]).write_bytes(b"torn")
        source: SourceConfig = JsonData(str(path))
    else:
        tar = next(tmp_path.glob("*.tar"))
        with tarfile.open(tar) as members:
            images = [member for member in members if member.name.endswith((".png", ".jpg"))]
        with open(tar, "r+b") as file:
            for number in (17, 111):
                file.seek(images[number].offset_data)
                file.write(b"\0" * images[number].size)
        source = TarData(str(tar))
    data = DataConfig(t2i=(source,), image_size=64, t2i_length=10, i2t_length=32)
    cfg = config(data=data, global_batch_size=20, objective=ObjectiveConfig(i2t_fraction=0.0))
    counter, made = CorruptCounter(0.02), StepData(cfg, CODEC, FACTS, Ranks())
    for _, (batch,) in step_loader(made, 0, 10, 1):
        counter.add(batch.corrupt, 20)
        assert len(flat(batch.t2i)["images.pixels"]) == 20
    assert counter.causes == {"not an image": 2}  # each met once in the epoch
    assert counter.num_samples == 200


def test_halves_of_the_same_sources_share_their_shape() -> None:
    sizes = [(64, 64), (96, 48), (48, 96)] * 20
    data = DataConfig(t2i=(CAPTIONED,), image_size=32, num_buckets=5, t2i_length=10, i2t_length=32)
    made = steps(config(data=data, global_batch_size=8), found={CAPTIONED: ListSource(60, sizes=sizes)})
    for step in range(12):
        t2i, i2t = flat(made[step][0].t2i), flat(made[step][0].i2t)
        assert t2i["images.pixels"].shape == i2t["images.pixels"].shape  # so one forward serves
        assert not torch.equal(t2i["images.pixels"], i2t["images.pixels"])


@pytest.mark.slow
def test_a_program_that_dies_with_the_loader_open_ends(tmp_path: Path) -> None:
    """Python would wait at its exit for workers that ignore its SIGTERM."""
    script = tmp_path / "dies.py"
    script.write_text(
        f"import sys\nsys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}\n"
        "from test_batches import config, step_loader, steps\n"
        "loader = step_loader(steps(config()), 0, 1000, 2)\nnext(loader)\nraise RuntimeError('dies')\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("RuntimeError: dies")
