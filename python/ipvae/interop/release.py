"""Models written as the authors' trainer writes them (IterativeVAE): a folder that their loaders read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ipvae_kernels import checks

from .. import checkpoint
from ..fields import ConfigError
from .released import DATASETS, SETTINGS

if TYPE_CHECKING:
    from ..models.iterative import IterativeVAE

NAMES = {"poisson": "IPVAE", "gaussian": "IGVAE"}
# Settings of their trainer as it writes them beside the released models.
TRAINER: dict[str, Any] = {
    "kl_beta_min": 1e-4, "kl_balancer": None, "kl_time_adjuster": None, "kl_anneal_cycles": 0,
    "kl_anneal_portion": 0.1, "kl_const_portion": 1e-3, "temp_anneal_portion": 0.5, "temp_anneal_type": "lin",
    "temp_start": 1.0, "temp_stop": 0.01, "lr": 0.005, "epochs": 300, "batch_size": 200, "warm_restart": 0,
    "warmup_portion": 0.005, "optimizer": "adamax_fast",
    "optimizer_kws": {"weight_decay": 3e-4, "betas": [0.9, 0.999], "eps": 1e-8}, "scheduler_type": "cosine",
    "dataset_kws": None, "ema_rate": None, "grad_clip": 300, "chkpt_freq": 10, "eval_freq": 20,
    "log_freq": 10,
}  # fmt: skip


def save(
    model: IterativeVAE,
    folder: str | PathLike[str],
    *,
    dataset: str | None = None,
    beta: float = 24.0,
    trainer: Mapping[str, Any] | None = None,
) -> Path:
    """Writes settings and weights; see `IterativeVAE.to_released`."""
    settings = _settings(model, dataset, checks.number("beta", beta, 0.0))
    unknown = sorted(set(trainer or {}) - set(TRAINER))
    if unknown:
        raise ConfigError(f"trainer: expected settings of their ConfigTrain, found {', '.join(unknown)}")
    of_trainer = {**TRAINER, **(trainer or {})}
    folder, stamp = Path(folder), datetime.now().strftime("%Y_%m_%d,%H:%M")
    file = folder / f"{NAMES[model.cell]}+Trainer-{0:04d}_({stamp}).pt"
    others = [path.name for path in folder.glob("*.pt") if path != file] if folder.is_dir() else []
    if others:
        raise FileExistsError(
            f"{folder}: expected no other weights, of which their loader could take any; found {others[0]}"
        )
    content = _content(model, of_trainer, stamp, str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    with checkpoint.atomic_file(file) as stream:
        torch.save(content, stream)
    for name, values in ((SETTINGS[model.cell], settings), ("ConfigTrain.json", of_trainer)):
        with checkpoint.atomic_file(folder / name) as stream:
            stream.write(json.dumps(values, indent=4).encode())
    return file


def _settings(model: IterativeVAE, dataset: str | None, beta: float) -> dict[str, Any]:
    """What their configuration is made of."""
    config = model.config
    if dataset is None and (dataset := DATASETS.get(config.shape)) is None:
        raise ConfigError(
            f"dataset: expected one of their names, for inputs of {list(config.shape)}; found None"
        )
    own: dict[str, Any] = {}
    if model.cell == "poisson":
        own = {"clamp_prior": config.to_dict()["init_log_rate"][1], "prior_log_dist": "uniform"}
    else:
        activation = config.to_dict()["activation"]
        own = {"latent_act": None if activation == "identity" else activation}
    return {
        **own,
        "dataset": dataset,
        "t_train": config.t_train,
        "n_iters_outer": 1,
        "n_iters_inner": config.n_inner,
        "beta_outer": beta,
        "beta_inner": float(model.layer.beta_inner),
        "n_latents": [config.n_latents],
        "inf_type": "grad",
        "dec_type": "lin",
        "fit_prior": config.fit_prior,
        "stochastic": True,
        "init_dist": "normal",
        "init_scale": config.init_scale,
        "clamp_du": config.clamp_du,
        "clamp_u": config.clamp_u,
        "seed": config.seed,
        "track_stats": False,
    }


def _content(model: IterativeVAE, trainer: Mapping[str, Any], stamp: str, root: str) -> dict[str, Any]:
    """What their trainer's ``save`` puts into a file, of an optimizer that has not made a step."""
    # Their Adamax keeps these settings, which torch's class of all optimizers can hold.
    defaults = {"lr": trainer["lr"], **trainer["optimizer_kws"]}
    optimizer = torch.optim.Optimizer([p for p in model.parameters() if p.requires_grad], defaults)
    scheduler = None
    if trainer["scheduler_type"] == "cosine":
        period = trainer["epochs"] * (1 - trainer["warmup_portion"]) / (2 * trainer["warm_restart"] + 1)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=period, eta_min=1e-5)
        scheduler = cosine.state_dict()
    return {
        "metadata": {
            "timestamp": stamp,
            "checkpoint": 0,
            "global_step": 0,
            "stats_trainer": {},
            "stats_model": {},
            "root": root,
        },
        "model": _weights(model),
        "model_ema": None,
        "optim": optimizer.state_dict(),
        "scheduler": scheduler,
    }


def _weights(model: IterativeVAE) -> dict[str, Tensor]:
    """The state dict, on the CPU, with a cut of the arrivals for each step."""
    state = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    if (cuts := state.get("layer.n_exp")) is not None and len(cuts) != model.config.t_train:
        state["layer.n_exp"] = cuts.max().expand(model.config.t_train).clone()
    return state
