"""GenEval's detector and its colours: the official verdicts, and tiny random networks of transformers."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil
from typer.testing import CliRunner

from ddit.cli import app
from ddit.eval import detectors
from ddit.eval.detectors import COCO_CLASSES, CocoDetector, ColorModel, FoundObject, crop, keep_objects
from ddit.eval.geneval import CocoJudge, write_metadata
from ddit.eval.options import DetectorOptions
from ddit.model.small_text import build_tokenizer
from ddit.world import COLORS, Prompt

CASES = [
    json.loads(line) for line in (Path(__file__).parent / "data/geneval_cases.jsonl").read_text().splitlines()
]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def small_mask2former(num_labels: int = 80) -> Any:
    backbone = SwinConfig(
        image_size=32, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    sizes = dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim", "encoder_feedforward_dim"), 32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Mask2FormerConfig(
            backbone_config=backbone, num_labels=num_labels, num_queries=12, encoder_layers=1, decoder_layers=2,
            num_attention_heads=2, dim_feedforward=16, **sizes,
        )  # fmt: skip
        network = Mask2FormerForUniversalSegmentation(config)
        with torch.no_grad():
            network.class_predictor.weight.mul_(20)  # some classes are likely
    return network


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Mask2Former and a CLIP in their folder forms, random and tiny."""
    folder = tmp_path_factory.mktemp("networks")
    small_mask2former().save_pretrained(folder / "mask2former")
    words = f"a photo of a object -colored {' '.join(COLORS)} {' '.join(COCO_CLASSES)}".split()
    tokenizer = build_tokenizer(words)
    part = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**part, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        vision = {**part, "image_size": 32, "patch_size": 8}
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(
            folder / "clip"
        )
    tokenizer.save_pretrained(folder / "clip")
    return folder / "mask2former", folder / "clip"


def test_the_official_verdicts_and_reasons_hold() -> None:
    """Cases of `benchmarks/geneval_rules.py`, which compares 10,000."""
    assert sum(case["correct"] for case in CASES) > 10
    for case in CASES:
        found = [FoundObject(COCO_CLASSES[row[0]], tuple(row[1:5]), row[5]) for row in case["objects"]]
        colors = {id(one): row[6] for one, row in zip(found, case["objects"], strict=True)}
        detector: Any = SimpleNamespace(find=lambda image, threshold, found=found: found)
        by_id: Any = SimpleNamespace(
            colors=lambda image, ones, colors=colors: [colors[id(one)] for one in ones]
        )
        data = case["metadata"]
        prompt = Prompt(data["prompt"], data["tag"], data["include"], data.get("exclude", []))
        judge = CocoJudge(detector, by_id, DetectorOptions(max_overlap=case["max_overlap"]))
        (score,) = judge.score([prompt], [noise(8, 8)])
        assert score.correct == case["correct"]
        ours = [fault.replace(" target, found ", "").removesuffix(" target") for fault in score.faults]
        official = [reason.replace(" target, found ", "") for reason in case["reason"] if reason]
        assert [reason.replace(" target", "") for reason in ours] == [
            r.replace(" target", "") for r in official
        ]


def test_objects_count_by_score_number_and_overlap() -> None:
    def dog(x: float, score: float) -> FoundObject:
        return FoundObject("dog", (x, 0, x + 9, 9), score)

    found = [dog(20, 0.31), dog(0, 0.95), dog(1, 0.9), dog(50, 0.3)]
    scores = lambda **options: [one.score for one in keep_objects(found, **options)]  # noqa: E731
    assert scores(threshold=0.3) == [0.95, 0.9, 0.31]
    assert scores(threshold=0.9) == [0.95]
    assert scores(threshold=0.3, max_objects=2) == [0.95, 0.9]
    assert scores(threshold=0.3, max_overlap=0.8) == [0.95, 0.31]  # 90 of 110 pixels: 0.82
    assert scores(threshold=0.3, max_overlap=0.82) == [0.95, 0.9, 0.31]


