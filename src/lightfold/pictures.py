"""Pictures that people look at: colours for depth, normals and errors, captions, tiles, and files written whole.

Tensors come in as the renderer makes them ([H, W, 3] in [0, 1], depth [H, W] in scene units, ...); what leaves is
[H, W, 3] uint8 on the CPU, or a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

from .files import whole_file

PAPER = (250, 250, 248)
INK = (34, 34, 34)
CAPTION_HEIGHT = 22
GAP = 4


def to_uint8(rgb: Tensor) -> np.ndarray:
    """[H, W, 3] in [0, 1] -> uint8, rounded to the nearest level. What is not finite becomes black."""
    finite = torch.nan_to_num(rgb.detach().float(), nan=0.0, posinf=1.0, neginf=0.0)
    return finite.clamp(0, 1).mul(255).add(0.5).to(torch.uint8).cpu().numpy()


def quantised(rgb: Tensor) -> Tensor:
    """The picture as an 8-bit file would give it back: 256 levels in [0, 1], float32."""
    return torch.from_numpy(to_uint8(rgb)).float() / 255


# --- colours --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def colour_table() -> np.ndarray:
    """256 colours [256, 3] uint8 from a dark blue to a light yellow.

    A path in OKLCh (Ottosson 2020): lightness grows evenly, so equal steps in the data look equal and the map survives
    a grey printer; the hue turns from blue through magenta and orange to yellow, and the chroma stays inside sRGB.
    """
    u = np.linspace(0.0, 1.0, 256)
    lightness = 0.16 + 0.78 * u
    hue = np.deg2rad(-95.0 + 200.0 * u)
    chroma = 0.055 + 0.125 * np.sin(np.pi * np.clip(0.12 + 0.80 * u, 0, 1)) ** 1.2
    # The widest chroma that sRGB can show at this lightness and hue, by bisection: clipping would shift the hue.
    low, high = np.zeros_like(u), chroma
    for _ in range(20):
        middle = 0.5 * (low + high)
        linear = _linear_from_oklch(lightness, middle, hue)
        fits = ((linear >= 0) & (linear <= 1)).all(axis=1)
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    linear = np.clip(_linear_from_oklch(lightness, low, hue), 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255 * srgb).astype(np.uint8)


def colour_map(value: Tensor) -> np.ndarray:
    """[H, W] in [0, 1] (clamped; NaN is 0) -> [H, W, 3] uint8, 0 dark blue, 1 light yellow."""
    index = torch.nan_to_num(value.detach().float(), nan=0.0).clamp(0, 1).mul(255).add(0.5).long().cpu().numpy()
    return colour_table()[index]


def depth_range(depth: Tensor, alpha: Tensor) -> tuple[float, float]:
    """Depths between which nearly all of what was hit lies: the 1st and 99th percentile where alpha > 0.5.

    (0, 0) when nothing was hit. Percentiles, because one floater at the lens would otherwise take half of the colours.
    """
    hit = depth[(alpha > 0.5) & torch.isfinite(depth) & (depth > 0)].flatten()
    if hit.numel() == 0:
        return 0.0, 0.0
    ordered = hit.float().sort().values
    last = ordered.numel() - 1
    return float(ordered[round(0.01 * last)]), float(ordered[round(0.99 * last)])


def depth_colours(depth: Tensor, alpha: Tensor, limits: tuple[float, float] | None = None) -> np.ndarray:
    """Depth [H, W] as colours, near light and far dark, faded to black where alpha is low. [H, W, 3] uint8.

    The scale is linear in 1/depth, as stereo and the eye have it, so an unbounded background does not flatten what is
    close. `limits` are the nearest and farthest depth; a video passes the same for all its frames, else it flickers.
    """
    near, far = depth_range(depth, alpha) if limits is None else limits
    if near <= 0 or far <= 0:
        return np.zeros((*depth.shape, 3), dtype=np.uint8)
    span = max(1 / near - 1 / far, 1e-6 / near)
    closeness = (1 / depth.clamp(min=1e-9) - 1 / far) / span
    shown = colour_map(closeness.where(depth > 0, torch.zeros_like(depth)))
    return _faded(shown, alpha)


def normal_colours(normal: Tensor, alpha: Tensor | None = None) -> np.ndarray:
    """Unit normals [H, W, 3] as colours, (n + 1) / 2 per axis; grey where unknown, faded to black by alpha."""
    shown = to_uint8(0.5 * normal + 0.5)
    return shown if alpha is None else _faded(shown, alpha)


def alpha_colours(alpha: Tensor) -> np.ndarray:
    """Opacity [H, W] as grey levels [H, W, 3] uint8."""
    return to_uint8(alpha[..., None].expand(*alpha.shape, 3))


def error_colours(pred: Tensor, true: Tensor, largest: float = 0.25) -> np.ndarray:
    """Mean absolute difference of the channels as colours [H, W, 3] uint8: dark none, light `largest` or more.

    The scale is fixed, so that the pictures of two views, or of two methods, can be compared.
    """
    return colour_map((pred - true).abs().mean(dim=-1) / largest)


def _faded(colours: np.ndarray, alpha: Tensor) -> np.ndarray:
    opacity = torch.nan_to_num(alpha.detach().float(), nan=0.0).clamp(0, 1).cpu().numpy()[..., None]
    return np.round(colours * opacity).astype(np.uint8)


def _linear_from_oklch(lightness: np.ndarray, chroma: np.ndarray, hue: np.ndarray) -> np.ndarray:
    """OKLCh -> linear sRGB [N, 3], by the two matrices of Ottosson's definition."""
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
    cone_from_lab = np.array(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
    )
    rgb_from_cone = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    return (lab @ cone_from_lab.T) ** 3 @ rgb_from_cone.T


