"""What every family of models has: a decoder of latents, samples from the prior, files. See `VAE`."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self

from ipvae_kernels import checks
from ipvae_kernels.philox import KIND_LOSS, Stream
from ipvae_kernels.poisson.noise import PhiloxNoise

from .. import checkpoint
from ..fields import ConfigError
from ..inputs import Inputs, as_tensor, whole
from ..interop import hub
from .config import ModelConfig

# Rows decoded by one product: docs/design/randomness.md, "A row's noise is a function of its global index".
DECODED_ROWS = 32


class VAE(nn.Module):
    """What the families share.

    Args:
        config: of the family.

    Attributes:
        config: as given.
        config_class: its class, which says what a family has to be told.
    """

    config: ModelConfig
    config_class: ClassVar[type[ModelConfig]]

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if not isinstance(config, self.config_class):
            needs = self.config_class.__name__
            raise ConfigError(
                f"config: {type(self).__name__} needs an {needs}, found {type(config).__name__}"
            )
        self.config = config

    @property
    def cell(self) -> str:
        """Name of the family, `ModelConfig.cell`."""
        return self.config.cell

    @property
    def dictionary(self) -> Tensor:
        """Phi, [M, K]."""
        raise NotImplementedError

    @property
    def log_sigma(self) -> Tensor:
        """Log standard deviation of the pixels, [M]."""
        raise NotImplementedError

    def flatten(self, x: Inputs) -> Tensor:
        """Inputs as the kernels take them: ``[..., *input_shape]`` to [..., M], or [..., M] as it is.

        A NumPy array of floating point numbers takes dtype and device of the model; every `x` of this class
        may be one.

        Raises:
            TypeError: for what is neither tensor nor array, for integers, and for a tensor of another dtype.
            ValueError: if the last dimensions are neither, or if there is no batch dimension.
        """
        shape, m = self.config.shape, self.config.n_inputs
        x = self._taken("x", x)
        if x.ndim > len(shape) and tuple(x.shape[x.ndim - len(shape) :]) == shape:
            return x.flatten(x.ndim - len(shape))
        if x.ndim > 1 and x.shape[-1] == m:
            return x
        raise ValueError(
            f"x: expected shape [..., {m}] or [..., {', '.join(map(str, shape))}], found {list(x.shape)}"
        )

    def _taken(self, name: str, value: Inputs) -> Tensor:
        """A tensor as it is; an array with dtype and device of the model."""
        own = self.dictionary
        tensor = as_tensor(name, value, own)
        return tensor.to(own.device) if isinstance(value, np.ndarray) else tensor

    def decode(self, latents: Inputs) -> Tensor:
        """Mean of the pixels for counts, rates or activated latents: [..., K] to [..., M].

        A model in half precision decodes in float32, as it infers.
        """
        latents, k = self._taken("latents", latents), self.config.n_latents
        if latents.ndim == 0 or latents.shape[-1] != k:
            raise ValueError(f"latents: expected shape [..., {k}], found {list(latents.shape)}")
        return checks.raised(latents) @ checks.raised(self.dictionary).T

    def _decode_rows(self, latents: Tensor) -> Tensor:
        """`decode` of [B, K] whose rows do not depend on B, on the CPU to the bit.

        A product of matrices may round otherwise for another number of rows (with MKL, rows of 1,000 and of
        parts of 7 or 333 differed), so every product here has one shape: blocks of rows, the last filled up
        with zeros, in one piece of memory. A traced graph, which is for any number of rows, has one product.
        """
        if latents.device.type != "cpu" or torch.compiler.is_compiling():
            return self.decode(latents)
        pixels = latents.new_empty(len(latents), self.config.n_inputs)
        dictionary = checks.raised(self.dictionary)
        block = latents.new_empty(DECODED_ROWS, self.config.n_latents)
        blocks = (torch.split(tensor, DECODED_ROWS) for tensor in (latents, pixels))
        for rows, decoded in zip(*blocks, strict=True):
            block[: len(rows)] = rows
            block[len(rows) :] = 0.0
            decoded.copy_((block @ dictionary.T)[: len(rows)])
        return pixels

    @torch.no_grad()
    def generate(
        self,
        n: int,
        *,
        seed: int | Tensor | None = None,
        sample_offset: int = 0,
        pixel_noise: bool = False,
    ) -> Tensor:
        """Samples from the model: latents from the learned prior of the first step, then the decoder.

        Like all noise of this package, that of a sample is a function of the seed and of the sample's index:
        batches that share a seed need their `sample_offset`, and then are the parts of one call.

        Args:
            n: number of samples.
            seed: of the noise; None: drawn from torch's generator of the model's device.
            sample_offset: index of the first sample.
            pixel_noise: add the decoder's Gaussian noise; False gives the mean of the pixels.

        Returns:
            ``[n, *input_shape]``.
        """
        n = whole("n", n)
        if n < 0:
            raise ValueError(f"n: expected at least 0, found {n}")
        pixel_noise = checks.flag("pixel_noise", pixel_noise)
        _, sample_offset = checks.stream(0, 1, sample_offset, n)
        seed = checks.seed(seed, self.dictionary.device)
        pixels = self._decode_rows(self._sample_prior(n, seed, sample_offset))
        if pixel_noise:
            stream = Stream(KIND_LOSS, sample_offset=sample_offset)
            pixels = pixels + PhiloxNoise(seed).normal(pixels, stream) * self.log_sigma.exp()
        return pixels.reshape(n, *self.config.shape)

    def _sample_prior(self, n: int, seed: Tensor, sample_offset: int) -> Tensor:
        """Latents of the prior of the first step, [n, K]."""
        raise NotImplementedError

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Writes ``model.safetensors`` and ``config.json``, each whole or not at all, to a folder."""
        checkpoint.save_model(folder, self.config, self.state_dict())

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Uploads the model, a card and its measures to the Hugging Face Hub.

        Args:
            repo_id: "user/name"; made where it is not there.
            options: ``metrics`` (an `ipvae.Evaluation`, or the file of ``ipvae eval --json``), ``dataset``,
                ``license``, ``private``, ``create_pr``, ``message``, ``token``; see `ipvae.interop.hub.push`.

        Returns:
            The address of the commit.

        Raises:
            ValueError: an argument is not as described.
            HubError: the Hub was not reached, or refuses.
            MissingExtra: huggingface_hub is not installed.
        """
        return hub.push(self, repo_id, **options)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | PathLike[str],
        *,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> Self:
        """Reads a model of this family, as `ipvae.load_model` does of any.

        Args:
            folder: what `save_pretrained` wrote, or the folder of a run (its ``model/``, or where training is
                not finished, ``checkpoints/last.ckpt``), or one of these files itself. Where nothing of that
                name is here, "user/name" is fetched from the Hugging Face Hub.
            device: where to put the model.
            revision: branch, tag or commit on the Hub; None: its newest.
            token: of the Hub; None: the one of ``hf auth login``, if any.

        Raises:
            CheckpointError: for files that are missing, damaged, from elsewhere, or of another family; a
                `HubError` where the Hub was not reached or has no such model.
            ValueError: a revision of a folder.
        """
        file = checkpoint.locate(hub.fetched(folder, revision=revision, token=token))
        if file is None:
            raise checkpoint.CheckpointError(
                f"{folder}: expected a folder with {checkpoint.WEIGHTS}, found none"
            )
        values, state = checkpoint.read_model(file)
        if values is None:
            raise checkpoint.CheckpointError(
                f"{file}: not a model of ipvae; from_released reads weights of the authors' code"
            )
        return cls.with_weights(cls.config_from(values, file), state, str(file)).to(device)

    @classmethod
    def config_from(cls, values: Mapping[str, Any], source: str | PathLike[str]) -> ModelConfig:
        """The configuration that a file holds; ``source`` is that file, for messages.

        Raises:
            CheckpointError: it is that of another family, or damaged.
        """
        if values.get("cell") != cls.config_class.cell:
            raise checkpoint.CheckpointError(
                f"{source}: expected {cls.__name__}, found a {values.get('cell')} model"
            )
        return checkpoint.config_of(cls.config_class, values, source)

    @classmethod
    def with_weights(cls, config: ModelConfig, state: Mapping[str, Any], name: str) -> Self:
        """A model of loaded weights; no memory is taken before they are known to fit the configuration.

        Raises:
            CheckpointError: they do not fit; ``name`` is where they come from.
        """
        with torch.device("meta"):
            model = cls(config)
        checkpoint.load_state(model, state, name)
        return model
