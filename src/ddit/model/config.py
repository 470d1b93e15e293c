"""Sizes and switches of the transformer. Nothing here needs torch."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from ddit.schema import strict
from ddit.settings import PositiveInt

TextInput = Literal["encoder", "embeddings"]
SWITCHES = ("image_attends_text", "text_block_size", "text_input")
"""Fields to which no weight belongs: a trained model is converted by a short training with another value."""


@strict
class DualDiTConfig:
    """Sizes and switches of a `DualDiT`; the defaults are SD3-medium's.

    Attributes:
        in_channels: channels of the latents.
        patch_size: side of the square patch of latents that makes one image token.
        hidden_size: D, the same in both streams.
        depth: number of joint blocks.
        num_heads: attention heads of hidden_size / num_heads each.
        text_dim: width of the text encoder's states.
        vocab_size: rows of the text head.
        sample_size: side of the latents (not tokens) at which the position embedding has unit spacing.
        pos_embed_max_size: side of the position table, in tokens; an image uses its central crop.
        qk_norm: None (SD3) or "rms_norm" (SD3.5), on queries and keys of both streams.
        dual_attention_layers: blocks with a second attention of the image stream to itself (SD3.5-medium).
        image_attends_text: True is the paper. False: in i2t, image tokens see image tokens only, so that the image
            side can be computed once and cached exactly.
        text_block_size: 0 is the paper. k: in i2t, an answer is written in blocks of k tokens, left to right. A token
            sees the image, what is given, and the blocks up to its own, so that finished blocks are computed once and
            cached exactly (`text_blocks`). Needs `image_attends_text=False`.
        text_input: what the text stream is fed in i2t: "encoder" is the paper, the text encoder's states; "embeddings"
            are those of its table, with their positions, so that no step runs the encoder.
        stem: channels of the stages of a convolutional stem, whose tokens are added to the linear patches; between two
            stages the side is halved, so that patch_size is a multiple of 2^(stages - 1). (): none, as in SD3. For
            images of a few dozen pixels, where one token is a large part of what there is to see.
        refiner: channels of convolutions that correct the velocity at the resolution of the latents, from these and
            from what the tokens hand on. 0: none, as in SD3. For coarse tokens, to which a shift is a new pattern.
    """

    in_channels: PositiveInt = 16
    patch_size: PositiveInt = 2
    hidden_size: PositiveInt = 1536
    depth: PositiveInt = 24
    num_heads: PositiveInt = 24
    text_dim: PositiveInt = 4096
    vocab_size: PositiveInt = 32100
    sample_size: PositiveInt = 128
    pos_embed_max_size: PositiveInt = 192
    qk_norm: Literal["rms_norm"] | None = None
    dual_attention_layers: Annotated[tuple[int, ...], Field(strict=False)] = ()
    image_attends_text: bool = True
    text_block_size: NonNegativeInt = 0
    text_input: TextInput = "encoder"
    stem: Annotated[tuple[PositiveInt, ...], Field(strict=False)] = ()
    refiner: NonNegativeInt = 0

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )
        if self.hidden_size % 4:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of 4 (position embedding)")
        if self.stem and self.patch_size % 2 ** (len(self.stem) - 1):
            raise ValueError(
                f"patch_size {self.patch_size} is not a multiple of {2 ** (len(self.stem) - 1)}, by which a stem of "
                f"{len(self.stem)} stages divides the side"
            )
        if any(not 0 <= layer < self.depth for layer in self.dual_attention_layers):
            raise ValueError(f"dual_attention_layers {self.dual_attention_layers} exceed depth {self.depth}")
        if self.text_block_size and self.image_attends_text:
            raise ValueError(
                f"text_block_size {self.text_block_size} needs image_attends_text=False: an image side that sees the "
                "whole text shows every block the later ones"
            )
