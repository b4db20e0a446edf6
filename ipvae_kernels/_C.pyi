"""Compiled kernels. Addresses are of float32 arrays; csrc/{cpu/kernels,cuda/cuda}.h say their shapes."""

from collections.abc import Callable

compiler: str
cuda: str | None
sources: str
estimators: tuple[str, ...]
half_widths: tuple[float | None, ...]
kls: tuple[str, ...]
cells: tuple[str, ...]

def instruction_sets() -> list[str]: ...
def instruction_set() -> str: ...
def set_instruction_set(name: str) -> None: ...
def all_below(data: int, n: int, limit: float, n_threads: int) -> bool: ...
def evaluate(function: str, input: int, output: int, n: int) -> None: ...
def philox(counter: list[int], key: list[int], rounds: int) -> list[int]: ...

class PoissonArgs:
    n_rows: int
    n_latents: int
    seed: int
    kind: int
    inner: int
    step: int
    sample_offset: int
    neuron_offset: int
    estimator: int
    temperature: float
    n_arrivals: float
    log_rate: int
    counts: int
    slopes: int

def poisson(args: PoissonArgs, n_threads: int) -> None: ...

class UpdateArgs:
    n_rows: int
    n_latents: int
    learning_rate: float
    leak: float
    decay: float
    clamp_u: float
    clamp_du: float
    log_rate: int
    log_rate_prior: int
    drive: int
    inhibition: int
    out: int

def update(args: UpdateArgs, n_threads: int) -> None: ...

class UpdateGradArgs:
    forward: UpdateArgs
    grad: int
    grad_log_rate: int
    grad_log_rate_prior: int
    grad_drive: int
    partial: int

def update_grad(args: UpdateGradArgs, grad_log_bias: int, grad_log_lr: int, n_threads: int) -> None: ...

class Parameters:
    dictionary: int
    dictionary_bf16: int
    log_sigma: int
    log_bias: int
    log_lr: int

class ParameterGrads:
    dictionary: int
    log_sigma: int
    log_bias: int
    log_lr: int

class RolloutArgs:
    n_steps: int
    n_inner: int
    n_rows: int
    n_inputs: int
    n_latents: int
    seed: int
    step: int
    sample_offset: int
    neuron_offset: int
    leak: float
    decay: float
    clamp_u: float
    clamp_du: float
    temperature: float
    n_arrivals: float
    clamp_xi: float
    clamp_dxi: float
    cell: int
    estimator: int
    kl: int
    single_draw: bool
    expected: bool
    x: int
    x_step: int
    log_rate: int
    log_rate_out: int
    record_every: int
    recon: int
    kl_out: int
    squared_error: int
    spikes: int
    zeros: int
    log_rates: int
    counts: int
    reconstruction: int
    path: int
    drawn: int
    slopes: int
    errors: int
    drives: int

    def __init__(self, of: RolloutArgs = ...) -> None: ...

class Prepared:
    bytes: int

    def __init__(
        self,
        parameters: Parameters,
        n_inputs: int,
        n_latents: int,
        cell: int,
        counts: bool,
        pack: bool,
        n_threads: int,
    ) -> None: ...

def packs(n_inputs: int, n_latents: int) -> bool: ...
def rollout_prepared(args: RolloutArgs, prepared: Prepared, n_threads: int) -> None: ...
def rollout(args: RolloutArgs, parameters: Parameters, n_threads: int) -> None: ...
def rollout_shared(
    args: RolloutArgs, parameters: Parameters, rows: int, n_threads: int, exchange: Callable[[int, int], None]
) -> None: ...
def shared_rows() -> int: ...

class RolloutGradArgs:
    forward: RolloutArgs
    grad_recon: int
    grad_kl: int
    grad_log_rate: int
    grad_log_rate_in: int
    grad_x: int
    grad_errors: int
    grad_drives: int
    partial: int

def rollout_grad(
    args: RolloutGradArgs, parameters: Parameters, grads: ParameterGrads, n_threads: int
) -> None: ...
def rollout_grad_shared(
    args: RolloutGradArgs,
    parameters: Parameters,
    grads: ParameterGrads,
    n_threads: int,
    exchange: Callable[[int, int], None],
) -> None: ...

class Launch:
    device: int
    stream: int

class DeviceLimits:
    sms: int
    shared: int
    max_cluster: int

class Plan:
    kind: int
    team: int
    rows: int
    resident: bool
    tiles: int
    teams: int
    slice: int
    inputs: int
    chunk: int
    shared_bytes: int
    workspace_bytes: int

def cuda_limits(device: int) -> DeviceLimits: ...
def cuda_plan(
    args: RolloutArgs, backward: bool, limits: DeviceLimits, kind: int, team: int, rows: int
) -> Plan: ...
def cuda_poisson(args: PoissonArgs, seed: int, launch: Launch) -> None: ...
def cuda_update(args: UpdateArgs, log_lr: int, launch: Launch) -> None: ...
def cuda_update_grad_partials(args: UpdateArgs) -> int: ...
def cuda_update_grad(args: UpdateGradArgs, log_lr: int, launch: Launch) -> None: ...
def cuda_rollout(
    args: RolloutArgs, parameters: Parameters, seed: int, plan: Plan, workspace: int, launch: Launch
) -> None: ...
def cuda_rollout_grad(
    args: RolloutGradArgs, parameters: Parameters, plan: Plan, workspace: int, launch: Launch
) -> None: ...
