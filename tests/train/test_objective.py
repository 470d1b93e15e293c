from dataclasses import replace

import torch

from ddit.config import DualRun
from ddit.train.loop import Trainer
from ddit.train.objective import alignment_loss, draw_noise, step_losses


def test_one_joint_forward_has_the_gradient_of_two_separate_passes(joint: DualRun) -> None:
    trainer = Trainer(replace(joint, objective=replace(joint.objective, lambda_text=0.3)))
    model, cfg = trainer.learner.transformer, trainer.cfg.objective
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():  # no zero-initialised path
        parameter.data.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    batch, mask_id = trainer.batches(0), trainer.codec.mask_token_id
    noise = draw_noise(batch, cfg, mask_token_id=mask_id, generator=generator)
    states = trainer.codec.states(torch.cat([batch.prompt_ids, noise.noisy_ids]))
    head, n = trainer.learner.alignment_head, len(batch.prompt_ids)

    def gradients(losses) -> list[torch.Tensor]:
        model.zero_grad()
        losses.total.backward()
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]

    arguments = {"mask_token_id": mask_id, "alignment_head": head}
    joint_losses = step_losses(model, batch, noise, states, cfg, **arguments)
    together = gradients(joint_losses)
    draw = batch._replace(
        latents=batch.latents[:n], read_ids=batch.read_ids[:0], answer_mask=batch.answer_mask[:0]
    )
    draw_losses = step_losses(
        model, draw, noise._replace(noisy_ids=noise.noisy_ids[:0]), states[:n], cfg, **arguments
    )
    drawn = gradients(draw_losses)
    read = batch._replace(latents=batch.latents[n:], prompt_ids=batch.prompt_ids[:0])
    still = noise._replace(image_t=noise.image_t[:0], image_noise=noise.image_noise[:0])
    read_losses = step_losses(model, read, still, states[n:], cfg, **arguments)
    torch.testing.assert_close(
        joint_losses.total, draw_losses.total + read_losses.total, rtol=1e-5, atol=1e-5
    )
    for one, a, b in zip(together, drawn, gradients(read_losses), strict=True):
        torch.testing.assert_close(one, a + b, rtol=1e-5, atol=1e-5)


def test_alignment_is_zero_where_the_tokens_match_and_two_where_they_oppose() -> None:
    features = torch.randn(3, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    tokens = 2 * features.flatten(2).transpose(1, 2)
    assert alignment_loss(torch.nn.Identity(), tokens, features).abs() < 1e-6
    assert (alignment_loss(torch.nn.Identity(), -tokens, features) - 2).abs() < 1e-6
