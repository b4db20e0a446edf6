import math

import pytest
import torch
from ipvae.data import Feeder, JitterFeeder, RotationFeeder, SequenceFeeder
from ipvae.data.feeders import BLOCK
from torch import Tensor

STEPS = BLOCK + 60  # across a block of the walk


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 2, 7, 9, generator=torch.Generator().manual_seed(0))


def feeder(kind: str, images: Tensor) -> Feeder:
    if kind == "sequence":
        return SequenceFeeder(torch.randn(STEPS, 3, 126, generator=torch.Generator().manual_seed(1)))
    if kind == "rotation":
        return RotationFeeder(images, 7.3, start_degrees=11.0)
    return JitterFeeder(images, seed=5, window=(4, 5) if kind == "window" else None)


KINDS = ("jitter", "window", "rotation", "sequence")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 7, BLOCK, 1000])
def test_frames_do_not_depend_on_chunks(images: Tensor, kind: str, size: int) -> None:
    whole = feeder(kind, images).frames(0, STEPS)
    assert whole.shape == (STEPS, 3, 40 if kind == "window" else 126)
    assert whole.dtype == torch.float32
    steps = STEPS if size > 1 else 40
    chunks = list(feeder(kind, images).chunks(steps, size))
    assert all(len(chunk) <= size for chunk in chunks)
    assert torch.equal(torch.cat(chunks), whole[:steps])


@pytest.mark.parametrize("kind", KINDS)
def test_frames_in_any_order(images: Tensor, kind: str) -> None:
    one = feeder(kind, images)
    late, early = one.frames(BLOCK - 3, STEPS), one.frames(2, 5)
    whole = feeder(kind, images).frames(0, STEPS)
    assert torch.equal(late, whole[BLOCK - 3 :])
    assert torch.equal(early, whole[2:5])


@pytest.mark.parametrize("kind", KINDS)
def test_bad_ranges(images: Tensor, kind: str) -> None:
    one = feeder(kind, images)
    for start, stop in ((-1, 2), (3, 2), (4, 4)):
        with pytest.raises(IndexError, match="start, stop"):
            one.frames(start, stop)
    with pytest.raises(ValueError, match="size"):
        one.chunks(5, 0)
    if kind == "sequence":
        with pytest.raises(IndexError, match=f"<= {STEPS}"):
            one.frames(0, STEPS + 1)


def test_jitter_depends_on_seed_and_global_sample(images: Tensor) -> None:
    whole = JitterFeeder(images, seed=-1).frames(0, 20)
    assert not torch.equal(whole, JitterFeeder(images, seed=2).frames(0, 20))
    last = JitterFeeder(images[2:], seed=-1, sample_offset=2).frames(0, 20)
    torch.testing.assert_close(last[:, 0], whole[:, 2])
    gaze = JitterFeeder(images, seed=0).gaze(0, 20)
    assert not torch.equal(gaze[:, 0], gaze[:, 1])


def test_jitter_is_an_ornstein_uhlenbeck_walk() -> None:
    images = torch.zeros(500, 1, 1, 1)
    gaze = JitterFeeder(images, diffusion=0.6, harmonic=0.03, seed=1).gaze(0, 700)
    moves = gaze[1:] - 0.97 * gaze[:-1]
    assert float(moves.var()) == pytest.approx(0.6, rel=0.01)
    assert float(moves.mean().abs()) < 0.005
    assert float((moves[1:] * moves[:-1]).mean().abs()) < 0.005  # independent in time
    assert float((moves[..., 0] * moves[..., 1]).mean().abs()) < 0.005  # and of the other axis
    assert float(gaze[300:].var()) == pytest.approx(0.6 / (1 - 0.97**2), rel=0.05)  # stationary
    torch.testing.assert_close(
        gaze[0], moves.new_zeros(500, 2) + gaze[0]
    )  # frame 0: one move from the centre
    assert float(gaze[0].var()) == pytest.approx(0.6, rel=0.15)


