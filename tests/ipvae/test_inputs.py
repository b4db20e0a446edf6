"""`ipvae.inputs`: scalars and arrays of NumPy, Datasets and DataLoaders wherever inputs are taken."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ipvae import IPVAE, IPVAEConfig, TrainConfig, evaluate, train
from ipvae.inputs import gather
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

M, K = 6, 5


@pytest.fixture
def model() -> IPVAE:
    return IPVAE(IPVAEConfig(n_inputs=M, n_latents=K, t_train=2, init_scale=0.3, init_log_rate=(-1.0, 0.0)))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(7, M, generator=torch.Generator().manual_seed(3))


class Pairs(Dataset[Any]):
    """Items of NumPy, as many people's own data sets give them."""

    train = True  # as torchvision's have it, which does not make them an object with splits

    def __init__(self, x: Tensor) -> None:
        self.x = x.double().numpy()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.x[index], index % 2


class Stream(IterableDataset[Any]):
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __iter__(self) -> Iterator[Any]:
        return iter(self.x)


def test_configurations_take_numbers_of_numpy_and_torch() -> None:
    config = IPVAEConfig(
        n_inputs=np.int64(6), n_latents=torch.tensor(5), input_shape=np.array([2, 3]), t_train=np.uint8(3),
        beta_inner=np.float32(0.5), clamp_u=np.array(9.0), fit_prior=np.bool_(True),
        init_log_rate=torch.tensor([-1.0, 0.0]), n_arrivals=np.int32(4), seed=np.int64(-2),
    )  # fmt: skip
    assert config == IPVAEConfig(
        n_inputs=6, n_latents=5, input_shape=(2, 3), t_train=3, beta_inner=0.5, clamp_u=9.0,
        init_log_rate=(-1.0, 0.0), n_arrivals=4, seed=-2,
    )  # fmt: skip
    assert {type(value) for value in config.to_dict().values()} <= {int, float, bool, str, tuple}
    recipe = TrainConfig(max_steps=np.int64(3), lr=np.float32(0.5), betas=np.array([0.5, 0.75]))
    assert recipe == TrainConfig(max_steps=3, lr=0.5, betas=(0.5, 0.75))


def test_methods_take_arrays_and_numbers_of_numpy(model: IPVAE, x: Tensor) -> None:
    array = x.double().numpy()[:, ::-1][:, ::-1]  # strides that torch does not have
    array.setflags(write=False)
    seed, steps = np.int64(4), np.int32(3)
    pairs = [
        (model(array, steps, beta=np.float32(2), seed=seed).loss, model(x, 3, beta=2, seed=4).loss),
        (model.infer(array, steps, seed=seed).state.log_rate, model.infer(x, 3, seed=4).state.log_rate),
        (model.encode(array, steps, last=np.int64(2), seed=seed), model.encode(x, 3, last=2, seed=4)),
        (model.reconstruct(array, steps, seed=seed), model.reconstruct(x, 3, seed=4)),
        (model.decode(np.ones((2, K))), model.decode(torch.ones(2, K))),
        (model.rates(np.ones((2, K))), model.rates(torch.ones(2, K))),
        (model.generate(np.int64(2), seed=torch.tensor(3)), model.generate(2, seed=3)),
    ]
    for found, expected in pairs:
        assert torch.equal(found, expected)
    assert torch.equal(model.generate(2, seed=3), model.generate(2, seed=np.uint64(3)))


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (
            np.zeros((2, M), np.uint8),
            TypeError,
            "x: expected floating point numbers, found uint8; divide images",
        ),
        (
            torch.zeros(2, M, dtype=torch.int64),
            TypeError,
            "x: expected floating point numbers, found torch.int64",
        ),
        (
            torch.zeros(2, M).double(),
            TypeError,
            "x: expected dtype torch.float32 as that of the model, found",
        ),
        (torch.zeros(2, M, device="meta"), TypeError, "x: expected a dense tensor with data"),
        ([[0.0] * M], TypeError, r"x: expected a torch.Tensor.*, found list"),
        (
            np.ma.masked_array(np.zeros((2, M))),
            TypeError,
            "x: expected floating point numbers, found a masked",
        ),
        (np.full((2, M), 1e300), ValueError, "x: expected finite values"),
    ],
    ids=["bytes", "integers", "double", "meta", "list", "masked", "overflow"],
)
def test_wrong_inputs_are_blamed_on_x(model: IPVAE, wrong: Any, error: type[Exception], message: str) -> None:
    for call in (model, model.infer, model.encode, model.reconstruct, lambda x: evaluate(model, x, 2)):
        with pytest.raises(error, match=f"^{message}"):
            call(wrong)


