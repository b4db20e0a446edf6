// Launches the rollout of one cell; rollout_poisson.cu and rollout_gaussian.cu, compiled side by side, each take one.
#pragma once

#include "launch.cuh"
#include "rollout/forward.cuh"
#include "rollout/backward.cuh"

namespace ipvae::cuda {

__device__ __forceinline__ Thread make_thread(const Plan& plan, void* counters) {
    extern __shared__ __align__(128) char dynamic_shared[];
    Thread thread{};
    thread.shared = dynamic_shared;
    thread.kind = plan.kind;
    thread.team = plan.team;
    // Blocks of a cluster have neighbouring numbers, so this is their rank in it too.
    thread.rank = static_cast<int>(blockIdx.x % static_cast<unsigned>(plan.team));
    thread.team_index = blockIdx.x / static_cast<unsigned>(plan.team);
    thread.counter = static_cast<unsigned long long*>(counters) + thread.team_index;
    return thread;
}

template <class Cell, int kRows>
__global__ void __launch_bounds__(kThreads, 1) rollout_kernel(const __grid_constant__ RolloutKernel k, void* counters) {
    Thread thread = make_thread(k.plan, counters);
    Forward<Cell, kRows, Thread>(k, thread).run();
}

template <class Cell, int kRows>
__global__ void __launch_bounds__(kThreads, 1) rollout_grad_kernel(const __grid_constant__ RolloutGradKernel g, void* counters) {
    Thread thread = make_thread(g.forward.plan, counters);
    Backward<Cell, kRows, Thread>(g, thread).run();
}

// One launch of a plan: teams as clusters, as a cooperative grid, or block by block.
template <class Kernel, class Args>
void launch_plan(Kernel kernel, const Args& args, const Plan& plan, void* workspace, const Launch& launch) {
    if (plan.shared_bytes > 48 * 1024)
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(plan.shared_bytes)),
              "asking for shared memory");
    int64_t blocks = plan.teams * plan.team;
    if (blocks > 0x7FFFFFFF) throw std::runtime_error("CUDA: a rollout of more than 2^31 blocks; split the batch");
    cudaLaunchAttribute attributes[1];
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = static_cast<size_t>(plan.shared_bytes);
    config.stream = stream_of(launch);
    config.attrs = attributes;
    if (plan.kind == kClusterTeam) {
        if (plan.team > 8)
            check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
                  "asking for a cluster of more than 8 blocks");
        attributes[0].id = cudaLaunchAttributeClusterDimension;
        attributes[0].val.clusterDim.x = static_cast<unsigned>(plan.team);
        attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
        config.numAttrs = 1;
    } else if (plan.kind == kGridTeam) {
        attributes[0].id = cudaLaunchAttributeCooperative;
        attributes[0].val.cooperative = 1;
        config.numAttrs = 1;
        // The barriers count up from zero.
        check(cudaMemsetAsync(workspace, 0, static_cast<size_t>(plan.teams) * sizeof(uint64_t), config.stream),
              "clearing the barriers");
    }
    check(cudaLaunchKernelEx(&config, kernel, args, workspace), "launching a rollout");
}

inline RolloutKernel make_kernel(const RolloutArgs& args, const Parameters& p, const uint64_t* seed, const Plan& plan,
                                 void* workspace) {
    int64_t floats = plan.teams * plan.team * plan.workspace;
    char* end = static_cast<char*>(workspace) + plan.workspace_bytes;
    return {args, plan, seed, p.dictionary, p.log_sigma, p.log_bias, p.log_lr, reinterpret_cast<float*>(end) - floats};
}

template <class Cell> void launch_rollout(const RolloutKernel& k, void* workspace, const Launch& launch) {
    launch_plan(k.plan.rows == 8 ? rollout_kernel<Cell, 8> : rollout_kernel<Cell, 16>, k, k.plan, workspace, launch);
}

template <class Cell> void launch_rollout_grad(const RolloutGradKernel& g, void* workspace, const Launch& launch) {
    const Plan& plan = g.forward.plan;
    launch_plan(plan.rows == 8 ? rollout_grad_kernel<Cell, 8> : rollout_grad_kernel<Cell, 16>, g, plan, workspace, launch);
}

void launch_gaussian(const RolloutKernel& k, void* workspace, const Launch& launch);
void launch_gaussian_grad(const RolloutGradKernel& g, void* workspace, const Launch& launch);

}  // namespace ipvae::cuda
