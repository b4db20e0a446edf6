// In place of the launchers where the package was built without nvcc.
#include <stdexcept>

#include "cuda.h"

namespace ipvae::cuda {
namespace {

[[noreturn]] void refuse() { throw std::runtime_error("CUDA was not compiled in: there was no nvcc when this was built"); }

}  // namespace

DeviceLimits device_limits(int) { refuse(); }
void poisson(const PoissonArgs&, const uint64_t*, const Launch&) { refuse(); }
void update(const UpdateArgs&, const float*, const Launch&) { refuse(); }
int64_t update_grad_partials(const UpdateArgs&) { refuse(); }
void update_grad(const UpdateGradArgs&, const float*, const Launch&) { refuse(); }
void rollout(const RolloutArgs&, const Parameters&, const uint64_t*, const Plan&, void*, const Launch&) { refuse(); }
void rollout_grad(const RolloutGradArgs&, const Parameters&, const Plan&, void*, const Launch&) { refuse(); }

}  // namespace ipvae::cuda
