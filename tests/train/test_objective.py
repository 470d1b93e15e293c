"""The loss of a micro-batch: joint as apart, in means that add up, with null images and without the logits' matrix."""

import dataclasses

import pytest
import torch
from tiny_models import tiny_image_codec, tiny_text_codec
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ddit.config.runs import ObjectiveConfig
from ddit.diffusion import flow, masked
from ddit.diffusion.flow import FlowConfig
from ddit.diffusion.masked import MaskedConfig
from ddit.model import DualDiT, DualDiTConfig
from ddit.train.batch import Batch, I2TBatch, Images, T2IBatch
from ddit.train.cross_entropy import CHUNK_ELEMENTS
from ddit.train.frozen import clean_latents
from ddit.train.learner import Learner
from ddit.train.objective import AlignmentHead, Losses, alignment_loss, step_losses

VOCAB, MASK, LENGTH = 53, 52, 6
CONFIG = DualDiTConfig(
    in_channels=4,
    hidden_size=32,
    depth=3,
    num_heads=2,
    text_dim=24,
    vocab_size=VOCAB,
    sample_size=16,
    pos_embed_max_size=12,
)
OBJECTIVE = ObjectiveConfig(lambda_text=0.3)
NO_IMAGES = Images(None, None, None, None)


def make_model(**changes) -> DualDiT:
    """Random weights with no zero-initialised path, so that every part reaches the loss."""
    model = DualDiT(dataclasses.replace(CONFIG, **changes))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1, generator=generator)
    return model


def make_inputs(
    num_t2i: int = 3, num_i2t: int = 5, *, i2t_size: int = 8, i2t_length: int = LENGTH
) -> tuple[Batch, list[Tensor]]:
    """A batch, and clean latents and text states of both halves."""
    g = torch.Generator().manual_seed(2)
    t2i = T2IBatch(
        NO_IMAGES,
        prompt_ids=torch.zeros(num_t2i, LENGTH, dtype=torch.long),
        t=torch.rand(num_t2i, generator=g),
        noise=torch.randn(num_t2i, 4, 8, 8, generator=g),
        features=torch.randn(num_t2i, 7, 4, 4, generator=g),
    )
    ids = torch.randint(0, MASK, (num_i2t, i2t_length), generator=g)
    answer_mask = torch.ones_like(ids, dtype=torch.bool)
    answer_mask[:, 0] = False
    t = torch.rand(num_i2t, generator=g) * 0.7 + 0.3
    noisy_ids = masked.mask_tokens(ids, answer_mask, t, mask_token_id=MASK, generator=g)
    i2t = I2TBatch(NO_IMAGES, ids, answer_mask, noisy_ids, t)
    tensors = [
        torch.randn(num_t2i, 4, 8, 8, generator=g),
        torch.randn(num_i2t, 4, 8, i2t_size, generator=g),
        torch.randn(num_t2i, LENGTH, 24, generator=g),
        torch.randn(num_i2t, i2t_length, 24, generator=g),
    ]
    return Batch(t2i, i2t, {}), tensors


def gradients_of(model: DualDiT, total: Tensor) -> list[Tensor]:
    model.zero_grad()
    total.backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def losses_of(model: DualDiT, batch: Batch, tensors: list[Tensor], cfg: ObjectiveConfig, head=None) -> Losses:
    return step_losses(
        model,
        batch,
        (tensors[0], tensors[1]),
        (tensors[2], tensors[3]),
        cfg,
        mask_token_id=MASK,
        alignment_head=head,
    )


