#define IPVAE_TARGET cuda
#include "rollout_launch.cuh"

namespace ipvae::cuda {

void launch_gaussian(const RolloutKernel& k, void* workspace, const Launch& launch) {
    launch_rollout<GaussianLanes>(k, workspace, launch);
}

void launch_gaussian_grad(const RolloutGradKernel& g, void* workspace, const Launch& launch) {
    launch_rollout_grad<GaussianLanes>(g, workspace, launch);
}

}  // namespace ipvae::cuda
