"""Scores on known views: how good a trained method is, with everything that must be known to compare the numbers.

A view is rendered, rounded to 8 bits as a file would be, and compared with the photograph composited over the same
background; each metric is taken per picture and averaged over pictures (the protocol of multinerf and of the published
tables). `eval.json` holds the scores beside that protocol, and one side-by-side picture per view shows where they fail.

Where training refined poses, or learnt each photograph's exposure, held-out photographs still have their own, which
nothing has corrected: the plain score then counts their error too. `refine` fits them first, and says so in the
protocol and in the name of the file, so that neither kind of score can pass for the other.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import pictures
from .errors import ConfigError, LightfoldError
from .files import whole_file
from .geometry import so3_log
from .machine import peak_memory_bytes
from .metrics import LPIPS_SMALLEST_SIDE, WINDOW, Perceptual, lpips_or_reason, psnr, ssim
from .refine import HasColours, ViewFit, refine_view

if TYPE_CHECKING:
    from .cameras import Camera
    from .distributed import World
    from .methods.base import Image, Method
    from .scene import Scene, SceneInfo, View

FORMAT = 1
COLOURS = {"black": (0.0, 0.0, 0.0), "white": (1.0, 1.0, 1.0), "grey": (0.5, 0.5, 0.5)}
REFINE = ("none", "poses", "appearance", "both")
METRICS = ("psnr", "ssim", "lpips", "psnr_pq", "psnr_masked", "ssim_masked")
HDR_COLOURS = "light learnt in PQ; scored as sRGB, where light above white is white; psnr_pq on the codes, not rounded"

Progress = Callable[[int, int], None]
"""Called with (views done, views in all) after every view."""


def evaluate(
    method: Method,
    scene: Scene,
    views: Sequence[int] | str = "test",
    out_dir: Path | str | None = None,
    protocol: dict[str, Any] | None = None,
    *,
    background: str | Sequence[float] | Tensor | None = None,
    lpips: bool | str = False,
    refine: str = "none",
    picture_suffix: str = ".jpg",
    progress: Progress | None = None,
    world: World | None = None,
) -> dict[str, Any]:
    """Render the views, score them against the photographs, and write eval.json and pictures.

    views: "test", "train", "all", "every:K" (every K-th of all), or view indices.
    out_dir: a run's folder. It receives eval.json (for views other than "test": eval_train.json, eval_all.json, ...)
    and a folder of the same name with one picture truth | render | error | depth per view. None writes nothing.
    protocol: entries that the caller adds to the protocol, such as the split and the step of the checkpoint.
    background: "black", "white", "grey", a colour [3] in [0, 1], or None for the scene's own (black if it has none).
    lpips: False, or True for the published tables' VGG, or the name of a network. May fetch its weights.
    refine: "none", or what is fitted to each view before it is scored, with everything else frozen: "poses",
    "appearance" or "both". Such scores are written to eval_refined.json and its like, never to eval.json.
    world: several processes that call this together. Each scores every so-manieth view, and all return the whole.
    Returns what eval.json holds: "mean", "views", "timing" and "protocol". Raises LightfoldError without views.
    """
    indices = select_views(scene.info, views)
    colour = background_colour(scene.info, background)
    with nullcontext() if world is None else world.one_per_machine_first():  # One fetches the network's weights.
        distance = lpips_or_reason("vgg" if lpips is True else lpips) if lpips else "LPIPS was not asked for."
    fit = view_fit(method, refine)
    stem = _stem(views) + ("" if fit is None else "_refined")
    folder = None if out_dir is None else Path(out_dir) / stem
    rows: list[dict[str, Any]] = []
    rank, size = (0, 1) if world is None else (world.rank, world.size)
    for done, index in enumerate(indices[rank::size], start=1):
        view = scene.view(index)
        camera, code = (view.camera, None) if fit is None else refine_view(method, view, colour, fit)
        start = time.perf_counter()
        if fit is not None and isinstance(method, HasColours):
            image = method.render(camera, colour, code=code)
        else:
            image = method.render(camera, colour)
        seconds = time.perf_counter() - start
        row, shown, truth = _scored(image, view, colour, distance, scene.info)
        if fit is not None and fit.pose:
            row |= _fitted(view.camera, camera)
        row |= {"seconds": seconds, "rays_per_second": view.camera.width * view.camera.height / max(seconds, 1e-9)}
        if folder is not None:
            file = folder / f"{index:04d}_{pictures.safe_name(view.name)}{picture_suffix}"
            pictures.save_picture(file, side_by_side(shown, truth, image, row))
            row["picture"] = f"{stem}/{file.name}"
        rows.append(row)
        if progress is not None:
            progress(min(done * size, len(indices)), len(indices))
    if world is not None:
        shares = [json.loads(share) for share in world.gather(json.dumps(rows))]
        rows = [shares[i % size][i // size] for i in range(len(indices))]
    result = {
        "format": FORMAT,
        "mean": mean_scores(rows),
        "timing": _timing(rows, size),
        "protocol": _protocol(scene.info, rows, views, colour, lpips, distance)
        | {"refined": "none" if fit is None else fit.told()}
        | (protocol or {}),
        "views": rows,
    }
    if out_dir is not None and rank == 0:
        with whole_file(Path(out_dir) / f"{stem}.json") as partial:
            partial.write_text(json.dumps(_finite(result), indent=1, allow_nan=False), encoding="utf-8")
    return result


def select_views(info: SceneInfo, views: Sequence[int] | str) -> tuple[int, ...]:
    """Indices of the views that a name or a list of indices stands for; never empty."""
    count = len(info.cameras)
    if not isinstance(views, str):
        wrong = [i for i in views if not 0 <= i < count]
        if wrong or not len(views):
            raise ValueError(f"views: expected indices below {count}, at least one, got {list(views)[:10]}")
        return tuple(int(i) for i in views)
    if views == "test":
        if not info.test:
            raise LightfoldError(
                "No views were held out of the training, so there is nothing to evaluate on; "
                "train with a split such as 'every:8', or evaluate on the training views with 'train'."
            )
        return tuple(info.test)
    if views in ("train", "all"):
        chosen = tuple(info.train) if views == "train" else tuple(range(count))
    elif views.startswith("every:") and views[6:].isdecimal() and int(views[6:]) > 0:
        chosen = tuple(range(0, count, int(views[6:])))
    else:
        raise ConfigError(f"There are no views called '{views}'; known are test, train, all and every:K with K from 1.")
    if not chosen:
        raise LightfoldError(f"The scene has no views of the kind '{views}', so there is nothing to evaluate on.")
    return chosen


def view_fit(method: Method, refine: str) -> ViewFit | None:
    """What "none", "poses", "appearance" or "both" asks of `refine_view`. Raises ConfigError when the method cannot."""
    if refine not in REFINE:
        raise ConfigError(f"refine: expected one of {', '.join(REFINE)}, got '{refine}'.")
    if refine == "none":
        return None
    name = type(method).__name__.lower()
    if not isinstance(method, HasColours):
        raise ConfigError(f"Views cannot be refined with {name}; train with nerfacto for that, or leave --refine out.")
    if refine == "appearance" and method.novel_code() is None:
        raise ConfigError("This run was trained without appearance codes, so there are none to refine.")
    return ViewFit(pose=refine != "appearance", appearance=refine != "poses")


def background_colour(info: SceneInfo, background: str | Sequence[float] | Tensor | None) -> Tensor:
    """The colour [3] over which both the photographs and the renderings are composited."""
    if background is None:
        return torch.tensor(info.background or COLOURS["black"], dtype=torch.float32)
    if isinstance(background, str):
        if background not in COLOURS:
            raise ConfigError(f"There is no background called '{background}'; known are {', '.join(COLOURS)}.")
        return info.coded(torch.tensor(COLOURS[background]))
    colour = torch.as_tensor(background, dtype=torch.float32)
    if colour.shape != (3,) or not bool(((colour >= 0) & (colour <= 1)).all()):
        raise ValueError(f"background: expected three values in [0, 1], got {background}")
    return info.coded(colour)


def composited(rgb: Tensor, alpha: Tensor, background: Tensor) -> Tensor:
    """Straight (not premultiplied) colour [H, W, 3] with alpha [H, W] over a colour [3]."""
    return rgb * alpha[..., None] + background * (1 - alpha[..., None])


def mean_scores(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Mean over the pictures that have each score; None where none has.

    If any view has a mask, every view enters the masked means, those without one with their plain score.
    """
    means: dict[str, float | None] = {}
    masked = any(row["masked"] for row in rows)
    for key in METRICS:
        if (key.endswith("_masked") and not masked) or (key == "psnr_pq" and all(key not in row for row in rows)):
            continue
        plain = key.removesuffix("_masked")
        values = [row[key] if row["masked"] or key == plain else row[plain] for row in rows if plain in row]
        known = [value for value in values if value is not None and math.isfinite(value)]
        means[key] = statistics.fmean(known) if known else None
    return means


