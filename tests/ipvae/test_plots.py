"""`ipvae.plots`: the axes and images that a figure should have, and what it refuses."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from ipvae import plots
from ipvae.evaluation.metrics import explained_variance, squared_error, total_variation
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

RNG = np.random.default_rng(0)
PHI = RNG.normal(size=(16, 10))
X = RNG.normal(size=(4, 16))


def rendered(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=40)
    return stream.getvalue()


def test_features_are_one_mosaic_most_used_first() -> None:
    use = np.arange(10.0)
    figure = plots.features(PHI, (4, 4), use=use, columns=5)
    assert len(figure.axes) == 1
    (image,) = figure.axes[0].images
    mosaic = np.ma.filled(image.get_array()[..., :], np.nan)
    assert mosaic.shape == (2 * 5 - 1, 5 * 5 - 1)
    first = PHI[:, 9].reshape(4, 4)
    np.testing.assert_allclose(mosaic[:4, :4], first / np.abs(first).max())
    assert np.isnan(mosaic[4]).all()
    assert rendered(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize(("n", "columns"), [(512, 32), (128, 16), (1, 1), (7, 3), (64, 8)])
def test_a_grid_of_features_is_full_where_it_can_be(n: int, columns: int) -> None:
    image = plots.features(np.ones((4, n)), (2, 2)).axes[0].images[0].get_array()
    assert image.shape[1] == 3 * columns - 1


def test_features_can_be_limited_and_be_in_colour() -> None:
    figure = plots.features(RNG.normal(size=(12, 7)), (3, 2, 2), limit=4, columns=2)
    assert figure.axes[0].images[0].get_array().shape == (5, 5, 3)
    assert "4 of 7" in figure.axes[0].get_title(loc="left")


def test_convergence_has_a_panel_for_each_curve() -> None:
    figure = plots.convergence(
        np.linspace(0, 0.8, 50), np.linspace(0.3, 0.7, 50), trained_steps=16, references={"LCA": (0.8, 0.7)}
    )
    assert [ax.get_ylabel() for ax in figure.axes] == ["$R^2$", "silent neurons"]
    for ax in figure.axes:
        assert ax.get_xscale() == "log"
        assert len(ax.lines) == 4  # curve, its end, reference, trained steps
    assert rendered(figure)


def test_raster_marks_every_spike_once() -> None:
    counts = RNG.poisson(0.3, size=(30, 12))
    figure = plots.raster(counts)
    assert len(figure.axes) == 2
    marks = figure.axes[0].collections[0].get_offsets()
    assert len(marks) == (counts > 0).sum()
    busiest = counts[:, counts.sum(0).argmax()]
    assert sorted(np.asarray(marks)[np.asarray(marks)[:, 1] == 0][:, 0]) == list(np.flatnonzero(busiest) + 1)
    counts[:, 4] = 0
    assert plots.raster(counts).axes[0].get_ylim() == (10.5, -0.5)
    assert plots.raster(counts, sort=False).axes[0].get_ylim() == (11.5, -0.5)
    assert rendered(plots.raster(np.zeros((3, 2))))


@pytest.mark.parametrize("rate", [0.02, 1.0, 40.0])
@pytest.mark.parametrize(("steps", "neurons"), [(20, 8), (200, 128), (200, 300)])
def test_dots_of_a_raster_never_merge_and_are_explained(rate: float, steps: int, neurons: int) -> None:
    counts = np.random.default_rng(1).poisson(rate, size=(steps, neurons))
    figure = plots.raster(counts)
    rendered(figure)
    ax = figure.axes[0]
    shown = ax.collections[0]
    box = ax.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
    rows = abs(np.subtract(*ax.get_ylim()))
    cell = 72 * min(box.width / steps, box.height / rows)
    diameters = np.sqrt(shown.get_sizes())
    assert diameters.max() <= 1.05 * cell
    assert diameters.min() >= 0.3 * diameters.max()
    assert diameters.max() * figure.dpi / 72 > 3.0  # pixels
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[0] == "1 spike" or labels[0] == "1 or more spikes"
    legend = np.concatenate([c.get_sizes() for c in ax.collections[1:]])
    assert np.isclose(legend.max(), shown.get_sizes().max())
    assert list(legend) == sorted(legend)


def test_the_noisiest_features_come_last() -> None:
    rng = torch.Generator().manual_seed(0)
    dictionary = torch.randn(16, 4, generator=rng)
    counts = torch.poisson(torch.full((200, 4), 2.0), generator=rng)
    counts[:, 1] = torch.poisson(torch.full((200,), 40.0), generator=rng)
    dictionary[:, 1] *= 0.01  # fires most, does least
    x = counts @ dictionary.T
    found = explained_variance(x, counts, dictionary)
    assert found.argsort()[0] == 1
    assert counts.mean(0).argmax() == 1
    for k in range(4):
        rest = counts.clone()
        rest[:, k] = 0
        without = squared_error(x, rest @ dictionary.T).sum() / total_variation(x).sum()
        assert found[k] == pytest.approx(float(without), rel=1e-4)


def test_reconstructions_have_three_rows_of_images() -> None:
    figure = plots.reconstructions(X, X + 0.1, (4, 4), limit=3)
    assert len(figure.axes) == 9
    assert all(len(ax.images) == 1 for ax in figure.axes)
    np.testing.assert_allclose(figure.axes[6].images[0].get_array(), -0.1)
    assert len(plots.reconstructions(RNG.random((2, 12)), RNG.random((2, 12)), (3, 2, 2)).axes) == 6


def test_training_curves_have_a_panel_for_what_was_logged() -> None:
    steps = np.arange(5.0)
    history = {
        "step": steps,
        "loss": steps,
        "kl": steps,
        "val_r2": np.array([np.nan, 0.1, np.nan, 0.2, np.nan]),
    }
    figure = plots.training_curves(history)
    assert [ax.get_ylabel() for ax in figure.axes] == ["loss, nats", "validation $R^2$"]
    assert [len(ax.lines) for ax in figure.axes] == [2, 1]
    np.testing.assert_array_equal(figure.axes[1].lines[0].get_xdata(), [1, 3])
    assert rendered(figure)


def test_the_terms_of_the_loss_add_up() -> None:
    recon, kl, beta = np.array([9.0, 8.0, 7.0]), np.array([1.0, 2.0, 3.0]), np.array([0.1, 2.0, 2.0])
    loss = 256 / 784 * (recon + beta * kl)
    history = {"step": np.arange(3.0), "loss": loss, "recon": recon, "kl": kl, "beta": beta}
    ax = plots.training_curves(history).axes[0]
    assert [line.get_label() for line in ax.lines] == ["loss", "reconstruction", "β KL"]
    total, *terms = (line.get_ydata() for line in ax.lines)
    np.testing.assert_allclose(np.sum(terms, axis=0), total)
    np.testing.assert_allclose(total, loss)
    assert ax.get_ylabel() == "loss, nats times 0.327"


def test_silence_is_in_percent_in_every_figure() -> None:
    zeros = np.array([0.25, 0.5])
    axes = [
        plots.convergence([0.1, 0.2], zeros).axes[1],
        plots.training_curves({"step": [1.0, 2.0], "val_zeros": zeros}).axes[0],
    ]
    assert [ax.yaxis.get_major_formatter()(0.25) for ax in axes] == ["25 %", "25 %"]
    assert "0.0 % silent" in plots.raster(np.ones((3, 2))).axes[0].get_title(loc="left")


def test_figures_stay_away_from_pyplot() -> None:
    import matplotlib.pyplot as plt

    plots.features(PHI, (4, 4))
    assert plt.get_fignums() == []
    assert to_hex(plots.features(PHI, (4, 4)).get_facecolor()) == "#ffffff"


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.features(PHI, (3, 4)), "shape: expected"),
        (lambda: plots.features(PHI, (2, 2, 4)), "shape: expected"),
        (lambda: plots.features(PHI, (4, 4), use=np.ones(3)), "use: expected"),
        (lambda: plots.features(np.zeros((0, 3)), (0, 0)), "dictionary: expected"),
        (lambda: plots.convergence([], [1.0]), "r2: expected"),
        (lambda: plots.raster(np.zeros(3)), "counts: expected"),
        (lambda: plots.reconstructions(X, X[:2], (4, 4)), "reconstruction: expected"),
        (lambda: plots.training_curves({"step": [1.0]}), "history: expected"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(draw: Callable[[], Figure], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw()
