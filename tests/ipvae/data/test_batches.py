from pathlib import Path
from typing import Any

import pytest
import torch
from ipvae.data import loader
from torch import Tensor

DATA = torch.arange(23.0).unsqueeze(1)


def epoch(batches: Any, number: int) -> list[Tensor]:
    batches.sampler.set_epoch(number)
    return list(batches)


def test_every_sample_once_an_epoch() -> None:
    batches = loader(DATA, 5, seed=1)
    for number in range(3):
        got = epoch(batches, number)
        assert [len(b) for b in got] == [5, 5, 5, 5, 3]
        assert torch.equal(torch.cat(got).sort(dim=0).values, DATA)
    assert len(batches) == 5
    assert torch.equal(torch.cat(list(loader(DATA, 5, shuffle=False))), DATA)


def test_drop_last() -> None:
    batches = loader(DATA, 5, drop_last=True)
    assert [len(b) for b in batches] == [5] * 4
    assert len(batches) == 4


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, number: int) -> list[float]:
        torch.manual_seed(seed * 7 + number)  # the global generator does not matter
        return torch.cat(epoch(loader(DATA, 4, seed=seed), number)).flatten().tolist()

    orders = {(seed, number): order(seed, number) for seed in (-1, 0, 1) for number in range(3)}
    assert len({tuple(o) for o in orders.values()}) == 9
    assert order(1, 2) == orders[1, 2]
    both = loader(DATA, 4, seed=1)
    epoch(both, 0)
    assert torch.cat(epoch(both, 2)).flatten().tolist() == orders[1, 2]


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    first, second = (torch.cat(list(loader(DATA, 5))) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("done", [0, 1, 3, 5])
def test_resume_in_mid_epoch(done: int) -> None:
    batches = loader(DATA, 5, seed=3)
    whole = epoch(batches, 4)
    running = loader(DATA, 5, seed=3)
    running.sampler.set_epoch(4)
    iterator = iter(running)
    for _ in range(done):
        next(iterator)
    fresh = loader(DATA, 5, seed=3)
    fresh.load_state_dict(running.state_dict())
    fresh.sampler.set_epoch(4)
    rest = list(fresh)
    assert len(rest) == 5 - done
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[done:], strict=True))
    assert len(epoch(fresh, 5)) == 5  # the next epoch is whole again
    assert len(list(fresh)) == 5


def test_an_abandoned_pass_leaves_no_trace() -> None:
    batches = loader(DATA, 5)
    first = next(iter(batches))
    assert torch.equal(first, next(iter(batches)))


def test_resume_with_other_batches_is_refused() -> None:
    state = loader(DATA, 5).state_dict()
    for other in (
        loader(DATA, 6),
        loader(DATA[1:], 5),
        loader(DATA, 5, seed=1),
        loader(DATA, 5, drop_last=True),
    ):
        with pytest.raises(ValueError, match="state: expected that of the same batches"):
            other.load_state_dict(state)


def test_errors() -> None:
    with pytest.raises(ValueError, match="expected at least one sample"):
        loader(DATA[:0], 5)
    with pytest.raises(ValueError, match="batch_size: expected at least 1, found 0"):
        loader(DATA, 0)
    with pytest.raises(ValueError, match="batch_size: expected 1 to 23, found 24"):
        loader(DATA, 24, drop_last=True)


@pytest.mark.filterwarnings("ignore")  # Lightning's own
def test_lightning_resumes_in_mid_epoch(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Recorder(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.seen: list[list[float]] = []

        def training_step(self, batch: Tensor) -> Tensor:
            self.seen.append(batch.flatten().tolist())
            return (self.weight * batch).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def train(checkpoint: Path | None = None, callbacks: tuple[Any, ...] = ()) -> list[list[float]]:
        trainer = lightning.Trainer(
            max_steps=12,
            max_epochs=-1,
            accelerator="cpu",
            logger=False,
            callbacks=list(callbacks),
            enable_checkpointing=bool(callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        model = Recorder()
        trainer.fit(model, loader(DATA, 5, seed=2), ckpt_path=checkpoint, weights_only=True)
        return model.seen

    keep_all = lightning.pytorch.callbacks.ModelCheckpoint(
        tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1
    )
    whole = train(callbacks=(keep_all,))
    assert len({tuple(batch) for batch in whole}) == 12
    for cut in (5, 7):  # at the end of an epoch of 5 batches, and within the next
        assert train(tmp_path / f"step={cut}.ckpt") == whole[cut:]