def side_by_side(shown: Tensor, truth: Tensor, image: Image, row: dict[str, Any]) -> np.ndarray:
    """truth | render | error | depth with captions, as uint8 [H', W', 3]; stacked two by two when the view is wide."""
    score = "" if row["psnr"] is None else f" {row['psnr']:.2f} dB"
    tiles = [
        pictures.captioned(pictures.to_uint8(truth), f"truth: {row['name']}"),
        pictures.captioned(pictures.to_uint8(shown), f"render{score}"),
        pictures.captioned(pictures.error_colours(shown, truth), "error, light from 0.25"),
        pictures.captioned(pictures.depth_colours(image.depth, image.alpha), "depth, near is light"),
    ]
    height, width = truth.shape[:2]
    return pictures.tiled(tiles, columns=2 if width > 1.5 * height else 4)


def _scored(
    image: Image, view: View, colour: Tensor, distance: Perceptual | str, info: SceneInfo
) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Scores of one view, with the two 8-bit pictures that were compared."""
    broken = int((~torch.isfinite(image.rgb)).any(dim=-1).sum())
    wanted = composited(view.rgb, view.alpha, colour)
    shown, truth = pictures.quantised(info.shown(image.rgb)), pictures.quantised(info.shown(wanted))
    mask = view.mask
    masked = not bool(mask.all())
    large_enough = min(truth.shape[:2]) >= WINDOW
    row: dict[str, Any] = {
        "name": view.name,
        "index": view.index,
        "width": view.camera.width,
        "height": view.camera.height,
        "psnr": psnr(shown, truth),
        "ssim": ssim(shown, truth) if large_enough else None,
        "masked": masked,
    }
    if not isinstance(distance, str):
        row["lpips"] = distance(shown, truth) if min(truth.shape[:2]) >= LPIPS_SMALLEST_SIDE else None
    if masked:
        margin = WINDOW // 2
        row["psnr_masked"] = psnr(shown, truth, mask) if bool(mask.any()) else None
        inner = large_enough and bool(mask[margin:-margin, margin:-margin].any())
        row["ssim_masked"] = ssim(shown, truth, mask) if inner else None
    if info.hdr_exposure is not None:
        row["psnr_pq"] = psnr(image.rgb, wanted, mask if masked and bool(mask.any()) else None)
    if broken:
        row["pixels_not_finite"] = broken
    return row, shown, truth


def _fitted(given: Camera, refined: Camera) -> dict[str, float]:
    """How far a view's pose moved from where it was given, in degrees and scene units."""
    turn = so3_log(refined.cam_from_world[:, :3].double() @ given.cam_from_world[:, :3].double().mT).norm()
    return {
        "refined_degrees": math.degrees(float(turn)),
        "refined_shift": float((refined.center.double() - given.center.double()).norm()),
    }


