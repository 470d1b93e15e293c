"""Masked modelling of the tiny T5: what its loss is made of."""

import pytest
import torch
import torch.nn.functional as F
from text_models import word_codec

from ddit.train.small_nets import masked_modelling_loss


@pytest.mark.parametrize("visible_weight", [0.0, 1.0, 2.5])
def test_the_loss_is_that_at_masked_positions_plus_a_share_of_that_at_visible_ones(
    visible_weight: float,
) -> None:
    torch.manual_seed(0)
    codec = word_codec()
    ids = codec.tokenize(["a red dog", "a blue cat left of a red dog"], 12)

    def loss() -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        return masked_modelling_loss(
            codec, ids, padding_weight=0.5, visible_weight=visible_weight, generator=generator
        )

    generator = torch.Generator().manual_seed(3)
    rate = 1 - torch.rand(2, 1, generator=generator)
    is_masked = torch.rand(ids.shape, generator=generator) < rate
    states = codec.states(torch.where(is_masked, codec.mask_token_id, ids))
    embedding = codec.encoder.get_input_embeddings().weight
    nll = F.cross_entropy((states @ embedding.T).flatten(0, 1), ids.flatten(), reduction="none").view(
        ids.shape
    )
    weight = torch.where(ids == codec.eos_token_id, 0.5, 1.0)
    parts = [(weight * nll)[where].sum() / weight[where].sum() for where in (is_masked, ~is_masked)]
    torch.testing.assert_close(loss(), parts[0] + visible_weight * parts[1])
