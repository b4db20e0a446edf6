"""What users of torch do with a model: compile, export, transform, cast, copy and hook it."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ipvae import IGVAE, IPVAE, IGVAEConfig, IPVAECell, IPVAEConfig
from ipvae.models.iterative import IterativeVAE
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.export import Dim
from torch.utils import _pytree

import ipvae_kernels as ik

FAMILIES: dict[str, Callable[[], IterativeVAE]] = {
    "poisson": lambda: IPVAE(IPVAEConfig(n_inputs=8, n_latents=12, init_scale=0.3)),
    "gaussian": lambda: IGVAE(IGVAEConfig(n_inputs=8, n_latents=12, init_scale=0.3)),
}


def inputs(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> IterativeVAE:
    return FAMILIES[request.param]()


def compiled(
    function: Callable[..., Any], dynamic: bool | None = None, backend: str = "eager"
) -> Callable[..., Any]:
    torch.compiler.reset()
    counters.clear()
    return torch.compile(function, fullgraph=True, backend=backend, dynamic=dynamic)


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def parameters_equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_a_training_is_one_graph(model: IterativeVAE) -> None:
    """Temperature, opening of the clamps and beta are annealed, batches differ, noise moves on."""
    plain = copy.deepcopy(model)
    ours = compiled(model, dynamic=True, backend="aot_eager")
    optimizers = [torch.optim.SGD(m.parameters(), 1e-4) for m in (model, plain)]
    for i in range(3):
        x, beta, seed = inputs(3 + i), torch.tensor(0.1 * i), torch.tensor(i)
        for m in (model, plain):
            m.set_annealing(temperature=1.0 / (1 + i), eps=0.5 * i)
        for call, optimizer in zip((ours, plain), optimizers, strict=True):
            optimizer.zero_grad()
            call(x, 2, beta=beta, seed=seed, sample_offset=2 + i).loss.backward()
            optimizer.step()
        assert parameters_equal(model, plain)
    assert graphs() == 1


def test_a_graph_follows_the_buffers() -> None:
    """However they are written."""
    model, x = FAMILIES["poisson"](), inputs(3)
    ours = compiled(lambda x: model(x, 2, seed=torch.tensor(1)).loss)
    found = []
    for eps in (1.0, 0.5, 0.0):
        model.layer.eps.data.fill_(eps)
        found.append(float(ours(x).detach()))
        assert found[-1] == float(model(x, 2, seed=1).loss.detach())
    assert len(set(found)) == 3
    assert graphs() == 1


def test_a_sequence_is_one_graph(model: IterativeVAE) -> None:
    """The state carries step and offset."""
    model.eval()
    ours = compiled(lambda x, state: model.infer(x, 2, state=state, record=("recon",)), dynamic=True)
    log_rate = model.infer(inputs(3), 2, seed=7).state.log_rate
    for offset in (2, 5):
        state = other = ik.State(log_rate, 2, torch.tensor(7), offset)
        for _ in range(3):
            result, expected = (
                ours(inputs(3), state),
                model.infer(inputs(3), 2, state=other, record=("recon",)),
            )
            state, other = result.state, expected.state
            assert torch.equal(result.records["recon"], expected.records["recon"])
            assert (state.step, state.sample_offset) == (other.step, offset)
    assert graphs() == 1


def test_a_cell_and_a_decoder_are_compiled() -> None:
    decoder = nn.Sequential(nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 8))
    cell = IPVAECell(8, 12, decoder=decoder)

    def run(x: Tensor) -> Tensor:
        result = cell(x, seed=torch.tensor(3))
        return (result.recon + result.kl).sum()

    x, leaves = inputs(3), [*cell.parameters()]
    ours, expected = (
        torch.autograd.grad(call(x), leaves, materialize_grads=True)
        for call in (compiled(run, backend="aot_eager"), run)
    )
    torch.testing.assert_close(ours, expected)
    assert any(bool(gradient.any()) for gradient in ours)
    cell.eval()
    assert torch.equal(compiled(lambda x: cell(x, seed=torch.tensor(3)).counts)(x), cell(x, seed=3).counts)


class Method(nn.Module):
    """A function of a model and an input, as torch.export wants it."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, x: Tensor, state: ik.State | None = None) -> Any:
        return self.function(self.model, x, state)


