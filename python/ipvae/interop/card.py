"""The card of a model on the Hugging Face Hub: what it is, how it is loaded, what was measured."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from ..extras import explained

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

MEASURES = "evaluation.json"
TAGS = ("spiking-neural-network", "sparse-coding", "variational-inference", "pytorch")
# What the cards call the measures of an evaluation, at its last step.
NAMES = {
    "r2": "R2 of the reconstruction",
    "squared_error": "squared error a sample",
    "zeros": "share of silent neurons",
    "spikes": "spikes a sample and step",
    "recon": "reconstruction term, nats",
    "kl": "KL, nats",
    "nelbo": "negative ELBO, nats",
    "accuracy": "accuracy of a linear readout",
}


class Measured(Protocol):
    """An `ipvae.Evaluation`."""

    def to_dict(self) -> dict[str, Any]:
        """Curves and readouts as plain values."""


Metrics = Measured | Mapping[str, Any] | str | PathLike[str]


class Saved(Protocol):
    """What a card is of: a model."""

    @property
    def config(self) -> Any:
        """Of its family."""

    def state_dict(self) -> dict[str, Tensor]:
        """Its weights."""


@explained()
def model_card(
    model: Saved,
    *,
    repo_id: str | None = None,
    metrics: Metrics | None = None,
    dataset: str | None = None,
    license: str | None = None,
) -> ModelCard:
    """A card: what the model is, how it is loaded, its configuration, what was measured.

    Args:
        model: that it is of.
        repo_id: "user/name" that it will have; None: the card loads it from a folder.
        metrics: an `ipvae.Evaluation`, its plain values, or the file that ``ipvae eval --json`` wrote.
        dataset: what was measured on; None: what that file says. Where nothing says it, the measures are in
            the text and not in the header, whose results belong to a data set.
        license: of the weights, as the Hub spells it ("bsd-3-clause"); None: not said.

    Returns:
        A `huggingface_hub.ModelCard`; ``card.save("README.md")`` writes it.

    Raises:
        MissingExtra: huggingface_hub is not installed.
        OSError: there is no file of metrics.
        ValueError: metrics are not those of an evaluation.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    config = model.config
    name = type(model).__name__ if repo_id is None else repo_id.partition("/")[2]
    evaluation = {} if metrics is None else evaluation_of(metrics)
    dataset = evaluation.get("data") if dataset is None else dataset
    values = _last(evaluation)
    results = [
        EvalResult(
            task_type="feature-extraction",
            dataset_type=re.sub(r"[^a-z0-9]+", "-", dataset.lower()).strip("-"),
            dataset_name=dataset,
            dataset_split=evaluation.get("split"),
            metric_type=metric,
            metric_name=NAMES[metric],
            metric_value=value,
        )
        for metric, value in values.items()
        if dataset is not None
    ]
    tags = [*dict.fromkeys([config.described.tag, *TAGS, config.cell])]
    header = ModelCardData(
        library_name="ipvae", license=license, tags=tags,
        model_name=name if results else None, eval_results=results or None,
    )  # fmt: skip
    text = [f"# {name}", _description(model), _use(config, repo_id)]
    if values:
        text.append(_measured(evaluation, values, dataset))
    text.append("## Configuration\n\n" + _table("field", config.to_dict()))
    return ModelCard(f"---\n{header.to_yaml()}\n---\n\n" + "\n\n".join(text) + "\n")


def evaluation_of(metrics: Metrics) -> dict[str, Any]:
    """Plain values of an evaluation.

    Raises:
        OSError: there is no file of metrics.
        ValueError: they are not those of an evaluation.
    """
    if isinstance(metrics, (str, PathLike)):
        try:
            found = json.loads(Path(metrics).read_text())
        except ValueError as error:
            raise ValueError(f"metrics: expected a file of `ipvae eval --json`, {metrics}: {error}") from None
    else:
        found = metrics if isinstance(metrics, Mapping) else metrics.to_dict()
    curve = found.get("r2") if isinstance(found, Mapping) else None
    if not isinstance(curve, (list, tuple)) or not curve:
        raise ValueError("metrics: expected an evaluation with a curve r2, found none")
    return {name: value for name, value in found.items() if name != "model"}  # a path of this machine


def _last(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """The measures at the last step that are numbers."""
    if not evaluation:
        return {}
    steps = len(evaluation["r2"])
    readouts = {int(step): readout for step, readout in evaluation.get("readout", {}).items()}
    curves = {name: evaluation[name][-1] for name in NAMES if evaluation.get(name)}
    values = {**curves, **({"accuracy": readouts[steps]["accuracy"]} if steps in readouts else {})}
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def _description(model: Saved) -> str:
    config = model.config
    shape = "x".join(map(str, config.shape))
    parameters = sum(tensor.numel() for tensor in model.state_dict().values())
    return (
        f"`{type(model).__name__}` of ipvae, {config.described.kind}: {config.n_latents:,} neurons for "
        f"inputs of {config.n_inputs:,} numbers ({shape}), {parameters:,} numbers in all. "
        f"{config.described.how}"
    )


def _use(config: Any, repo_id: str | None) -> str:
    source = "folder" if repo_id is None else repo_id
    shape = ", ".join(map(str, config.shape))
    steps = ", steps=128" if hasattr(config, "t_train") else ""
    return (
        "## Use\n\n```python\nimport ipvae\n\n"
        f'model = ipvae.load_model("{source}")\n'
        f"codes = ipvae.encode(model, x{steps})  # x: [N, {shape}]; rates [N, {config.n_latents}]\n"
        "images = model.decode(codes)\n```"
    )


def _measured(evaluation: Mapping[str, Any], values: Mapping[str, float], dataset: str | None) -> str:
    where = f" of {dataset}" if dataset else ""
    split = f" ({evaluation['split']})" if evaluation.get("split") else ""
    samples = f", {evaluation['n_samples']:,} samples" if "n_samples" in evaluation else ""
    rows = {NAMES[name]: f"{value:.4g}" for name, value in values.items()}
    return (
        f"## Measured\n\nCounts hard, after {len(evaluation['r2']):,} steps{where}{split}{samples}; "
        f"all steps are in `{MEASURES}`.\n\n{_table('measure', rows)}"
    )


def _table(first: str, rows: Mapping[str, Any]) -> str:
    lines = [
        f"| {first} | value |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in rows.items()),
    ]
    return "\n".join(lines)
