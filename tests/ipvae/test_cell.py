"""`IPVAECell`: in eval mode what `infer` gives, in training mode what `elbo` gives, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ipvae import IPVAE, IPVAECell, IPVAEConfig
from torch import Tensor, nn

import ipvae_kernels as ik

M, K, B, T = 12, 20, 3, 6
RECORDS = ("counts", "reconstruction", "recon", "kl")
OPTIONS: list[dict[str, Any]] = [
    {},
    {"n_inner": 3, "beta_inner": 0.5},
    {"single_draw": True},
    {"clamp_u": 2.0, "clamp_du": 1.0, "kl": "released"},
]


@pytest.fixture
def frames() -> Tensor:
    return torch.randn(T, B, M, generator=torch.Generator().manual_seed(1))


def cell_of(**options: Any) -> IPVAECell:
    torch.manual_seed(3)
    cell = IPVAECell(M, K, **options)
    if cell.dictionary is not None:
        nn.init.normal_(cell.dictionary, std=0.4)
    nn.init.normal_(cell.log_sigma, std=0.1)
    nn.init.constant_(cell.log_lr, -1.5)
    return cell


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(K, 16), nn.Tanh(), nn.Linear(16, M))


def run(cell: IPVAECell, frames: Tensor, backend: str = "auto", **first: Any) -> list[ik.StepResult]:
    taken = [cell(frames[0], seed=7, backend=backend, **first)]
    for frame in frames[1:]:
        taken.append(cell(frame, taken[-1].state, backend=backend))
    return taken


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("decoded", [False, True], ids=["dictionary", "decoder"])
def test_steps_of_eval_mode_are_those_of_infer(
    options: dict[str, Any], decoded: bool, frames: Tensor
) -> None:
    torch.manual_seed(2)
    cell = cell_of(**options, **({"decoder": network()} if decoded else {})).eval()
    taken = run(cell, frames, sample_offset=5)
    whole = ik.infer(
        frames, cell.params, T, record=RECORDS, seed=7, sample_offset=5, decoder=cell.decoder, **options
    )
    for name, rows in whole.records.items():
        assert torch.equal(torch.stack([getattr(one, name) for one in taken]), rows)
    assert torch.equal(taken[-1].state.log_rate, whole.state.log_rate)
    assert (taken[-1].state.step, taken[-1].state.sample_offset) == (T, 5)
    assert float(whole.records["counts"].max()) >= 1.0
    assert not any(value.requires_grad for value in taken[-1][1:])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("decoded", [False, True], ids=["dictionary", "decoder"])
def test_steps_of_training_mode_are_those_of_elbo(
    options: dict[str, Any], decoded: bool, frames: Tensor
) -> None:
    torch.manual_seed(2)
    drawn: dict[str, Any] = {"estimator": "cubic", "temperature": 0.5}
    cell = cell_of(**options, **drawn, **({"decoder": network()} if decoded else {})).double()
    frames = frames.double().requires_grad_()
    parameters = [frames, *cell.parameters()]
    taken = run(cell, frames, "eager")
    how: dict[str, Any] = {"seed": 7, "decoder": cell.decoder, "beta": 3.0, "backend": "eager"}
    whole = ik.elbo(frames, cell.params, T, **how, **drawn, **options)
    recon, kl = torch.stack([one.recon for one in taken]), torch.stack([one.kl for one in taken])
    loss = (recon + 3.0 * kl).mean() * (256 / M)
    torch.testing.assert_close(taken[-1].state.log_rate, whole.state.log_rate)
    torch.testing.assert_close(loss, whole.loss)
    ours, theirs = (torch.autograd.grad(value, parameters) for value in (loss, whole.loss))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
        assert bool((one != 0).any())


def test_whole_spikes_of_training_are_those_of_eval_mode(frames: Tensor) -> None:
    cell = cell_of()
    assert cell.estimator == "fini2"
    trained = torch.stack([one.counts for one in run(cell, frames)])
    with torch.no_grad():
        inferred = torch.stack([one.counts for one in run(cell.eval(), frames)])
    assert torch.equal(trained.detach(), inferred)
    assert trained.requires_grad


def test_a_loop_of_ones_own_is_trained_through_counts(frames: Tensor) -> None:
    """A layer between the steps feeds what it makes of spikes back into the next frame."""
    cell, feedback = cell_of(estimator="cubic", temperature=0.5), nn.Linear(K, M)
    optimizer = torch.optim.Adam([*cell.parameters(), *feedback.parameters()], lr=0.02)

    def loss() -> Tensor:
        total, state, back = torch.zeros(()), None, torch.zeros(B, M)
        for frame in frames:
            one = cell(frame + back, state, seed=None if state else 7)
            state, back = one.state, feedback(one.counts)
            total = total + (one.reconstruction - frame).square().mean()
        return total

    before = loss().item()
    for _ in range(25):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert all(
        p.grad is not None and bool(p.grad.isfinite().all()) for p in cell.parameters() if p is not None
    )
    assert loss().item() < 0.8 * before


def test_a_changed_dictionary_is_packed_anew(frames: Tensor) -> None:
    cell = cell_of().eval()
    for _ in range(2):
        ours = cell(frames[0], seed=7)
        theirs = ik.infer(frames[0], cell.params, 1, seed=7)
        assert torch.equal(ours.state.log_rate, theirs.state.log_rate)
        with torch.no_grad():
            cell.dictionary.mul_(1.5)


def test_without_bias_nothing_inhibits(frames: Tensor) -> None:
    with_bias, without = cell_of(), cell_of(bias=False)
    assert "log_bias" not in dict(without.named_parameters())
    assert "log_bias" not in without.state_dict()
    for mode in (True, False):
        one = cell_of(bias=False).train(mode)(frames[0], seed=7).state.log_rate
        params = dataclasses.replace(without.params, log_bias=torch.full((K,), -60.0))
        two = ik.infer(frames[0], params, 1, seed=7).state.log_rate
        assert torch.equal(one, two) if not mode else torch.allclose(one, two)
        inhibited = with_bias.train(mode)(frames[0], seed=7).state.log_rate
        assert bool((one >= inhibited).all())
        assert float((one > inhibited).float().mean()) > 0.9


def test_a_cell_of_a_model_infers_what_it_infers(frames: Tensor) -> None:
    model = IPVAE(IPVAEConfig(n_inputs=M, n_latents=K, init_scale=0.4, clamp_u=3.0)).eval()
    for params in (model.params, ik.prepare(model.params)):
        cell = IPVAECell.from_params(params, kl=model.config.kl, **model.clamps).eval()
        taken = run(cell, frames)
        whole = model.infer(frames, T, record=("counts",), seed=7)
        assert torch.equal(torch.stack([one.counts for one in taken]), whole.records["counts"])
        assert torch.equal(taken[-1].state.log_rate, whole.state.log_rate)
    with torch.no_grad():
        model.layer.phi.weight.mul_(1.5)  # the memory is shared, and the change seen
    assert torch.equal(cell.dictionary, model.dictionary)
    ours, theirs = cell(frames[0], seed=7), model.infer(frames[0], 1, seed=7)
    assert torch.equal(ours.state.log_rate, theirs.state.log_rate)


def test_a_cell_is_a_module(frames: Tensor) -> None:
    cell = cell_of(decoder=network())
    names = {"log_sigma", "log_bias", "log_lr", "log_rate_init"}
    assert {name.partition(".")[0] for name, _ in cell.named_parameters()} == {*names, "decoder"}
    other = cell_of(decoder=network())
    other.load_state_dict(cell.state_dict())
    for twin in (other, copy.deepcopy(cell)):
        assert torch.equal(twin(frames[0], seed=7).recon, cell(frames[0], seed=7).recon)
    torch.manual_seed(4)
    first = IPVAECell(M, K, dtype=torch.float64)
    torch.manual_seed(4)
    second = IPVAECell(M, K, device="meta", dtype=torch.float64).to_empty(device="cpu")
    second.reset_parameters()
    for one, two in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two)


def test_without_a_seed_torch_governs(frames: Tensor) -> None:
    cell = cell_of().eval()
    torch.manual_seed(1)
    first = cell(frames[0])
    torch.manual_seed(1)
    assert torch.equal(cell(frames[0]).counts, first.counts)
    assert not torch.equal(cell(frames[0]).counts, first.counts)


REFUSED: list[tuple[Callable[[Tensor], Any], str]] = [
    (lambda x: IPVAECell(0, K), "n_inputs: expected an int from 1"),
    (lambda x: IPVAECell(M, 2.5), "n_latents: expected an int, found float"),
    (lambda x: IPVAECell(M, K, bias=1), "bias: expected a bool, found int"),
    (lambda x: IPVAECell(M, K, decoder=x), "decoder: expected an nn.Module or a Decoder, found Tensor"),
    (lambda x: cell_of()(x[None]), "x: expected one frame"),
    (lambda x: cell_of().eval()(x[None]), r"x: expected one frame, shape \[B, M\], found \[1, 3, 12\]"),
    (lambda x: cell_of().eval()(x.numpy()), "x: expected a torch.Tensor, found ndarray"),
    (lambda x: cell_of()(x[:, 1:]), "x: expected last dimension M = 12"),
    (lambda x: cell_of().eval()(x.double()), "x: expected dtype torch.float32"),
    (lambda x: cell_of().eval()(x * math.nan), "x: expected finite values"),
    (lambda x: cell_of()(x, ik.State(torch.zeros(2, K))), r"state\.log_rate: expected shape"),
    (lambda x: cell_of()(x, torch.zeros(B, K)), "state: expected a State or None, found Tensor"),
    (lambda x: cell_of(estimator="best")(x), "estimator: expected one of"),
    (lambda x: cell_of(temperature="low")(x), "temperature: expected a number"),
    (lambda x: cell_of(clamp_u=-9.0).eval()(x), "clamp_u: expected a finite number above -8"),
    (lambda x: cell_of(n_inner=2, single_draw=True)(x), "single_draw: expected n_inner = 1"),
    (lambda x: cell_of(decoder=nn.Linear(K, 5))(x), "mean of the decoder: expected shape"),
    (lambda x: IPVAECell.from_params(x), "params: expected PoissonParams, found Tensor"),
    (
        lambda x: IPVAECell.from_params(cell_of().params, decoder=network()),
        r"params\.dictionary: expected a dictionary or a decoder, found both",
    ),
    (
        lambda x: IPVAECell.from_params(dataclasses.replace(cell_of().params, dictionary=None)),
        r"params\.dictionary: expected a dictionary or a decoder, found neither",
    ),
    (lambda x: IPVAECell.from_params(cell_of().params, bias=False), "bias"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_bad_input_is_named(call: Callable[[Tensor], Any], message: str, frames: Tensor) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call(frames[0])