EXPORTED: dict[str, Callable[..., Any]] = {
    "forward": lambda model, x, _: model(x, 3, seed=7),
    "infer": lambda model, x, _: model.infer(x, 3, seed=7, record=("recon",)),
    "encode": lambda model, x, _: model.encode(x, 4, last=2, seed=7),
    "reconstruct": lambda model, x, _: model.reconstruct(x, 4, seed=7),
}


@pytest.mark.parametrize("name", EXPORTED)
def test_methods_are_exported(name: str, model: IterativeVAE) -> None:
    """With any batch, through a file; a loaded program follows the numbers in its buffers."""
    method, strict = Method(model.eval(), EXPORTED[name]), name == "infer"
    rows = {0: Dim("rows", min=1, max=1024)}
    exported = torch.export.export(method, (inputs(3),), dynamic_shapes={"x": rows}, strict=strict)
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    program = torch.export.load(file).module()
    model.eps = 0.5
    program.load_state_dict(method.state_dict(), strict=False)  # strict tracing drops unused buffers
    for batch in (1, 3, 40):
        ours, expected = (_pytree.tree_leaves(call(inputs(batch))) for call in (program, method))
        torch.testing.assert_close(ours, expected)


def test_a_state_goes_through_an_exported_program(model: IterativeVAE) -> None:
    """Its step and offset are inputs where they are declared to be."""
    rows, any_ = {0: Dim("rows", min=1, max=64)}, Dim.DYNAMIC
    method = Method(model.eval(), lambda model, x, state: model.infer(x, 2, state=state))
    state = ik.State(model.infer(inputs(3), 2, seed=7).state.log_rate, 2, torch.tensor(7), 5)
    axis = {state.log_rate.dim() - 2: rows[0]}
    program = torch.export.export(
        method, (inputs(3), state), dynamic_shapes={"x": rows, "state": [axis, any_, None, any_]}
    ).module()
    other = model.infer(inputs(6), 4, seed=9, sample_offset=11).state
    for _ in range(2):
        ours, expected = program(inputs(6), other).state, model.infer(inputs(6), 2, state=other).state
        assert torch.equal(ours.log_rate, expected.log_rate)
        assert (ours.step, ours.sample_offset) == (expected.step, 11)
        other = expected


def test_what_is_not_exported_says_what_is() -> None:
    cell = IPVAECell(8, 12, decoder=nn.Linear(12, 8)).eval()
    with pytest.raises(ik.BackendError, match=r"decoder: .* not served by torch\.export; a linear one"):
        torch.export.export(
            Method(cell, lambda cell, x, _: cell(x, seed=1).counts), (inputs(3),), strict=False
        )


