#define IPVAE_TARGET cuda
#include "launch.cuh"
#include "pointwise.cuh"

namespace ipvae::cuda {
namespace {

__device__ __forceinline__ int64_t first_item() { return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; }
__device__ __forceinline__ int64_t stride() { return static_cast<int64_t>(gridDim.x) * kThreads; }

__global__ void __launch_bounds__(kThreads) poisson_kernel(const __grid_constant__ PoissonArgs a, const uint64_t* seed) {
    int64_t n = a.n_rows * quads_of(a.n_latents);
    for (int64_t i = first_item(); i < n; i += stride()) poisson_quad(a, *seed, i);
}

__device__ __forceinline__ CellConstants constants_of(const UpdateArgs& a, const float* log_lr) {
    return {exp(*log_lr), a.leak, a.decay, a.clamp_u, a.clamp_du};
}

__global__ void __launch_bounds__(kThreads) update_kernel(const __grid_constant__ UpdateArgs a, const float* log_lr) {
    int64_t n = a.n_rows * quads_of(a.n_latents);
    CellConstants constants = constants_of(a, log_lr);
    for (int64_t i = first_item(); i < n; i += stride()) update_quad(a, constants, i);
}

__global__ void __launch_bounds__(kThreads) update_grad_kernel(const __grid_constant__ UpdateGradArgs g, const float* log_lr) {
    __shared__ alignas(16) float shared[kUpdateGradShared];
    Thread thread{};
    thread.shared = reinterpret_cast<char*>(shared);
    CellConstants constants = constants_of(g.forward, log_lr);
    int64_t n = update_groups(g.forward) * update_stretches(g.forward);
    for (int64_t block = blockIdx.x; block < n; block += gridDim.x) update_grad_block(g, constants, block, thread);
}

}  // namespace

void poisson(const PoissonArgs& args, const uint64_t* seed, const Launch& launch) {
    int64_t n = args.n_rows * quads_of(args.n_latents);
    if (n == 0) return;
    DeviceGuard guard(launch.device);
    poisson_kernel<<<grid_for(poisson_kernel, n, launch.device), kThreads, 0, stream_of(launch)>>>(args, seed);
    check(cudaGetLastError(), "launching poisson");
}

void update(const UpdateArgs& args, const float* log_lr, const Launch& launch) {
    int64_t n = args.n_rows * quads_of(args.n_latents);
    if (n == 0) return;
    DeviceGuard guard(launch.device);
    update_kernel<<<grid_for(update_kernel, n, launch.device), kThreads, 0, stream_of(launch)>>>(args, log_lr);
    check(cudaGetLastError(), "launching update");
}

int64_t update_grad_partials(const UpdateArgs& args) {
    return update_groups(args) * (args.n_latents + update_stretches(args));
}

void update_grad(const UpdateGradArgs& args, const float* log_lr, const Launch& launch) {
    int64_t n = update_groups(args.forward) * update_stretches(args.forward);
    if (n == 0) return;
    DeviceGuard guard(launch.device);
    int grid = grid_for(update_grad_kernel, n * kThreads, launch.device);
    update_grad_kernel<<<grid, kThreads, 0, stream_of(launch)>>>(args, log_lr);
    check(cudaGetLastError(), "launching update_grad");
}

}  // namespace ipvae::cuda