def _timing(rows: Sequence[dict[str, Any]], processes: int) -> dict[str, Any]:
    """Of one process: seconds per view and rays per second do not depend on how many of them shared the views."""
    seconds = [row["seconds"] for row in rows]
    rays = sum(row["width"] * row["height"] for row in rows)
    return {
        "seconds_per_view": statistics.fmean(seconds),
        "seconds_per_view_median": statistics.median(seconds),
        "rays_per_second": rays / max(sum(seconds), 1e-9),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "peak_memory_bytes": peak_memory_bytes(),
    }


def _protocol(
    info: SceneInfo,
    rows: Sequence[dict[str, Any]],
    views: Sequence[int] | str,
    colour: Tensor,
    lpips: bool | str,
    distance: Perceptual | str,
) -> dict[str, Any]:
    sizes = sorted({(row["width"], row["height"]) for row in rows})
    train = set(info.train)
    trained_on = sum(row["index"] in train for row in rows)
    net = "vgg" if lpips is True else lpips
    return {
        "views": views if isinstance(views, str) else "chosen by index",
        "view_count": len(rows),
        "of_them_trained_on": trained_on,
        "training_views": len(info.train),
        "resolution": [f"{width}x{height}" for width, height in sizes],
        "background": [round(value, 6) for value in colour.tolist()],
        "truth_has_alpha": info.has_alpha,
        "8-bit quantised": True,
        "colour_space": "sRGB" if info.hdr_exposure is None else HDR_COLOURS,
        "averaging": "each metric per picture, then the mean over pictures",
        "psnr": "peak 1, mean squared error over pixels and channels, at most 100 dB",
        "ssim": "Gaussian window 11x11, sigma 1.5, valid windows only, mean over channels",
        "masked": "pixels of the mask; for SSIM windows centred in it",
        "lpips": distance if isinstance(distance, str) else f"{net}, version 0.1, pictures scaled to [-1, 1]",
    }


def _stem(views: Sequence[int] | str) -> str:
    """eval for the held-out views, so that a score on training views never replaces theirs."""
    if views == "test":
        return "eval"
    return f"eval_{views.replace(':', '_')}" if isinstance(views, str) else "eval_chosen"


def _finite(value: Any) -> Any:
    """JSON has no NaN; a score that is not a number is written as null."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