def test_per_sample_gradients_and_ensembles(model: IterativeVAE) -> None:
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers, x = dict(model.named_buffers()), inputs(4)

    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, (parameters, buffers), (x, 2), {"seed": 3}).loss

    each = torch.vmap(
        torch.func.grad(lambda p, row: loss(p, buffers, row[None])), (None, 0), randomness="different"
    )(parameters, x)
    whole = torch.func.grad(loss)(parameters, buffers, x)
    for name, gradient in whole.items():
        torch.testing.assert_close(each[name].mean(0), gradient, rtol=1e-4, atol=1e-4)
    stacked = {name: torch.stack([p, 0.5 * p]) for name, p in parameters.items()}
    ours = torch.vmap(lambda p: loss(p, buffers, x), randomness="same")(stacked)
    halved = {name: 0.5 * p for name, p in parameters.items()}
    torch.testing.assert_close(ours, torch.stack([loss(p, buffers, x) for p in (parameters, halved)]))
    copies = {name: torch.stack([b, b]) for name, b in buffers.items()}
    with pytest.raises(RuntimeError, match=r"layer\.\w+: expected one number for all rows of torch\.vmap"):
        torch.vmap(lambda p, b: loss(p, b, x), randomness="same")(stacked, copies)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_cast_inside(dtype: torch.dtype, model: IterativeVAE) -> None:
    """ "bf16-true": the results are those of the rounded numbers in float32; gradients have their dtype."""
    model.to(dtype)
    wide, x = copy.deepcopy(model).float(), inputs(4).to(dtype)
    ours, expected = model(x, 4, seed=1), wide(x.float(), 4, seed=1)
    assert torch.equal(ours.loss, expected.loss)
    assert ours.state.log_rate.dtype == torch.float32
    ours.loss.backward()
    expected.loss.backward()
    for p, q in zip(model.parameters(), wide.parameters(), strict=True):
        assert p.grad.dtype == dtype
        torch.testing.assert_close(p.grad, q.grad.to(dtype))
    mixed = model(x.float(), 2, state=ours.state.detach())  # a state in float32, and float32 inputs
    assert mixed.state.log_rate.dtype == torch.float32
    for m in (model.train(), model.eval()):  # in eval mode parameters are prepared
        for name in ("infer", "encode", "reconstruct"):
            a, b = (getattr(f, name)(y, 4, seed=1) for f, y in ((m, x), (wide, x.float())))
            for leaf, other in zip(_pytree.tree_leaves(a), _pytree.tree_leaves(b), strict=True):
                assert torch.equal(leaf, other) if isinstance(leaf, Tensor) else leaf == other
    assert torch.equal(
        model.generate(3, seed=1, pixel_noise=True), wide.generate(3, seed=1, pixel_noise=True)
    )
    with pytest.raises(TypeError, match=r"x: expected dtype torch\.\w+ as that of the model"):
        model(x.double(), 4)


def test_double_precision_is_kept(model: IterativeVAE) -> None:
    full, x = copy.deepcopy(model), inputs(4)
    result = model.double()(x.double(), 2, seed=1, backend="eager")
    torch.testing.assert_close(result.loss.float(), full(x, 2, seed=1).loss, rtol=1e-5, atol=0.0)
    result.loss.backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float64} == {result.state.log_rate.dtype}


@pytest.mark.parametrize("training", [True, False])
def test_a_cell_in_half_precision(training: bool) -> None:
    cell = IPVAECell(8, 12).to(torch.bfloat16).train(training)
    wide = copy.deepcopy(cell).float()
    state = other = None
    for i in range(3):
        x = inputs(3, i).bfloat16()
        state, counts, *_ = cell(x, state, seed=2)
        other, expected, *_ = wide(x.float(), other, seed=2)
        assert state.log_rate.dtype == torch.float32
        assert torch.equal(counts, expected)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_lightning_precision(precision: Any) -> None:
    """A loss near that of float32 in a module of the user's own."""
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = IPVAE(IPVAEConfig(n_inputs=8, n_latents=12))
            self.losses: list[float] = []

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            result = self.model(batch, 4, seed=index)
            assert result.state.log_rate.dtype == torch.float32
            self.losses.append(float(result.loss.detach()))
            return result.loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 1e-6)

    def losses(precision: Any) -> Tensor:
        module = Module()
        lightning.Trainer(
            max_steps=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, accelerator="cpu", precision=precision,
        ).fit(module, torch.utils.data.DataLoader(inputs(6), batch_size=2))  # fmt: skip
        return torch.tensor(module.losses)

    with torch.random.fork_rng():
        ours, full = losses(precision), losses("32-true")
    tolerance = 1e-6 if precision == "bf16-mixed" else 1e-2
    torch.testing.assert_close(ours, full, rtol=tolerance, atol=0.0)


def test_hooks_and_sequences(model: IterativeVAE) -> None:
    seen: list[Any] = []
    chain = nn.Sequential(nn.Unflatten(1, (2, 4)), nn.Flatten(), model)
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    model.register_forward_hook(lambda module, args, result: seen.append(result.loss.shape))
    model.register_full_backward_hook(lambda module, grads, above: seen.append(above[0].shape))
    chain(inputs(3).requires_grad_()).loss.backward()
    assert seen == [(3, 8), (), ()]
    cell = nn.Sequential(nn.Linear(8, 8), IPVAECell(8, 12))
    cell(inputs(3)).recon.sum().backward()
    assert cell[0].weight.grad is not None
