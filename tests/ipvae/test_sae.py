"""Inference by spikes as a sparse autoencoder: known features, SAELens' files, its loader and measures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ipvae import IGVAE, IPVAE, IGVAEConfig, IPVAEConfig
from ipvae.checkpoint import CheckpointError
from ipvae.evaluation.sparse_coding import sparse_codes
from ipvae.interop import sae
from safetensors.torch import load_file, save_file
from torch import Tensor

K, M, N = 96, 48, 400


def features() -> Tensor:
    rows = torch.randn(K, M, generator=torch.Generator().manual_seed(0))
    return rows / rows.norm(dim=1, keepdim=True)


def activations() -> Tensor:
    """Three features of an input, of about 4 to 5."""
    g = torch.Generator().manual_seed(1)
    on = torch.rand(N, K, generator=g) < 3 / K
    return torch.where(on, 4.5 + 0.3 * torch.randn(N, K, generator=g), 0.0)


B_DEC = 0.3 * torch.randn(M, generator=torch.Generator().manual_seed(2))


def written(
    folder: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], Any] = lambda c, w: None
) -> Path:
    """Files as SAELens writes them: names, shapes and keys of its version 6."""
    cfg = {
        "d_in": M, "d_sae": K, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True,
        "normalize_activations": "none", "reshape_activations": "none", "metadata": {"model_name": "gpt2"},
        "architecture": "jumprelu",
    }  # fmt: skip
    weights = {
        "W_dec": features(), "b_dec": B_DEC, "W_enc": features().T.contiguous(), "b_enc": torch.zeros(K),
        "threshold": torch.ones(K),
    }  # fmt: skip
    change(cfg, weights)
    folder.mkdir()
    (folder / "cfg.json").write_text(json.dumps(cfg))
    save_file(weights, folder / "sae_weights.safetensors")
    return folder


def test_a_decoder_of_theirs_infers_known_features(tmp_path: Path) -> None:
    network, true = sae.load(written(tmp_path / "sae")), activations()
    x = true @ features() + B_DEC
    found = network.encode(x)
    assert (found.shape, found.dtype, bool((found >= 0).all())) == (true.shape, torch.float32, True)
    hits, said, there = ((found > 0) & (true > 0)).sum(), (found > 0).sum(), (true > 0).sum()
    assert 2 * hits / (said + there) > 0.98
    # A penalty of 1 makes activations smaller by about 1.
    shrunk = (true - found)[(true > 0) & (found > 0)].mean()
    assert 0.7 < float(shrunk) < 1.3
    reconstruction = network(x)
    torch.testing.assert_close(reconstruction, found @ network.W_dec + network.b_dec)
    torch.testing.assert_close(reconstruction, network.decode(found))
    error, variation = (x - reconstruction).square().sum(), (x - x.mean(0)).square().sum()
    assert 1 - error / variation > 0.9


def test_spikes_settle_where_the_lasso_does(tmp_path: Path) -> None:
    """Mean counts of many steps against coordinate descent, whose penalty is inhibition * sigma^2 / unit."""
    folder, x = written(tmp_path / "sae"), activations()[:40] @ features()
    for penalty, sigma, unit in ((0.7, 1.0, 1.0), (1.0, 1.5, 1.0), (0.7, 1.0, 0.5)):
        network = sae.load(
            folder,
            penalty=penalty,
            sigma=sigma,
            unit=unit,
            threshold=0.0,
            steps=3000,
            last=2500,
            step_size=0.03,
        )
        found = network.encode(x + B_DEC)
        model = IPVAE(IPVAEConfig(n_inputs=M, n_latents=K))
        with torch.no_grad():
            model.layer.phi.weight.copy_(features().T)
        expected = torch.from_numpy(sparse_codes(model, x, "lasso", penalty=penalty).codes)
        positive = (expected >= 0).all(1)  # where the sign constraint binds nobody
        assert int(positive.sum()) > 5
        difference = (found - expected)[positive].abs()
        assert float(difference.mean()) < 0.03
        assert float(difference.max()) < 0.5


def test_files_come_back_bit_for_bit(tmp_path: Path) -> None:
    network = sae.load(written(tmp_path / "sae"), unit=0.7, steps=20, last=5, threshold=0.4, seed=9)
    x = activations()[:30] @ features()
    network.save(tmp_path / "ours")
    again = sae.load(tmp_path / "ours")
    assert (again.steps, again.last, again.threshold, again.seed) == (20, 5, 0.4, 9)
    assert torch.equal(again.encode(x), network.encode(x))
    assert sae.load(tmp_path / "ours", seed=1).seed == 1
    theirs = load_file(tmp_path / "ours" / "sae_weights.safetensors")
    assert {name: list(value.shape) for name, value in theirs.items()} == {
        "W_dec": [K, M], "b_dec": [M], "W_enc": [M, K], "b_enc": [K]
    }  # fmt: skip


def test_a_model_of_ours(tmp_path: Path) -> None:
    """Activations are counts times the length of a feature; reconstructions the model's, plus the mean."""
    model = IPVAE(IPVAEConfig(n_inputs=M, n_latents=K, init_scale=0.3, init_log_rate=(-1.0, 0.5)))
    x = torch.randn(10, M)
    network = sae.from_model(model, B_DEC, steps=12, last=4, threshold=0.0, seed=3)
    torch.testing.assert_close(network.W_dec.norm(dim=1), torch.ones(K))
    torch.testing.assert_close((network.W_dec * network.unit[:, None]).T, model.dictionary.detach())
    counts = model.encode(x, 12, last=4, counts=True, seed=3)
    found = network.encode(x + B_DEC)
    assert float(((found - counts * network.unit).abs() > 1e-3).float().mean()) < 0.01
    torch.testing.assert_close(
        network.decode(counts * network.unit), model.decode(counts) + B_DEC, rtol=2e-5, atol=1e-5
    )
    assert torch.equal(network.encode(x[None]), network.encode(x)[None])
    with pytest.raises(TypeError, match="model: expected an IPVAE, found IGVAE"):
        sae.from_model(IGVAE(IGVAEConfig(n_inputs=M, n_latents=K)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="model: expected drive='paper'"):
        sae.from_model(IPVAE(IPVAEConfig(n_inputs=M, n_latents=K, drive="expected")))


def no_decoder(cfg: dict[str, Any], weights: dict[str, Tensor]) -> None:
    del weights["W_dec"]


def broken(cfg: dict[str, Any], weights: dict[str, Tensor]) -> None:
    weights["b_dec"] = torch.full((M,), float("nan"))


REFUSED: dict[str, tuple[Callable[[dict[str, Any], dict[str, Tensor]], Any], str]] = {
    "transcoder": (
        lambda c, w: c.update(architecture="skip_transcoder"),
        "architecture: .* found 'skip_trans",
    ),
    "norm": (
        lambda c, w: c.update(normalize_activations="layer_norm"),
        "normalize_activations: .*'layer_norm'",
    ),
    "width": (lambda c, w: c.update(d_in=M + 1), rf"W_dec: expected \[{K}, {M + 1}\] .* found \[{K}, {M}\]"),
    "no decoder": (no_decoder, r"W_dec: expected \[96, 48\], found none among \['W_enc', 'b_dec'"),
    "not finite": (broken, "b_dec: holds values that are not finite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_architectures_are_refused(name: str, tmp_path: Path) -> None:
    change, message = REFUSED[name]
    with pytest.raises(CheckpointError, match=message):
        sae.load(written(tmp_path / "sae", change))


def test_bad_files_and_inputs(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cfg\.json: no such file"):
        sae.load(tmp_path)
    folder = written(tmp_path / "sae")
    network = sae.load(folder)
    with pytest.raises(ValueError, match=rf"x: expected shape \[\.\.\., {M}\], found \[5, {M + 1}\]"):
        network.encode(torch.zeros(5, M + 1))
    with pytest.raises(ValueError, match=rf"feature_acts: expected shape \[\.\.\., {K}\]"):
        network.decode(torch.zeros(5, M))
    with pytest.raises(ValueError, match="unit: expected"):
        sae.load(folder, unit=0.0)
    with pytest.raises(ValueError, match="steps: expected an int from 32"):
        sae.load(folder, steps=8)
    (folder / "sae_weights.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="damaged or not a safetensors file"):
        sae.load(folder)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        sae.load(folder)


def test_saelens_reads_what_was_written_and_measures_it(tmp_path: Path) -> None:
    """The generator, the evaluation and the loader of SAELens; `make test-sae` installs it."""
    sae_lens = pytest.importorskip("sae_lens", reason="the extra 'sae' is not installed")
    from sae_lens import synthetic

    torch.manual_seed(0)
    made = synthetic.SyntheticModel(
        synthetic.SyntheticModelConfig(
            num_features=K, hidden_dim=M, bias=0.5, seed=1, mean_firing_magnitudes=4.5
        )
    )
    bias = made.feature_dict.bias.detach()
    vectors = made.feature_dict.feature_vectors.detach()
    folder = written(tmp_path / "sae", lambda c, w: w.update(W_dec=vectors.clone(), b_dec=bias.clone()))
    network = sae.load(folder)
    found = synthetic.eval_sae_on_synthetic_data(
        network, made.feature_dict, made.activation_generator, num_samples=2000
    )
    assert found.mcc == pytest.approx(1.0, abs=1e-4)
    assert found.explained_variance > 0.7
    assert found.classification.f1_score > 0.9
    network.save(tmp_path / "ours")
    theirs = sae_lens.SAE.load_from_disk(tmp_path / "ours")
    torch.testing.assert_close(theirs.W_dec, network.W_dec)
    x = torch.randn(3, M)
    expected = ((x - bias) @ vectors.T - 1.0).relu()  # the first step: a product with the dictionary, less 1
    torch.testing.assert_close(theirs.encode(x), expected, rtol=1e-5, atol=1e-5)


def test_empty_and_single_rows_and_other_precision(tmp_path: Path) -> None:
    network = sae.load(written(tmp_path / "sae"), steps=8, last=3)
    assert network.encode(torch.zeros(0, M)).shape == (0, K)
    x = activations()[0] @ features() + B_DEC
    assert network.encode(x).shape == (K,)
    assert network(x.double()).dtype == torch.float32
    eager = network.encode(x[None], backend="eager")
    assert float((eager != network.encode(x[None])).float().mean()) < 0.05