def test_instances_are_those_of_transformers() -> None:
    """At 384 pixels, to which transformers scales all masks first."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(12, 81, generator=generator)
    masks = torch.randn(12, 384, 384, generator=generator)
    top = detectors.best_classes(logits)
    ours = {
        (round(one.score, 4), COCO_CLASSES.index(one.class_name)): one
        for one in detectors.instances(top, masks[top.queries])
        if one.score > 0.3
    }
    outputs: Any = SimpleNamespace(class_queries_logits=logits[None], masks_queries_logits=masks[None])
    processor = Mask2FormerImageProcessorPil()
    (theirs,) = processor.post_process_instance_segmentation(
        outputs, threshold=0.3, target_sizes=[(384, 384)], return_binary_maps=True
    )
    assert len(theirs["segments_info"]) > 2
    assert len(ours) == len(theirs["segments_info"])
    for info, mask in zip(theirs["segments_info"], theirs["segmentation"], strict=True):
        same = [
            one
            for (score, label), one in ours.items()
            if (label == info["label_id"] and abs(score - info["score"]) < 1e-3)
        ]
        assert any(np.array_equal(one.mask, mask.numpy().astype(bool)) for one in same)


def test_a_box_ends_behind_its_masks_last_pixel() -> None:
    mask = torch.full((1, 10, 12), -1.0)
    mask[0, 2:5, 3:9] = 4.0
    top = detectors.TopClasses(torch.tensor([0]), torch.tensor([16]), torch.tensor([0.5]))
    (found,) = detectors.instances(top, mask)
    assert (found.class_name, found.box) == ("dog", (3.0, 2.0, 9.0, 5.0))
    assert found.score == pytest.approx(0.5 * torch.tensor(4.0).sigmoid().item(), rel=1e-5)
    assert detectors.instances(top, -mask.abs()) == []


def test_images_are_prepared_as_transformers_does(networks: tuple[Path, Path]) -> None:
    image = noise(40, 40)
    theirs = Mask2FormerImageProcessorPil(size={"shortest_edge": 800, "longest_edge": 1333})(
        image, return_tensors="pt"
    )
    pixels, inside = detectors.prepare(image)
    assert inside == (800, 800)
    torch.testing.assert_close(pixels, theirs["pixel_values"][0], atol=1e-4, rtol=0)
    pixels, inside = detectors.prepare(noise(100, 30))
    assert (inside, pixels.shape) == ((400, 1333), (3, 416, 1344))  # the long side decides; padded to 32
    colors = ColorModel.from_pretrained(str(networks[1]))
    clip = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    wide = noise(90, 37)
    torch.testing.assert_close(
        colors._prepare(wide), clip(wide, return_tensors="pt")["pixel_values"][0], atol=1e-4, rtol=0
    )


def test_crops_are_grey_around_the_object() -> None:
    image, mask = noise(20, 20), np.zeros((20, 20), dtype=bool)
    mask[5, 6] = True
    pixels = np.asarray(crop(image, FoundObject("dog", (5, 5, 8, 7), 1, mask)))
    assert pixels.shape == (2, 3, 3)
    assert (pixels[0, 1] == np.asarray(image)[5, 6]).all()
    assert (np.delete(pixels.reshape(6, 3), 1, axis=0) == 0x99).all()


def test_a_colour_is_the_nearest_text_of_its_own_class(networks: tuple[Path, Path]) -> None:
    model = ColorModel.from_pretrained(str(networks[1]))
    image = noise(40, 30)
    one = FoundObject("dog", (2, 3, 30, 25), 1.0)
    (color,) = model.colors(image, [one])
    texts = [f"a photo of a {color} dog", f"a photo of a {color}-colored dog", f"a photo of a {color} object"]
    pixels = model._prepare(crop(image, one))[None]
    scores = {}
    for name in COLORS:
        own = [text.replace(color, name) for text in texts]
        with torch.inference_mode():
            found = [
                model.network(pixel_values=pixels, **model.tokenizer([text], return_tensors="pt"))
                for text in own
            ]
        mean = torch.nn.functional.normalize(torch.cat([out.text_embeds for out in found]).mean(0), dim=-1)
        scores[name] = (found[0].image_embeds[0] @ mean).item()
    assert max(scores, key=lambda name: scores[name]) == color
    assert model.colors(image, []) == []


def test_the_detector_finds_masks_of_the_images_size(
    networks: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detectors, "SHORT_SIDE", 64)
    detector = CocoDetector.from_pretrained(str(networks[0]))
    found = detector.find(noise(50, 30), threshold=0.05)
    assert found
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert all(one.mask is not None and one.mask.shape == (30, 50) and one.score > 0.05 for one in found)
    most = detector.find(noise(50, 30), threshold=found[1].score)
    assert [one.score for one in most] == pytest.approx([found[0].score])


def test_a_folder_of_images_is_scored_by_the_command(
    networks: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detectors, "SHORT_SIDE", 64)
    monkeypatch.setattr(detectors, "LONG_SIDE", 64)
    detector = CocoDetector.from_pretrained(str(networks[0]))
    seen = detector.find(noise(48, 48), threshold=0.05)[0]
    prompts = [
        Prompt("one", "single_object", [{"class": seen.class_name, "count": 1}]),
        Prompt("two", "colors", [{"class": seen.class_name, "count": 1, "color": "red"}]),
        Prompt("three", "single_object", [{"class": "toothbrush", "count": 20}]),
    ]
    for index, prompt in enumerate(prompts):
        noise(48, 48).save(write_metadata(tmp_path / "images", index, prompt) / "0000.png")
    out = tmp_path / "results.jsonl"
    command = [
        "score-images", "geneval", tmp_path / "images", "--detector", networks[0], "--color-model", networks[1],
        "--detector-threshold", 0.05, "-o", out, "--json",
    ]  # fmt: skip
    result = CliRunner().invoke(app, list(map(str, command)), catch_exceptions=False)
    assert result.exit_code == 0
    figures = {figure["name"]: figure for figure in json.loads(result.stdout)["figures"]}
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["correct"] for line in lines][::2] == [True, False]
    assert figures["single_object"]["value"] == 0.5
    assert figures["overall"]["value"] == (0.5 + lines[1]["correct"]) / 2
    assert lines[2]["reason"] == "expected toothbrush>=20, found 0"
    details = json.loads(lines[0]["details"])[seen.class_name][0]
    assert details == pytest.approx([*seen.box, seen.score])
    assert json.loads(lines[0]["metadata"]) == prompts[0].to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "00000/samples/0000.png").unlink(), "has no image 0000.png"),
        (lambda folder: (folder / "00000/metadata.jsonl").unlink(), "no such file"),
        (
            lambda folder: write_metadata(folder, 0, Prompt("?", "colors", [{"class": "yak", "count": 1}])),
            r"what the small world lacks \(yak\)",
        ),
    ],
)
def test_mistakes_in_a_folder_are_named(tmp_path: Path, change: Any, message: str) -> None:
    prompt = Prompt("a photo of a dog", "single_object", [{"class": "dog", "count": 1}])
    noise(64, 64).save(write_metadata(tmp_path, 0, prompt) / "0000.png")
    change(tmp_path)
    command = [
        "score-images",
        "geneval",
        str(tmp_path),
        "--detector",
        "world",
        "-o",
        str(tmp_path / "r.jsonl"),
    ]
    with pytest.raises(ValueError, match=message):
        CliRunner().invoke(app, command, catch_exceptions=False)


def test_another_network_is_refused(networks: tuple[Path, Path], tmp_path: Path) -> None:
    small_mask2former(num_labels=3).save_pretrained(tmp_path / "three")
    with pytest.raises(ValueError, match="knows 3 classes"):
        CocoDetector.from_pretrained(str(tmp_path / "three"))
    with pytest.raises(ValueError, match="is no CLIPModel"):
        ColorModel.from_pretrained(str(networks[0]))
    tensors = load_file(networks[1] / "model.safetensors")
    del tensors["text_projection.weight"]
    (tmp_path / "clip").mkdir()
    shutil.copy(networks[1] / "config.json", tmp_path / "clip")
    save_file(tensors, tmp_path / "clip" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks text_projection\.weight"):
        ColorModel.from_pretrained(str(tmp_path / "clip"))
