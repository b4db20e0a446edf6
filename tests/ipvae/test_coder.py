"""`SpikeCoder`: scikit-learn's own checks, images in and out, recipes that do not collapse, bad input."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from ipvae import SpikeCoder, fit
from ipvae.training.outcome import CollapseWarning
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

QUICK = {"max_updates": 3, "t_train": 2, "steps": 2}


@pytest.fixture(scope="module")
def digits() -> Any:
    return load_digits().images  # [1797, 8, 8], 0 to 16


@pytest.fixture(scope="module")
def coder(digits: Any) -> SpikeCoder:
    return SpikeCoder(64, max_updates=150, t_train=8, random_state=1).fit(digits[:1500])


@pytest.mark.filterwarnings("ignore::ipvae.training.outcome.CollapseWarning")
@parametrize_with_checks([SpikeCoder(4, **QUICK)])
def test_checks_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


def test_digits_are_learned_sparsely(coder: SpikeCoder, digits: Any) -> None:
    held = digits[1500:]
    assert coder.score(held) > 0.7
    counts = clone(coder).set_params(output="counts")
    counts.__dict__.update({k: v for k, v in coder.__dict__.items() if k not in ("output",)})
    found = counts.transform(held)
    assert found.dtype == np.float64
    assert np.array_equal(found, found.round())
    assert 0.2 < (found == 0).mean() < 0.95
    images = coder.inverse_transform(coder.transform(held))
    assert images.shape == held.shape
    assert np.square(images - held).mean() < 0.4 * np.square(held - digits[:1500].mean(0)).mean()


@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.float64, np.float16])
def test_images_of_any_type_and_unit(kind: Any, digits: Any) -> None:
    x = (digits[:300] * 15).astype(kind)
    small = {"max_updates": 20, "t_train": 4}
    ours = fit(x, 32, **small)
    assert isinstance(ours, SpikeCoder)
    flat = SpikeCoder(32, **small).fit(x.reshape(300, 64))
    channels = SpikeCoder(32, **small).fit(x.reshape(300, 1, 8, 8))
    codes = [c.transform(v) for c, v in ((ours, x), (flat, x.reshape(300, 64)), (channels, x[:, None]))]
    assert np.array_equal(codes[0], codes[1])
    assert np.array_equal(codes[0], codes[2])
    assert codes[0].dtype == (kind if kind in (np.float32, np.float64) else np.float32)
    assert channels.inverse_transform(codes[2]).shape == (300, 1, 8, 8)
    unit = fit(x.astype(np.float64) / 255 + 3, 32, **small)
    assert abs(unit.score(x.astype(np.float64) / 255 + 3) - ours.score(x)) < 0.05


def test_it_is_a_step_of_a_pipeline(digits: Any) -> None:
    labels = load_digits().target
    steps = make_pipeline(SpikeCoder(64, max_updates=150, t_train=8), LogisticRegression(max_iter=500))
    steps.fit(digits[:1000], labels[:1000])
    assert steps.score(digits[1000:], labels[1000:]) > 0.8


def test_names_and_frames(coder: SpikeCoder) -> None:
    assert list(coder.get_feature_names_out()[:2]) == ["spikecoder0", "spikecoder1"]
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = (
        clone(coder)
        .set_output(transform="pandas")
        .fit_transform(np.random.default_rng(0).normal(size=(50, 4)))
    )
    assert isinstance(frame, pandas.DataFrame)
    assert frame.shape == (50, 64)


def test_codes_do_not_depend_on_batches_and_survive_pickling(coder: SpikeCoder, digits: Any) -> None:
    x = np.concatenate([digits, digits[:300]])
    codes = coder.transform(x)
    assert np.array_equal(codes[:1200], coder.transform(x[:1200]))
    again = pickle.loads(pickle.dumps(coder))
    assert np.array_equal(again.transform(x[:10]), codes[:10])
    assert again.score(x[:10]) == coder.score(x[:10])


def test_partial_fit_goes_on(digits: Any) -> None:
    coder = SpikeCoder(32, t_train=4, batch_size=50)
    first = coder.partial_fit(digits[:500]).score(digits[:200])
    mean = coder.mean_.copy()
    for _ in range(8):
        coder.partial_fit(digits[500:])
    assert coder.score(digits[:200]) > first + 0.1
    assert np.array_equal(coder.mean_, mean)
    fitted = SpikeCoder(32, max_updates=20, t_train=4).fit(digits)
    before = fitted.model_.dictionary.detach().clone()
    fitted.partial_fit(digits[:100])
    assert not torch.equal(fitted.model_.dictionary, before)


def test_a_collapse_is_said() -> None:
    with pytest.warns(
        CollapseWarning, match=r"the model collapsed.*\(beta 10000; default 2\).*more updates \(max_updates\)"
    ):
        SpikeCoder(8, beta=1e4, max_updates=50, lr=0.1).fit(np.random.default_rng(0).normal(size=(100, 16)))


def test_bad_input_is_named(coder: SpikeCoder, digits: Any) -> None:
    with pytest.raises(NotFittedError):
        SpikeCoder().transform(digits)
    with pytest.raises(ValueError, match="NaN"):
        SpikeCoder(**QUICK).fit(np.full((5, 3), np.nan))
    for wrong in (digits[:, :7], digits[:, None]):
        with pytest.raises(ValueError, match=r"X: expected inputs \[N, 8, 8\], found"):
            coder.transform(wrong)
    with pytest.raises(ValueError, match="64 features"):
        coder.transform(digits.reshape(-1, 64)[:, :60])
    with pytest.raises(ValueError, match=r"X: expected codes \[N, 64\], found \[3, 60\]"):
        coder.inverse_transform(np.zeros((3, 60)))
    for parameters in ({"n_latents": 0}, {"output": "volts"}, {"beta": -1.0}, {"lr": "fast"}, {"steps": 2.5}):
        with pytest.raises(ValueError, match=next(iter(parameters))):
            SpikeCoder(**{**QUICK, **parameters}).fit(digits[:10])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        constant = SpikeCoder(4, **QUICK).fit(np.ones((6, 3)))
    assert np.isfinite(constant.transform(np.ones((6, 3)))).all()
