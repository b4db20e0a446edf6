#define IPVAE_TARGET cuda
#include "rollout_launch.cuh"

namespace ipvae::cuda {

DeviceLimits device_limits(int device) {
    DeviceGuard guard(device);
    DeviceLimits limits{};
    limits.sms = attribute(cudaDevAttrMultiProcessorCount, device);
    limits.shared = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    limits.max_cluster = 1;
    if (attribute(cudaDevAttrClusterLaunch, device)) {
        // The largest cluster of blocks that take all shared memory; 8 is portable, 16 what Hopper can.
        auto kernel = rollout_kernel<PoissonLanes, 16>;
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(limits.shared)),
              "asking for shared memory");
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "asking for large clusters");
        cudaLaunchConfig_t config{};
        config.gridDim = dim3(16);
        config.blockDim = dim3(kThreads);
        config.dynamicSmemBytes = static_cast<size_t>(limits.shared);
        check(cudaOccupancyMaxPotentialClusterSize(&limits.max_cluster, kernel, &config), "asking for the largest cluster");
    }
    return limits;
}

void rollout(const RolloutArgs& args, const Parameters& parameters, const uint64_t* seed, const Plan& plan,
             void* workspace, const Launch& launch) {
    if (args.n_rows == 0) return;
    DeviceGuard guard(launch.device);
    RolloutKernel k = make_kernel(args, parameters, seed, plan, workspace);
    by_cell(args.cell, [&] { launch_rollout<PoissonLanes>(k, workspace, launch); },
            [&] { launch_gaussian(k, workspace, launch); });
}

void rollout_grad(const RolloutGradArgs& args, const Parameters& parameters, const Plan& plan, void* workspace,
                  const Launch& launch) {
    if (args.forward.n_rows == 0) return;
    DeviceGuard guard(launch.device);
    RolloutGradKernel g{make_kernel(args.forward, parameters, nullptr, plan, workspace), args.grad_recon, args.grad_kl,
                        args.grad_log_rate, args.grad_log_rate_in, args.grad_x, args.grad_errors, args.grad_drives,
                        args.partial};
    by_cell(args.forward.cell, [&] { launch_rollout_grad<PoissonLanes>(g, workspace, launch); },
            [&] { launch_gaussian_grad(g, workspace, launch); });
}

}  // namespace ipvae::cuda
