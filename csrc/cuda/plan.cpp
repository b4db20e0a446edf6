#include "plan.h"

#include "../common/cells/cell.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace ipvae {
namespace {

int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// What a candidate costs a step, in nanoseconds. The constants are estimates from data sheets of an H100 (not measured):
// they need only rank the candidates.
double cost(const Plan& p, const DeviceLimits& device) {
    constexpr double kProducts = 250;  // multiply-adds of an SM per ns, three TF32 products to each of float32
    constexpr double kDraws = 0.5;     // draws with their update, of an SM per ns
    constexpr double kStream = 40;     // bytes of an SM per ns from L2
    double rows = p.rows, slice = static_cast<double>(p.slice), inputs = static_cast<double>(p.inputs);
    double waves = static_cast<double>(up(p.tiles * p.team, device.sms) / device.sms);
    double work = inputs * slice * rows * 7 / kProducts + rows * slice * 2 / kDraws;
    double streamed = p.resident ? 0 : 2 * inputs * slice * 4;
    for (int name : {kOperand, kGathered, kPartial, kProduct, kState})
        if (!p.place[name].shared) streamed += 4 * rows * (name == kGathered || name == kPartial ? 2 * inputs : 2 * slice);
    double meeting = p.kind == kBlockTeam ? 100 : p.kind == kClusterTeam ? 500 + 50 * p.team : 2500 + 10 * p.team;
    return waves * (work + streamed / kStream + 2 * meeting);
}

Plan candidate(const RolloutArgs& a, bool backward, const DeviceLimits& device, int kind, int team, int rows) {
    Plan p{};
    p.kind = kind;
    p.team = team;
    p.rows = rows;
    p.tiles = (a.n_rows + rows - 1) / rows;
    p.slice = up((a.n_latents + team - 1) / team, 32);
    p.inputs = up(a.n_inputs, 32);
    p.slice_stride = p.slice + 4;
    p.input_stride = p.inputs + 4;
    p.chunk = (p.inputs + team - 1) / team;
    // Teams of a cooperative launch all run at once, one block to an SM. Others wait for their turn: several to each SM
    // even out, and so many bound the workspace.
    int64_t at_once = kind == kGridTeam ? device.sms / team : 8 * device.sms / team;
    p.teams = std::max<int64_t>(1, std::min<int64_t>(p.tiles, at_once));

    auto exchanged = [&](int name) {
        return name == kGathered || name == kPartial || name == kInputSums || name == kLatentSums;
    };
    int64_t left = device.shared / static_cast<int64_t>(sizeof(float)), used = 0;
    auto place = [&](int name) {
        int64_t size = up(array_size(p, a, backward, name), 4);
        bool fits = size <= left && !(kind == kGridTeam && exchanged(name));
        if (fits) {
            p.place[name] = {used, true};
            used += size;
            left -= size;
        } else {
            p.place[name] = {p.workspace, false};
            p.workspace += size;
        }
    };
    // The dictionary's slice is read twice a step, everything else less: it goes first.
    p.resident = array_size(p, a, backward, kPhi) <= left;
    if (p.resident) place(kPhi);
    for (int name = kPhi + 1; name < kArrays; ++name) place(name);
    p.shared_bytes = used * static_cast<int64_t>(sizeof(float));
    p.workspace_bytes = up(p.teams * static_cast<int64_t>(sizeof(uint64_t)), 128) +
                        p.teams * team * p.workspace * static_cast<int64_t>(sizeof(float));
    return p;
}

}  // namespace

int64_t array_size(const Plan& p, const RolloutArgs& a, bool backward, int name) {
    int64_t rows = p.rows, states = states_of(a.cell);
    int64_t latents = rows * p.slice_stride, inputs = rows * p.input_stride;
    switch (name) {
        case kPhi: return p.inputs * p.slice;
        case kOperand: return backward ? latents : 2 * latents;
        case kGathered: return backward ? 2 * inputs : inputs;
        case kPartial: return backward ? inputs : 2 * inputs;
        case kFired: return backward ? 0 : 2 * rows * (1 + p.slice / 32);
        case kProduct: return backward ? 2 * latents : latents;
        case kState: return states * latents;
        case kPrior: return backward || a.n_inner > 1 ? states * latents : 0;
        case kMemo: return backward || states == 1 ? 0 : latents;
        case kInhibition: return p.slice;
        case kPrecision: return p.chunk;
        case kOffset: return backward ? 0 : p.chunk;
        case kInputSums: return backward ? 0 : p.team * rows * 2;
        case kLatentSums: return backward ? 0 : p.team * rows * 3;
        case kGradBias: return backward ? latents : 0;
        case kGradSigma: return backward ? rows * p.chunk : 0;
        case kGradX: return backward ? rows * p.chunk : 0;
        case kGradLr: return backward ? rows * states : 0;
        default: return 0;
    }
}

Plan make_plan(const RolloutArgs& args, bool backward, const DeviceLimits& device, int kind, int team, int rows) {
    if (device.sms < 1 || device.max_cluster < 1 || device.shared < 0)
        throw std::invalid_argument("plan: expected limits of a device, found none");
    Plan best{};
    double least = 0;
    auto offer = [&](int k, int t, int r) {
        if ((kind && kind != k) || (team && team != t) || (rows && rows != r)) return;
        Plan p = candidate(args, backward, device, k, t, r);
        double c = cost(p, device);
        if (best.kind != kAnyTeam && c >= least) return;
        best = p;
        least = c;
    };
    int64_t slices = up(args.n_latents, 32) / 32;
    for (int r : {8, 16}) {
        offer(kBlockTeam, 1, r);
        for (int t = 2; t <= device.max_cluster; t *= 2)
            if (t <= slices || t == team) offer(kClusterTeam, t, r);
        int64_t tiles = std::max<int64_t>(1, (args.n_rows + r - 1) / r);
        int64_t share = std::max<int64_t>(1, std::min(slices, device.sms / tiles));
        if (kind == kGridTeam || share > device.max_cluster) {
            int wanted = team ? team : static_cast<int>(share);
            if (wanted <= device.sms) offer(kGridTeam, wanted, r);
        }
    }
    if (best.kind == kAnyTeam)
        throw std::invalid_argument("plan: the device has no team of kind " + std::to_string(kind) + " with " +
                                    std::to_string(team) + " blocks and " + std::to_string(rows) + " rows");
    return best;
}

}  // namespace ipvae