def test_jitter_at_rest_shows_the_image(images: Tensor) -> None:
    still = JitterFeeder(images, diffusion=0.0).frames(0, 3)
    torch.testing.assert_close(still, images.flatten(1).expand(3, -1, -1), rtol=0, atol=1e-5)
    centre = JitterFeeder(images, diffusion=0.0, window=(3, 5)).frames(0, 1)
    torch.testing.assert_close(centre[0], images[:, :, 2:5, 2:7].flatten(1), rtol=0, atol=1e-5)


def shifted(image: Tensor, dx: float, dy: float) -> Tensor:
    """The image [H, W] seen (dx, dy) further right and down: bilinear, zeros outside, by definition."""
    height, width = image.shape
    out = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            y, x = row + dy, column + dx
            for v in (math.floor(y), math.floor(y) + 1):
                for u in (math.floor(x), math.floor(x) + 1):
                    if 0 <= v < height and 0 <= u < width:
                        out[row, column] += (1 - abs(y - v)) * (1 - abs(x - u)) * image[v, u]
    return out


def test_jitter_shifts_by_the_gaze(images: Tensor) -> None:
    one = JitterFeeder(images, seed=3)
    gaze, frames = one.gaze(0, 12), one.frames(0, 12).view(12, 3, 2, 7, 9)
    for t in (0, 5, 11):
        for b in range(3):
            expected = shifted(images[b, 1], *gaze[t, b].tolist())
            torch.testing.assert_close(frames[t, b, 1], expected, rtol=1e-4, atol=1e-5)


def test_window_stays_in_the_image() -> None:
    ones = torch.ones(4, 1, 12, 10)
    one = JitterFeeder(ones, diffusion=4.0, window=(8, 8), seed=0)
    torch.testing.assert_close(one.frames(0, 50), torch.ones(50, 4, 64), rtol=0, atol=1e-5)
    gaze = one.gaze(0, 50)
    assert gaze[..., 0].abs().max() == 1
    assert gaze[..., 1].abs().max() == 2


def test_rotation_by_quarter_turns() -> None:
    images = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    frames = RotationFeeder(images, 90.0).frames(0, 6).view(6, 2, 6, 6)
    for t in range(6):  # counterclockwise, like torch.rot90
        torch.testing.assert_close(frames[t], torch.rot90(images[:, 0], t, dims=(1, 2)), rtol=0, atol=1e-5)


def test_rotation_by_an_angle() -> None:
    y, x = torch.meshgrid(torch.arange(21.0) - 10, torch.arange(21.0) - 10, indexing="ij")
    angle = math.radians(30)
    bar = (x * math.sin(angle) + y * math.cos(angle)).abs() < 1.5  # y is down: a bar raised by 30 degrees
    flat = (y.abs() < 1.5).float()
    turned = RotationFeeder(flat[None, None], 30.0).frames(1, 2).view(21, 21)
    inside = x.square() + y.square() < 64
    assert float((turned - bar.float())[inside].abs().mean()) < 0.08


def test_long_time_keeps_its_precision(images: Tensor) -> None:
    one = RotationFeeder(images, 8.0)
    torch.testing.assert_close(one.frames(45 * 10**6, 45 * 10**6 + 1), one.frames(0, 1), rtol=0, atol=1e-5)


def test_dtype_follows_the_images(images: Tensor) -> None:
    for one in (RotationFeeder(images.double()), JitterFeeder(images.double())):
        assert one.frames(0, 2).dtype == torch.float64


def test_errors(images: Tensor) -> None:
    for bad in (images[0], images.long(), images[:0]):
        with pytest.raises(ValueError, match="images: expected floating point"):
            RotationFeeder(bad)
        with pytest.raises(ValueError, match="images: expected floating point"):
            JitterFeeder(bad)
    with pytest.raises(ValueError, match="window: expected at most"):
        JitterFeeder(images, window=(8, 9))
    for name, value in (("diffusion", -1.0), ("harmonic", 1.5), ("diffusion", math.nan)):
        with pytest.raises(ValueError, match=f"^{name}: expected a finite number of at least 0.*{value}"):
            JitterFeeder(images, **{name: value})
    with pytest.raises(ValueError, match=r"sequence: expected \[T, B, M\]"):
        SequenceFeeder(images)