@pytest.mark.parametrize("image_attends_text", [True, False])
def test_one_joint_forward_has_the_loss_and_gradient_of_two_separate_passes(image_attends_text: bool) -> None:
    model = make_model(image_attends_text=image_attends_text)
    batch, (t2i_latents, i2t_latents, t2i_states, i2t_states) = make_inputs()
    torch.manual_seed(0)
    head, cfg = AlignmentHead(32, 7), dataclasses.replace(OBJECTIVE, alignment_weight=0.5, alignment_block=1)

    joint = losses_of(model, batch, [t2i_latents, i2t_latents, t2i_states, i2t_states], cfg, head)
    together = gradients_of(model, joint.total)
    t2i = losses_of(model, batch._replace(i2t=None), [t2i_latents, None, t2i_states, None], cfg, head)
    by_t2i = gradients_of(model, t2i.total)
    i2t = losses_of(model, batch._replace(t2i=None), [None, i2t_latents, None, i2t_states], cfg, head)
    by_i2t = gradients_of(model, i2t.total)

    torch.testing.assert_close(joint.total, t2i.total + i2t.total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(joint[1:4], (t2i.image, i2t.text, t2i.alignment), rtol=1e-5, atol=1e-5)
    for a, b, c in zip(together, by_t2i, by_i2t, strict=True):
        torch.testing.assert_close(a, b + c, rtol=1e-5, atol=1e-5)
    assert t2i.text is None
    assert i2t.image is None
    assert i2t.alignment is None


def test_the_image_loss_counts_by_its_weight() -> None:
    model = make_model()
    batch, tensors = make_inputs()
    cfg = dataclasses.replace(OBJECTIVE, image_weight=0.25)
    losses = losses_of(model, batch, tensors, cfg)
    assert losses.image is not None
    assert losses.text is not None
    torch.testing.assert_close(losses.total, 0.25 * losses.image + cfg.lambda_text * losses.text)


class _Forwards:
    """Notes the batch sizes of the groups in each of a model's forward passes, and of the images that are embedded."""

    def __init__(self, model: DualDiT) -> None:
        self.sizes: list[list[int]] = []
        self.shown: list[int] = []
        model.pos_embed.register_forward_hook(lambda _, args, out: self.shown.append(len(out)))
        model.transformer_blocks[0].register_forward_pre_hook(
            lambda _, args: self.sizes.append([len(group.image) for group in args[0]])
        )


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [({}, [8]), ({"i2t_size": 12}, [3, 5]), ({"i2t_length": 4}, [3, 5]), ({"i2t_length": 9}, [3, 5])],
)
def test_one_forward_of_any_lengths_has_the_losses_and_gradients_of_two(
    changes: dict, sizes: list[int]
) -> None:
    model, (batch, tensors) = make_model(), make_inputs(**changes)
    forwards = _Forwards(model)
    joint = losses_of(model, batch, tensors, OBJECTIVE)
    together = gradients_of(model, joint.total)
    assert forwards.sizes == [sizes]
    apart = [
        losses_of(model, batch._replace(i2t=None), [tensors[0], None, tensors[2], None], OBJECTIVE).total,
        losses_of(model, batch._replace(t2i=None), [None, tensors[1], None, tensors[3]], OBJECTIVE).total,
    ]
    torch.testing.assert_close(joint.total, apart[0] + apart[1], rtol=1e-5, atol=1e-5)
    for a, b in zip(together, gradients_of(model, apart[0] + apart[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "text_cfg", [MaskedConfig(sharpen=2.0), MaskedConfig(), MaskedConfig(normalizer="answer", max_weight=1.5)]
)
@pytest.mark.parametrize("weighting", ["velocity", "x0"])
def test_the_losses_are_those_of_the_two_processes(text_cfg: MaskedConfig, weighting) -> None:
    model, (batch, tensors) = make_model(), make_inputs()
    cfg = ObjectiveConfig(lambda_text=0.3, flow=FlowConfig(weighting=weighting), text=text_cfg)
    losses = losses_of(model, batch, tensors, cfg)
    image = flow.flow_loss(
        lambda x, t: model(x, t, tensors[2], num_t2i=3).velocity,
        tensors[0], cfg=cfg.flow, t=batch.t2i.t, noise=batch.t2i.noise,
    )  # fmt: skip
    text = masked.masked_loss(
        lambda ids, is_masked, rows: model(
            tensors[1], torch.zeros(5), tensors[3], num_t2i=0, logit_mask=is_masked
        ).logits,
        batch.i2t.input_ids, batch.i2t.answer_mask, mask_token_id=MASK, cfg=text_cfg,
        t=batch.i2t.t, noisy_ids=batch.i2t.noisy_ids,
    )  # fmt: skip
    torch.testing.assert_close(losses.image, image.mean())
    torch.testing.assert_close(losses.text, text.mean())
    torch.testing.assert_close(losses.total, image.mean() + 0.3 * text.mean())


def test_with_wrong_tokens_visible_ones_are_told_too_as_if_at_the_end_of_time() -> None:
    model, (batch, tensors) = make_model(), make_inputs()
    cfg = MaskedConfig(wrong_share=0.5)
    found = losses_of(model, batch, tensors, ObjectiveConfig(text=cfg)).text
    i2t = batch.i2t
    assert i2t is not None
    logits = model(tensors[1], torch.zeros(5), tensors[3], num_t2i=0).logits
    nll = -masked.subs_log_probs(logits, MASK).gather(2, i2t.input_ids[..., None])[..., 0]
    is_masked = i2t.noisy_ids == MASK
    weights = torch.where(is_masked, 1 / i2t.t[:, None], 1.0) * i2t.answer_mask / i2t.input_ids.shape[1]
    assert (i2t.answer_mask & ~is_masked).any()
    torch.testing.assert_close(found, (weights * nll).sum(1).mean())


def take(batch: Batch, tensors: list[Tensor], t2i: slice, i2t: slice) -> tuple[Batch, list[Tensor]]:
    """Some samples of a batch."""

    def cut(half, rows: slice):
        return half._replace(**{k: v[rows] for k, v in half._asdict().items() if isinstance(v, Tensor)})

    parts = [tensor[rows] for tensor, rows in zip(tensors, (t2i, i2t, t2i, i2t), strict=True)]
    return Batch(cut(batch.t2i, t2i), cut(batch.i2t, i2t), {}), parts


def test_the_mean_over_micro_batches_is_the_loss_and_gradient_of_the_whole() -> None:
    model, (batch, tensors) = make_model(), make_inputs(4, 8)
    whole = losses_of(model, batch, tensors, OBJECTIVE).total
    parts = [
        losses_of(model, *take(batch, tensors, slice(k, k + 1), slice(2 * k, 2 * k + 2)), OBJECTIVE).total
        for k in range(4)
    ]
    mean = torch.stack(parts).mean()
    torch.testing.assert_close(mean, whole, rtol=1e-5, atol=1e-6)
    for a, b in zip(gradients_of(model, mean), gradients_of(model, whole), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_images_that_are_absent_are_null_images() -> None:
    model, (batch, tensors) = make_model(), make_inputs()
    is_null = torch.tensor([False, True, False, False, True])
    mixed = batch._replace(i2t=batch.i2t._replace(images=NO_IMAGES._replace(is_null=is_null)))
    loss = losses_of(model, mixed, tensors, OBJECTIVE)
    joint = gradients_of(model, loss.total)

    parts = []
    for rows in (is_null, ~is_null):
        chosen, cut = take(batch._replace(t2i=batch.t2i), tensors, slice(0), rows)
        latents = None if rows is is_null else cut[1]
        i2t = losses_of(model, chosen._replace(t2i=None), [None, latents, None, cut[3]], OBJECTIVE)
        parts.append(i2t.text * rows.sum() / 5)
    torch.testing.assert_close(loss.text, parts[0] + parts[1], rtol=1e-5, atol=1e-6)
    t2i = losses_of(model, batch._replace(i2t=None), [tensors[0], None, tensors[2], None], OBJECTIVE)
    apart = gradients_of(model, t2i.total + 0.3 * (parts[0] + parts[1]))
    for a, b in zip(joint, apart, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block_size", [0, 3])
def test_texts_that_share_an_image_have_the_loss_and_gradient_of_copies_whose_image_runs_once(
    block_size: int,
) -> None:
    model = make_model(image_attends_text=False, text_block_size=block_size)
    batch, tensors = make_inputs(3, 6, i2t_length=8)
    is_null = torch.tensor([False, True, False])
    i2t = batch.i2t._replace(lengths=torch.tensor([8, 4, 8, 8, 4, 8]))
    cut = torch.arange(8) < i2t.lengths[:, None]
    i2t = i2t._replace(answer_mask=i2t.answer_mask & cut, input_ids=i2t.input_ids.where(cut, 0))
    if block_size:
        tensors[3], i2t = torch.cat([tensors[3]] * 2, dim=1), i2t._replace(t=i2t.t[:, None].expand(-1, 8))
    shared, images = (
        batch._replace(i2t=i2t._replace(images=NO_IMAGES._replace(is_null=is_null))),
        tensors[1][:3],
    )
    copies = i2t._replace(images=NO_IMAGES._replace(is_null=is_null.repeat_interleave(2)))

    forwards = _Forwards(model)
    found = losses_of(model, shared, [tensors[0], images, *tensors[2:]], OBJECTIVE)
    gradients = gradients_of(model, found.total)
    assert forwards.shown == [3, 3]  # the drawn images, and those that texts of two lengths share
    expected = losses_of(
        model,
        batch._replace(i2t=copies),
        [tensors[0], images.repeat_interleave(2, 0), *tensors[2:]],
        OBJECTIVE,
    )
    torch.testing.assert_close(found[:3], expected[:3], rtol=1e-5, atol=1e-6)
    for a, b in zip(gradients, gradients_of(model, expected.total), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_a_step_with_nothing_masked_leaves_zero_gradients_of_the_text_head_not_none() -> None:
    """Ranks of a sharded model reduce the same list of gradients."""
    model, (batch, tensors) = make_model(), make_inputs()
    i2t = batch.i2t._replace(noisy_ids=batch.i2t.input_ids)
    losses = losses_of(model, batch._replace(i2t=i2t), tensors, OBJECTIVE)
    losses.total.backward()
    assert losses.text == 0
    assert [name for name, p in model.named_parameters() if p.grad is None] == ["null_image_embd"]
    assert model.text_proj_out.weight.grad.abs().max() == 0


class _Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returned."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.size = max(self.size, tensor.numel())
        return out


def test_a_step_never_holds_the_logits_of_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", 4 * 5000)
    model, (batch, tensors) = make_model(vocab_size=5000), make_inputs(2, 20)
    num_masked = int((batch.i2t.noisy_ids == MASK).sum())
    with _Largest() as seen:
        losses_of(model, batch, tensors, OBJECTIVE).total.backward()
    assert num_masked > 40
    assert seen.size == 5000 * 32  # the weights of the head, and its gradient


def test_alignment_is_zero_where_the_tokens_match_and_two_where_they_oppose() -> None:
    features = torch.randn(3, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    tokens = 2 * features.flatten(2).transpose(1, 2)
    assert alignment_loss(torch.nn.Identity(), tokens, features).abs() < 1e-6
    assert (alignment_loss(torch.nn.Identity(), -tokens, features) - 2).abs() < 1e-6


def test_texts_of_two_lengths_pass_the_text_encoder_once() -> None:
    codec, (batch, _) = tiny_text_codec(), make_inputs(i2t_length=4)
    g = torch.Generator().manual_seed(3)
    ids, noisy_ids = (torch.randint(0, 20, shape, generator=g) for shape in ((3, LENGTH), (5, 4)))
    assert batch.t2i is not None
    assert batch.i2t is not None
    batch = batch._replace(
        t2i=batch.t2i._replace(prompt_ids=ids), i2t=batch.i2t._replace(noisy_ids=noisy_ids)
    )
    calls = []
    codec.encoder.register_forward_hook(lambda *_: calls.append(1))
    together = Learner(OBJECTIVE, make_model())._text_states(batch, codec)
    assert len(calls) == 1
    apart = codec.states(ids), codec.states(noisy_ids)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)


def test_null_images_do_not_pass_the_autoencoder(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, sizes = tiny_image_codec(), []
    encode = codec.encode_distribution
    monkeypatch.setattr(codec, "encode_distribution", lambda x: (sizes.append(len(x)), encode(x))[1])
    pixels = torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8)
    is_null = torch.tensor([False, True, False, True])
    found = clean_latents(Images(pixels, None, None, None, is_null), codec)
    assert clean_latents(Images(pixels, None, None, None, ~is_null | is_null), codec).abs().sum() == 0
    assert sizes == [2]
    whole = clean_latents(Images(pixels, None, None, None), codec)
    torch.testing.assert_close(found[~is_null], whole[~is_null], rtol=1e-5, atol=1e-5)
    assert found[is_null].abs().sum() == 0


def cut_to(i2t: I2TBatch, lengths: list[int]) -> I2TBatch:
    """Texts that have padding up to these lengths, and nothing beyond."""
    of_rows = torch.tensor(lengths)
    within = torch.arange(i2t.input_ids.shape[1]) < of_rows[:, None]
    return i2t._replace(answer_mask=i2t.answer_mask & within, lengths=of_rows)


@pytest.mark.parametrize("nulls", [[], [1, 4]])
@pytest.mark.parametrize("normalizer", ["answer", "all"])
def test_texts_of_several_lengths_have_the_loss_and_gradient_of_each_alone(
    normalizer: str, nulls: list[int]
) -> None:
    model, (batch, tensors) = make_model(image_attends_text=False), make_inputs(i2t_length=9)
    lengths, is_null = [9, 4, 6, 4, 9], torch.zeros(5, dtype=torch.bool)
    is_null[nulls] = True
    assert batch.i2t is not None
    i2t = cut_to(batch.i2t, lengths)._replace(images=NO_IMAGES._replace(is_null=is_null))
    cfg = dataclasses.replace(OBJECTIVE, text=MaskedConfig(normalizer=normalizer))  # type: ignore[arg-type]
    together = losses_of(model, batch._replace(i2t=i2t), tensors, cfg)
    expected = []
    for row, length in enumerate(lengths):
        own = i2t.cut(slice(row, row + 1), length)
        own = own._replace(images=NO_IMAGES._replace(is_null=is_null[row : row + 1]))
        alone = losses_of(
            model,
            Batch(None, own, {}),
            [None, tensors[1][row : row + 1], None, tensors[3][row : row + 1, :length]],
            cfg,
        )  # type: ignore[list-item]
        assert alone.text is not None
        expected.append(alone.text * (length / 9 if normalizer == "all" else 1))
    expected = torch.stack(expected).mean()
    assert together.text is not None
    torch.testing.assert_close(together.text, expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(gradients_of(model, together.text), gradients_of(model, expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
