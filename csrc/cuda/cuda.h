// The CUDA backend: launches the kernels on a device and stream of the caller. It allocates nothing and never waits, so
// that calls can be captured in a CUDA graph; seeds and parameters are read on the device.
//
// Errors of the CUDA runtime are thrown as std::runtime_error. Without nvcc, missing.cpp takes the place of the launchers.
#pragma once

#include <cstdint>

#include "../args.h"
#include "plan.h"

namespace ipvae::cuda {

// Where to run: a device by number, and a stream of it (cudaStream_t).
struct Launch {
    int device;
    void* stream;
};

DeviceLimits device_limits(int device);

// seed: on the device, like every array.
void poisson(const PoissonArgs& args, const uint64_t* seed, const Launch& launch);

void update(const UpdateArgs& args, const float* log_lr, const Launch& launch);

// Floats of args.partial: [groups, n_latents] gradients of log_bias, then those of log_lr; each to be summed.
int64_t update_grad_partials(const UpdateArgs& args);
void update_grad(const UpdateGradArgs& args, const float* log_lr, const Launch& launch);

// workspace: plan.workspace_bytes bytes.
void rollout(const RolloutArgs& args, const Parameters& parameters, const uint64_t* seed, const Plan& plan,
             void* workspace, const Launch& launch);

// args.grad_errors, grad_drives and partial are outputs, the last [tiles, n_inputs + n_latents + S team]: gradients of
// log_sigma and log_bias, and of log_lr by state and block, to be summed over tiles (and blocks). The dictionary's
// gradient is the caller's to form from them.
void rollout_grad(const RolloutGradArgs& args, const Parameters& parameters, const Plan& plan, void* workspace,
                  const Launch& launch);

}  // namespace ipvae::cuda
