// The CUDA half of the compiled module, with the launchers of csrc/cuda replaced by an emulation on the host.
#define IPVAE_TARGET emulated

#include <algorithm>

#include "emulation.h"

#include "../../../csrc/bindings/cuda.h"
#include "../../../csrc/cuda/pointwise.cuh"
#include "../../../csrc/cuda/rollout/forward.cuh"
#include "../../../csrc/cuda/rollout/backward.cuh"

namespace ipvae {

static emulated::Order order = emulated::Order::forwards;

namespace cuda {

DeviceLimits device_limits(int) { return {132, 232448, 16}; }  // of an H100

void poisson(const PoissonArgs& args, const uint64_t* seed, const Launch&) {
    int64_t n = args.n_rows * emulated::quads_of(args.n_latents);
    for (int64_t i = 0; i < n; ++i) emulated::poisson_quad(args, *seed, i);
}

static emulated::CellConstants constants_of(const UpdateArgs& args, const float* log_lr) {
    return {emulated::exp(*log_lr), args.leak, args.decay, args.clamp_u, args.clamp_du};
}

void update(const UpdateArgs& args, const float* log_lr, const Launch&) {
    int64_t n = args.n_rows * emulated::quads_of(args.n_latents);
    for (int64_t i = 0; i < n; ++i) emulated::update_quad(args, constants_of(args, log_lr), i);
}

int64_t update_grad_partials(const UpdateArgs& args) {
    return emulated::update_groups(args) * (args.n_latents + emulated::update_stretches(args));
}

void update_grad(const UpdateGradArgs& args, const float* log_lr, const Launch&) {
    int64_t n = emulated::update_groups(args.forward) * emulated::update_stretches(args.forward);
    emulated::CellConstants constants = constants_of(args.forward, log_lr);
    if (n == 0) return;
    emulated::launch_blocks(kBlockTeam, 1, 0, 1, emulated::kUpdateGradShared * 4, order, [&](emulated::Thread& thread) {
        for (int64_t block = 0; block < n; ++block) emulated::update_grad_block(args, constants, block, thread);
    });
}

static emulated::RolloutKernel make_kernel(const RolloutArgs& args, const Parameters& p, const uint64_t* seed,
                                           const Plan& plan, void* workspace) {
    int64_t floats = plan.teams * plan.team * plan.workspace;
    float* end = reinterpret_cast<float*>(static_cast<char*>(workspace) + plan.workspace_bytes);
    std::fill(end - floats, end, NAN);
    return {args, plan, seed, p.dictionary, p.log_sigma, p.log_bias, p.log_lr, end - floats};
}

static emulated::RolloutGradKernel make_grad_kernel(const emulated::RolloutKernel& forward, const RolloutGradArgs& g) {
    return {forward, g.grad_recon, g.grad_kl, g.grad_log_rate, g.grad_log_rate_in, g.grad_x, g.grad_errors, g.grad_drives,
            g.partial};
}

// Teams from `first` on.
template <template <class, int, class> class Driver, class Kernel>
static void launch(const Kernel& k, const Plan& plan, int cell, int64_t first = 0) {
    emulated::launch_blocks(plan.kind, plan.team, first, plan.teams, plan.shared_bytes, order, [&](emulated::Thread& thread) {
        using emulated::GaussianLanes, emulated::PoissonLanes, emulated::Thread;
        by_cell(
            cell,
            [&] { plan.rows == 8 ? Driver<PoissonLanes, 8, Thread>(k, thread).run() : Driver<PoissonLanes, 16, Thread>(k, thread).run(); },
            [&] { plan.rows == 8 ? Driver<GaussianLanes, 8, Thread>(k, thread).run() : Driver<GaussianLanes, 16, Thread>(k, thread).run(); });
    });
}

void rollout(const RolloutArgs& args, const Parameters& parameters, const uint64_t* seed, const Plan& plan,
             void* workspace, const Launch&) {
    if (args.n_rows) launch<emulated::Forward>(make_kernel(args, parameters, seed, plan, workspace), plan, args.cell);
}

void rollout_grad(const RolloutGradArgs& g, const Parameters& parameters, const Plan& plan, void* workspace,
                  const Launch&) {
    if (g.forward.n_rows == 0) return;
    launch<emulated::Backward>(make_grad_kernel(make_kernel(g.forward, parameters, nullptr, plan, workspace), g), plan,
                               g.forward.cell);
}

// The last tile of a batch alone, by a team of its own: of a batch too large to be there as a whole.
class LastTile {
  public:
    LastTile(const RolloutArgs& args, const Parameters& p, const uint64_t* seed, Plan plan)
        : own_(static_cast<size_t>(plan.team * plan.workspace), NAN) {
        plan.teams = plan.tiles;
        // The workspace begins with those of the other teams, of which there is nothing.
        int64_t before = (plan.teams - 1) * plan.team * plan.workspace * static_cast<int64_t>(sizeof(float));
        auto* workspace = reinterpret_cast<float*>(reinterpret_cast<uintptr_t>(own_.data()) - static_cast<uintptr_t>(before));
        kernel = {args, plan, seed, p.dictionary, p.log_sigma, p.log_bias, p.log_lr, workspace};
    }
    template <template <class, int, class> class Driver, class Kernel> void run(const Kernel& k) const {
        launch<Driver>(k, kernel.plan, kernel.args.cell, kernel.plan.teams - 1);
    }

    emulated::RolloutKernel kernel;

  private:
    std::vector<float> own_;
};

}  // namespace cuda
}  // namespace ipvae

PYBIND11_MODULE(emulated, m) {
    ipvae::bind_structs(m);
    ipvae::bind_cuda(m);
    m.attr("cuda") = "emulated";
    m.def("set_order", [](int order) { ipvae::order = static_cast<ipvae::emulated::Order>(order); });
    m.def("swizzled", [](int pixel, int neuron) { return ipvae::emulated::ResidentPhi::swizzled(pixel, neuron); });
    // Quads [begin, end) of a draw: those far into a tensor too large to draw as a whole.
    m.def("poisson_quads", [](const ipvae::PoissonArgs& args, uint64_t seed, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) ipvae::emulated::poisson_quad(args, seed, i);
    });
    m.def("update_quads", [](const ipvae::UpdateArgs& args, uintptr_t log_lr, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            ipvae::emulated::update_quad(args, ipvae::cuda::constants_of(args, ipvae::pointer<const float>(log_lr)), i);
    });
    // The last tile of a rollout, and of its gradient.
    m.def("rollout_last_tile", [](const ipvae::RolloutArgs& args, const ipvae::Parameters& p, uint64_t seed,
                                  const ipvae::Plan& plan) {
        ipvae::cuda::LastTile tile(args, p, &seed, plan);
        tile.run<ipvae::emulated::Forward>(tile.kernel);
    });
    m.def("rollout_grad_last_tile", [](const ipvae::RolloutGradArgs& g, const ipvae::Parameters& p,
                                       const ipvae::Plan& plan) {
        ipvae::cuda::LastTile tile(g.forward, p, nullptr, plan);
        tile.run<ipvae::emulated::Backward>(ipvae::cuda::make_grad_kernel(tile.kernel, g));
    });
}
