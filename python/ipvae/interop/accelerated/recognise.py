"""What an object of the authors' code is, by the classes that define its methods."""

from __future__ import annotations

from typing import Any

# Method -> the class that has to define it, or the computation is not theirs.
_OF_MODEL = {"forward": "_IterativeVAE", "_add_extras": "_IterativeVAE"}
_OF_LAYER = {
    "forward": "_StochasticLayer",
    "infer_grad": "_StochasticLayer",
    "generate": "_StochasticLayer",
    "loss_recon": "_StochasticLayer",
    "update_inference_state": "_StochasticLayer",
    "grad_recon_term": "_StochasticLayer",
    "get_dec_log_sigma": "_StochasticLayer",
}
_OF_KIND = ("grad_free_energy", "grad_kl_term", "softclamp", "get_dist", "loss_kl")
LAYERS = {"IPVAE": "PoissonLayer", "IGVAE": "GaussianLayer"}
SUPPORTED = "an IPVAE or IGVAE of hadivafaii/IterativeVAE, or their Trainer"


def is_trainer(value: Any) -> bool:
    """Whether it is a trainer of theirs."""
    return any(base.__name__ == "BaseTrainer" for base in type(value).__mro__) and hasattr(
        value, "get_feeder"
    )


def check_model(value: Any) -> None:
    """Refuses what is not a model of theirs, or computes otherwise.

    Raises:
        TypeError: saying what was expected and what came.
    """
    kind = next((base.__name__ for base in type(value).__mro__ if base.__name__ in LAYERS), None)
    layer = getattr(value, "layer", None)
    if kind is None or layer is None:
        raise TypeError(f"expected {SUPPORTED}, found {_name(value)}")
    if not any(base.__name__ == LAYERS[kind] for base in type(layer).__mro__):
        raise TypeError(f"model.layer: expected a {LAYERS[kind]} of theirs, found {_name(layer)}")
    of_layer = {**_OF_LAYER, **dict.fromkeys(_OF_KIND, LAYERS[kind])}
    for owner, methods in ((value, _OF_MODEL), (layer, of_layer)):
        for method, home in methods.items():
            if (found := _home(owner, method)) != home:
                raise TypeError(
                    f"{type(owner).__name__}.{method}: expected that of {home}, whose computation is "
                    f"replaced; found one of {found}"
                )


def _home(value: Any, method: str) -> str | None:
    """The class that defines a method."""
    return next((base.__name__ for base in type(value).__mro__ if method in vars(base)), None)


def _name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
