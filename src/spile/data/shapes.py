"""Drawn pictures of texture x shape x hue; the hue gives the shape away in training and misleads later."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from spile.data.images import Pixels

Floats = NDArray[np.float64]

SIZE = 64
SHAPES = ("disc", "square", "triangle", "star", "cross")
TEXTURES = ("plain", "stripes", "checks", "dots", "grain")
HUES = (0.0, 0.15, 0.35, 0.58, 0.8)
SHORTCUT = 0.95
"""How often a training picture's hue is the one that stands for its shape."""

_SEEDS = {"train": 1, "test": 2}
_SHARPNESS = 4  # shapes are drawn this much larger and averaged down


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture before it is drawn: picture `number` of `split`, and its factors."""

    split: str
    number: int
    shape: str
    texture: str
    hue: float


def scenes(count: int, split: str) -> list[Scene]:
    """`count` scenes: shapes in turn, textures at random, hues by the shortcut or, in "test", random."""
    rng = np.random.default_rng([2026, _SEEDS[split]])
    drawn = []
    for number in range(count):
        shape = number % len(SHAPES)
        follows = split == "train" and rng.random() < SHORTCUT
        hue = shape if follows else int(rng.integers(len(HUES)))
        texture = TEXTURES[int(rng.integers(len(TEXTURES)))]
        drawn.append(Scene(split, number, SHAPES[shape], texture, HUES[hue]))
    return drawn


def draw(scene: Scene) -> Pixels:
    """The scene as uint8 (64, 64, 3): a textured, coloured shape at any place, size and turn, on grey."""
    rng = np.random.default_rng([2026, _SEEDS[scene.split], scene.number])
    mask = _mask(scene.shape, rng)[:, :, None]
    light = _texture(scene.texture, rng)[:, :, None]
    hue = (scene.hue + rng.uniform(-0.02, 0.02)) % 1
    colour = np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.6, 0.9), 1.0))
    ground = rng.uniform(0.3, 0.7) + rng.normal(0, 0.05, (SIZE, SIZE, 1))
    picture = mask * light * colour + (1 - mask) * ground
    pixels: Pixels = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    return pixels


def _mask(shape: str, rng: np.random.Generator) -> Floats:
    """How much of each pixel the shape covers, (64, 64) in 0..1."""
    size = SIZE * _SHARPNESS
    radius = rng.uniform(0.22, 0.4) * size
    centre = rng.uniform(radius, size - radius, 2)
    corners = centre + radius * _turned(_outline(shape), rng.uniform(0, 2 * np.pi))
    canvas = Image.new("L", (size, size))
    ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in corners], fill=255)
    return np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float64) / 255


def _outline(shape: str) -> Floats:
    """Corners (k, 2) on or inside the unit circle."""
    if shape == "cross":
        arm = 0.3
        tip = np.sqrt(1 - arm**2)
        quarter = np.array([[tip, -arm], [tip, arm], [arm, arm]])
        return np.concatenate([_turned(quarter, turn * np.pi / 2) for turn in range(4)])
    corners = {"disc": 48, "square": 4, "triangle": 3, "star": 10}[shape]
    inner = 0.45 if shape == "star" else 1.0
    radii = np.where(np.arange(corners) % 2, inner, 1.0)
    angles = np.arange(corners) * 2 * np.pi / corners
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _turned(points: Floats, angle: float) -> Floats:
    x, y = points.T
    return np.stack([x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)], axis=1)


def _texture(texture: str, rng: np.random.Generator) -> Floats:
    """Brightness (64, 64) in 0.35..1."""
    y, x = np.mgrid[:SIZE, :SIZE] + rng.uniform(0, 8, (2, 1, 1))
    turn, period = rng.uniform(0, np.pi), rng.uniform(6, 9)
    u = (x * np.cos(turn) + y * np.sin(turn)) * 2 * np.pi / period
    v = (y * np.cos(turn) - x * np.sin(turn)) * 2 * np.pi / period
    patterns: dict[str, NDArray[Any]] = {
        "plain": np.full((SIZE, SIZE), 0.5),
        "stripes": np.sin(u) > 0,
        "checks": (np.sin(u) > 0) ^ (np.sin(v) > 0),
        "dots": np.cos(u) + np.cos(v) > 0.8,
        "grain": rng.random((SIZE, SIZE)),
    }
    return 0.35 + 0.65 * patterns[texture].astype(np.float64)
