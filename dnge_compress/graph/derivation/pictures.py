"""Pictures in a text: how a model takes them, and the tokens that stand for them there."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

PIXELS, GRID, SIZES, TYPES = "pixel_values", "image_grid_thw", "image_sizes", "mm_token_type_ids"
TOKENS = ("image_token_id", "image_token_index")
FRAMES = (("vision_start_token", "vision_end_token"), ("boi_token", "eoi_token"))
CHANNELS = ("num_channels", "in_channels", "in_chans")
SIDE = 8  # patches along each side, where a model takes pictures of any size
ASKED = 2  # pictures that are shown to find out how many tokens stand for one
# Tiles that a picture is passed in (0: it is passed as it is), and whether its size is.
WAYS = ((0, False), (0, True), (1, False), (3, True), (5, True))


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """How a model takes pictures of `shape` `(C, H, W)`, one to a text, in which `tokens` stand for each.

    Models that take any size read a list of patches, `patch` pixels wide, the same `frames` times, in squares of
    `merged` by `merged`; `patch` is 0 for others.
    """

    shape: tuple[int, int, int]
    token: int
    tokens: tuple[int, ...] = ()
    tiles: int = 0
    has_sizes: bool = False
    patch: int = 0
    frames: int = 1
    merged: int = 1

    def passed(self, pictures: Tensor) -> dict[str, Tensor]:
        """The arguments that carry pictures `[N, C, H, W]`."""
        height, width = pictures.shape[-2:]
        if self.patch:
            grid = torch.tensor([1, height // self.patch, width // self.patch])
            return {PIXELS: self._in_patches(pictures), GRID: grid.expand(len(pictures), 3).contiguous()}
        sizes = {SIZES: torch.tensor([height, width]).expand(len(pictures), 2).contiguous()} if self.has_sizes else {}
        tiled = pictures[:, None].expand(-1, self.tiles, -1, -1, -1).contiguous() if self.tiles else pictures
        return {PIXELS: tiled, **sizes}

    def _in_patches(self, pictures: Tensor) -> Tensor:
        """Rows of `C · frames · patch²` numbers, picture by picture, patches that are merged next to each other."""
        n, channels, height, width = pictures.shape
        side = self.patch * self.merged
        split = pictures.view(n, channels, height // side, self.merged, self.patch, width // side, self.merged, -1)
        rows = split.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(0, 4)  # [patches, C, patch, patch]
        return rows[:, :, None].expand(-1, -1, self.frames, -1, -1).flatten(1)

    def in_text(self, model: nn.Module, ids: Tensor, pictures: Tensor, at: int = 0) -> dict[str, Tensor]:
        """Inputs of texts `[N, T]` with a picture each behind the first `at` tokens."""
        shown = torch.tensor(self.tokens).expand(len(ids), -1)
        whole = torch.cat([ids[:, :at], shown, ids[:, at:]], 1)
        made = {"input_ids": whole, "attention_mask": torch.ones_like(whole), **self.passed(pictures)}
        if TYPES in inspect.signature(model.forward).parameters:
            made[TYPES] = (whole == self.token).int()
        return made


def picture_token(model: Any) -> int | None:
    """The token that stands for pictures in the text a model reads; None where pictures don't stand in a text."""
    takes = inspect.signature(model.forward).parameters
    if not {"input_ids", PIXELS} <= takes.keys() or not hasattr(model, "get_image_features"):
        return None
    return next((t for name in TOKENS if type(t := getattr(model.config, name, None)) is int), None)


@torch.no_grad()
def pictures_of(model: Any, side: int = SIDE) -> Pictures | None:
    """How a model takes pictures, found by showing it some; None if it takes none, or none that was tried.

    Where it takes any size, pictures have about `side` patches along each side. The model should be in eval mode.
    """
    token = picture_token(model)
    if token is None:
        return None
    like = next(p for p in model.parameters() if p.is_floating_point())
    for way in _ways(model, token, side):
        noise = torch.randn(ASKED, *way.shape, generator=torch.Generator().manual_seed(1))
        count = _tokens_for(model, way.passed(noise.to(like.device, like.dtype)))
        if count:
            return replace(way, tokens=_framed(model.config, token, count))
    return None


def _ways(model: Any, token: int, side: int) -> Iterator[Pictures]:
    takes = inspect.signature(model.forward).parameters
    vision = getattr(model.config, "vision_config", None)
    if vision is None:
        return
    channels = next((n for name in CHANNELS if type(n := getattr(vision, name, None)) is int), 3)
    patch = getattr(vision, "patch_size", None)
    if GRID in takes:
        if type(patch) is int:
            merged = getattr(vision, "spatial_merge_size", 1)
            window = (getattr(vision, "window_size", None) or 0) // patch  # two windows, so that they can be told apart
            pixels = patch * merged * -(-max(side, window + merged) // merged)
            frames = getattr(vision, "temporal_patch_size", 1)
            shape = (channels, pixels, pixels)
            yield Pictures(shape=shape, token=token, patch=patch, frames=frames, merged=merged)
        return
    size = getattr(vision, "image_size", None)
    height, width = (size, size) if type(size) is int else size if isinstance(size, list | tuple) else (0, 0)
    for tiles, has_sizes in WAYS if height else ():
        if not has_sizes or SIZES in takes:
            yield Pictures(shape=(channels, height, width), token=token, tiles=tiles, has_sizes=has_sizes)


def _tokens_for(model: Any, passed: dict[str, Tensor]) -> int:
    """How many vectors a model makes of each picture; 0 if it doesn't take them so."""
    takes = inspect.signature(model.get_image_features).parameters
    try:
        made = model.get_image_features(**{n: t.to(passed[PIXELS].device) for n, t in passed.items() if n in takes})
        found = made if isinstance(made, Tensor | list | tuple) else made.pooler_output
        vectors = [found] if isinstance(found, Tensor) else list(found)
        count, rest = divmod(sum(t.numel() // t.shape[-1] for t in vectors), ASKED)
    except Exception:  # whatever a model raises about pictures is the answer "not so"
        return 0
    return 0 if rest else count


def _framed(config: Any, token: int, count: int) -> tuple[int, ...]:
    """The tokens of one picture, between those that say where it begins and ends."""
    for names in FRAMES:
        for end in ("_id", "_index"):
            first, last = (getattr(config, name + end, None) for name in names)
            if type(first) is int and type(last) is int:
                return (first, *[token] * count, last)
    return (token,) * count
