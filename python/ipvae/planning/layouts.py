"""The ways to lay a run out on devices, with time and memory of each; which is best for what."""

from __future__ import annotations

from dataclasses import dataclass

from ipvae_kernels import checks

from .costs import Costs, Run

# Times this near are one: what the model predicts is no better.
ALIKE = 1.05


@dataclass(frozen=True)
class Layout:
    """Replicas of the model, each shared by some devices.

    Attributes:
        replicas: of the model; rows are theirs.
        shards: devices that share the neurons of a replica.
        step: seconds of a step of inference of the whole batch.
        update: seconds of a training update.
        bytes: of a device, in inference.
        training_bytes: in training.
        fits: whether inference fits a device's memory, as far as it is known.
        training_fits: whether training does.
        predicted: whether it lies outside of what was measured.
    """

    replicas: int
    shards: int
    step: float
    update: float
    bytes: float
    training_bytes: float
    fits: bool
    training_fits: bool
    predicted: bool

    @property
    def name(self) -> str:
        """As "data x model"."""
        return f"{self.replicas} x {self.shards}"


def layouts(
    costs: Costs, features: int, inputs: int, batch: int, devices: int, *, steps: int = 16, rate: float = 0.1,
    per_host: int = 1,
) -> list[Layout]:  # fmt: skip
    """Every layout of a run on some devices, the best first.

    What fits in training comes before what fits in inference alone, and that before what does not fit; then
    the faster is better, and of those within 5 % the one with fewer shards, then with fewer devices.

    Args:
        costs: of a device.
        features: K.
        inputs: M.
        batch: B, rows of all replicas.
        devices: how many there are; layouts use all of them, or one alone.
        steps: T of a training update.
        rate: mean count of a neuron and step.
        per_host: processes that read the same memory: the cores in use of a CPU, 1 of a GPU.

    Raises:
        ValueError: a number is out of range.
    """
    devices = checks.integer("devices", devices, 1, 2**20)
    steps = checks.integer("steps", steps, 1, 2**31)
    found = [_layout(costs, features, inputs, batch, 1, 1, steps, rate, 1)]
    for shards in range(1, devices + 1):
        if (
            devices > 1
            and devices % shards == 0
            and 4 * shards <= features + 3
            and devices // shards <= batch
        ):
            replicas = devices // shards
            found.append(_layout(costs, features, inputs, batch, replicas, shards, steps, rate, per_host))

    def room(layout: Layout) -> tuple[bool, bool]:
        return not layout.training_fits, not layout.fits

    found.sort(key=lambda layout: (*room(layout), layout.step))
    alike = [x for x in found if room(x) == room(found[0]) and x.step <= ALIKE * found[0].step]
    best = min(alike, key=lambda layout: (layout.shards, layout.replicas))
    return [best, *(layout for layout in found if layout is not best)]


def _layout(
    costs: Costs, features: int, inputs: int, batch: int, replicas: int, shards: int, steps: int, rate: float,
    per_host: int,
) -> Layout:  # fmt: skip
    own = Run(
        -(-batch // replicas), -(-features // shards), inputs, rate, shards, min(replicas * shards, per_host)
    )
    update = costs.training_seconds(own, steps)
    if replicas > 1:  # the gradients of this device's neurons, summed over the replicas
        update += costs.all_reduce_seconds(replicas, own.features * inputs)
    needed, training = costs.inference_bytes(own), costs.training_bytes(own, steps)
    room = float("inf") if costs.memory is None else costs.memory / own.neighbours
    return Layout(
        replicas, shards, costs.seconds(own), update, needed, training, needed <= room, training <= room,
        costs.is_prediction(own),
    )  # fmt: skip


def advice(found: list[Layout], batch: int) -> str:
    """Which layout is the answer, in a sentence."""
    alone = next(layout for layout in found if layout.replicas * layout.shards == 1)
    best = found[0]
    if not best.fits:
        return "No layout fits: more devices, or fewer features."
    if best is alone:
        return "One device is the answer: more would not make it faster."
    gain = f"{alone.step / best.step:.1f} times as fast as one device"
    if best.shards == 1:
        return f"Data parallel is the answer ({best.name}): {gain}."
    rows = next((layout for layout in found if layout.shards == 1 and layout.replicas > 1), None)
    if rows is None:
        why = f"a batch of {batch} has too few rows for all devices"
    elif not (rows.fits and rows.training_fits):
        why = "a whole dictionary does not fit a device" + (" in training" if rows.fits else "")
    else:
        why = f"data parallel would take {rows.step / best.step:.2f} times as long"
    return f"Sharding pays ({best.name}): {gain}; {why}."