# --- arranging ------------------------------------------------------------------------------------------------------


def captioned(picture: np.ndarray, text: str) -> np.ndarray:
    """The picture [H, W, 3] with a line of text above it. Text that is too long is cut with an ellipsis."""
    height, width = picture.shape[:2]
    canvas = PillowImage.new("RGB", (width, height + CAPTION_HEIGHT), PAPER)
    canvas.paste(PillowImage.fromarray(picture), (0, CAPTION_HEIGHT))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(13)
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    shown = line
    while shown and draw.textlength(shown, font=font) > width - 8:
        line = line[:-1]
        shown = line + "…" if line else ""
    draw.text((4, 3), shown, fill=INK, font=font)
    return np.asarray(canvas)


def tiled(pictures: Sequence[np.ndarray], columns: int | None = None) -> np.ndarray:
    """Pictures of equal size in a row, or in rows of `columns`, with a thin gap between them."""
    if not pictures:
        raise ValueError("pictures: expected at least one, got none")
    height, width = pictures[0].shape[:2]
    for picture in pictures:
        if picture.shape != (height, width, 3) or picture.dtype != np.uint8:
            raise ValueError(f"pictures: expected uint8 ({height}, {width}, 3), got {picture.dtype} {picture.shape}")
    columns = len(pictures) if columns is None else columns
    if columns < 1:
        raise ValueError(f"columns: expected at least 1, got {columns}")
    rows = -(-len(pictures) // columns)
    columns = min(columns, len(pictures))
    canvas = np.empty((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), dtype=np.uint8)
    canvas[:] = PAPER
    for i, picture in enumerate(pictures):
        top, left = (i // columns) * (height + GAP), (i % columns) * (width + GAP)
        canvas[top : top + height, left : left + width] = picture
    return canvas


# --- files ----------------------------------------------------------------------------------------------------------


def safe_name(name: str) -> str:
    """A file name made of a view's name: letters, digits, '.', '-' and '_' only, no folder, never empty or hidden."""
    head, _, suffix = name.rpartition(".")
    stem = head if head and "/" not in suffix else name
    stem = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in stem)
    return stem.strip(".")[-80:] or "view"


def save_picture(path: Path, picture: np.ndarray | Tensor, quality: int = 92) -> None:
    """Write [H, W, 3] uint8 (or a float tensor in [0, 1]) as PNG or JPEG, by the suffix, whole or not at all."""
    pixels = to_uint8(picture) if isinstance(picture, Tensor) else picture
    kinds = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"path: expected a name that ends in .png, .jpg or .jpeg, got {path.name!r}")
    options = {"quality": quality, "subsampling": 0} if kind == "JPEG" else {"compress_level": 4}
    with whole_file(path) as partial:
        PillowImage.fromarray(pixels).save(partial, format=kind, **options)


def save_depth(path: Path, depth: Tensor, unit: float = 0.001) -> int:
    """Write depth [H, W] without loss of meaning: float32 .npy as it is, or a 16-bit .png in steps of `unit`.

    0 means "nothing there" in both. A PNG holds at most 65535 steps; farther depth is stored as 65535, and the number
    of such pixels is returned (0 for .npy). The step is written into the PNG as the text entry "depth_unit".
    """
    values = torch.nan_to_num(depth.detach().float(), nan=0.0, posinf=0.0, neginf=0.0).clamp(min=0).cpu().numpy()
    if path.suffix.lower() == ".npy":
        with whole_file(path) as partial, partial.open("wb") as file:
            np.save(file, values, allow_pickle=False)
        return 0
    if path.suffix.lower() != ".png":
        raise ValueError(f"path: expected a name that ends in .png or .npy, got {path.name!r}")
    if not unit > 0:
        raise ValueError(f"unit: expected a positive step, got {unit}")
    steps = np.round(values.astype(np.float64) / unit)
    note = PngImagePlugin.PngInfo()
    note.add_text("depth_unit", repr(float(unit)))
    picture = PillowImage.fromarray(np.minimum(steps, 65535).astype(np.uint16))
    with whole_file(path) as partial:
        picture.save(partial, format="PNG", pnginfo=note)
    return int((steps > 65535).sum())