def test_a_dataset_is_gathered_with_its_labels(x: Tensor) -> None:
    sources: list[Any] = [Pairs(x), DataLoader(Pairs(x), batch_size=3), TensorDataset(x, torch.arange(7) % 2)]
    for source in sources:
        found, labels = gather("x", source, x)
        assert torch.equal(found, x)
        assert labels is not None
        assert labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    for unlabelled in (Stream(x), DataLoader(Stream(x), batch_size=2), TensorDataset(x), x.numpy()):
        found, labels = gather("x", unlabelled, x)
        assert torch.equal(found, x)
        assert labels is None


def test_gathering_a_dataset_draws_nothing(x: Tensor) -> None:
    before = torch.get_rng_state()
    gather("x", Pairs(x), x)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            [{"image": torch.zeros(M)}],
            "expected a torch.Tensor, a NumPy array, a torch Dataset or a DataLoader",
        ),
        (DataLoader([{"image": torch.zeros(M)}]), "expected items x or .* found dict"),
        (
            TensorDataset(torch.zeros(2, M, dtype=torch.uint8)),
            "expected floating point numbers, found torch.uint8",
        ),
        (Stream([torch.zeros(2), torch.zeros(3)]), "expected items x or .* of one shape"),  # type: ignore[arg-type]
    ],
    ids=["list", "dicts", "bytes", "shapes"],
)
def test_items_that_are_no_inputs_are_refused(x: Tensor, source: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"splits: .*{message}"):
        gather("splits", source, x)


def test_evaluate_takes_arrays_datasets_and_their_labels(model: IPVAE, x: Tensor) -> None:
    labels = torch.arange(7) % 2
    expected = evaluate(model, x, 3, labels=labels, train=(x, labels), marks=[2, 3]).readout
    numpy = evaluate(
        model, x.numpy(), np.int64(3), labels=labels.byte().numpy(), train=(x.numpy(), labels.numpy()),
        marks=np.array([2, 3]), seed=np.int64(0), batch_size=np.int32(9),
    )  # fmt: skip
    assert numpy.readout == expected
    assert evaluate(model, Pairs(x), 3, train=DataLoader(Pairs(x)), marks=[2, 3]).readout == expected
    for bad, message in [
        (labels + 0.5, "labels: expected labels as a tensor or array of integers"),
        (labels[:3], "labels: expected 7, found 3"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            evaluate(model, x, 3, labels=bad, train=(x, labels))
    with pytest.raises(ValueError, match="train: expected items"):
        evaluate(model, x, 3, labels=labels, train=Stream(x))


def test_train_takes_arrays_datasets_and_loaders(x: Tensor, tmp_path: Path) -> None:
    config = TrainConfig(max_steps=2, batch_size=7)
    trained = []
    for number, source in enumerate([x, x.double().numpy(), Pairs(x), DataLoader(Stream(x), batch_size=2)]):
        model = IPVAE(IPVAEConfig(n_inputs=M, n_latents=K, t_train=2))
        train(model, source, config, tmp_path / str(number), progress=False, logger=None)
        trained.append(model.state_dict())
    for state in trained[1:]:
        assert all(torch.equal(state[name], value) for name, value in trained[0].items())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (torch.zeros(3, M).double(), "splits: expected dtype torch.float32"),
        (np.zeros((3, M), np.uint8), "splits: expected floating point numbers, found uint8"),
        (torch.rand(3, M) * 255, "splits: expected inputs of unit scale, found .* look like pixels"),
        ("patches", "splits: expected a torch.Tensor, .* found str"),
    ],
    ids=["double", "bytes", "pixels", "name"],
)
def test_train_refuses_before_it_starts(model: IPVAE, source: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        train(model, source, TrainConfig(max_steps=2), tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_train_refuses_pixels_to_validate_on(model: IPVAE, x: Tensor, tmp_path: Path) -> None:
    splits = SimpleNamespace(train=x, validation=torch.rand(3, M) * 255)
    with pytest.raises(ValueError, match=r"^splits\.validation: expected inputs of unit scale"):
        train(model, splits, TrainConfig(max_steps=2), tmp_path, progress=False)
