// A whole rollout, and its gradient, in one launch: what a block holds in either direction (forward.cuh, backward.cuh).
// plan.h says how blocks, teams and tiles divide the work.
//
// Floors for B 200, K 512, M 256, T 16, hard counts, on an H100 (3.35 TB/s; 495 TFLOP/s of dense TF32; 132 SMs, 128 lanes,
// 1.7 GHz; arithmetic on paper, not measured):
//   forward, bytes: 0.9 MB in; in training a trajectory of 46 MB out, 14 us; inference writes 0.4 MB.
//   forward, operations: per step two decodes of two TF32 products each and an encode of three, 5.9 GFLOP over 16 steps,
//     12 us; 3.3 million draws with half as many updates, some 400 instructions each, 46 us: bound by issue.
//   backward, bytes: 33 MB in, 13 MB out, 14 us. Operations: a decode and two encodes of three products each, 7.5 GFLOP,
//     15 us. The dictionary's gradient is formed by torch: 2.5 GFLOP of float32, 38 us at 67 TFLOP/s.
//   barriers: per state two of the team and two of the block, so 36 and 34 in either direction; forward a third of the
//     block where a draw that can be sparse has a row that is not.
// The products are counted as dense. A row that fires less than an eighth of its neurons is decoded event by event
// (dictionary.cuh); noting what fired takes some 10 instructions for 32 codes, where drawing them takes 400.
// The plan for it is clusters of 4 blocks to 8 rows: 100 blocks, each with a slice of 128 neurons in 128 KB.
//
// Both draws that see one state, the fresh one of step t and that of the update of step t + 1, are decoded together: this
// saves a barrier of the team per step, and a read of the dictionary. The backward does the same with the two encodes.
//
// Tried: nothing, for want of a GPU; results were compared on a host emulation only. Untried: wgmma; the Gram form; a
// transposed dictionary for the events of a slice that is not on chip; counts kept in 8 bits; a barrier of the team split into
// arrive and wait, with the draws of the next state in between; 512 threads.
#pragma once

#include "../../common/schedule.h"
#include "../cells.cuh"
#include "../dictionary.cuh"

IPVAE_BEGIN

struct RolloutKernel {
    RolloutArgs args;
    Plan plan;
    const uint64_t* seed;
    const float* dictionary;  // [n_inputs, n_latents]
    const float* log_sigma;   // [n_inputs]
    const float* log_bias;    // [n_latents]
    const float* log_lr;      // [S]
    float* workspace;         // [teams, team, plan.workspace]
};

struct RolloutGradKernel {
    RolloutKernel forward;
    const float *grad_recon, *grad_kl;  // [n_steps, n_rows]
    const float* grad_log_rate;         // [S, n_rows, n_latents]
    float* grad_log_rate_in;            // [S, n_rows, n_latents]
    float* grad_x;                      // as x
    float* grad_errors;                 // as errors
    float* grad_drives;                 // as drives
    float* partial;                     // [tiles, n_inputs + n_latents + S team] d log_sigma, d log_bias, d log_lr
};

// What forward and backward share: where a block stands, and its arrays.
template <class Cell, int kRows, class Thread> struct Block {
    const RolloutKernel& k;
    const RolloutArgs& a;
    const Plan& plan;
    Thread& thread;
    Cell cell;
    int64_t first;        // neuron of the slice
    int64_t width;        // neurons of the slice
    int64_t begin, end;   // inputs whose residual this block forms
    int64_t ls, lm;       // strides of rows of neurons and of inputs
    int64_t tile = 0;

    static constexpr int kWarps = Thread::kCount / 32;
    static constexpr int kStates = Cell::kStates;

    IPVAE_DEVICE Block(const RolloutKernel& kernel, Thread& t)
        : k(kernel), a(kernel.args), plan(kernel.plan), thread(t), cell(kernel.args, kernel.log_lr) {
        first = thread.rank * plan.slice;
        width = a.n_latents - first < plan.slice ? a.n_latents - first : plan.slice;
        width = width < 0 ? 0 : width;
        begin = thread.rank * plan.chunk;
        end = begin + plan.chunk < a.n_inputs ? begin + plan.chunk : a.n_inputs;
        ls = plan.slice_stride;
        lm = plan.input_stride;
    }

    IPVAE_DEVICE float* of(int name, int rank) const {
        const Place& place = plan.place[name];
        if (place.shared) return thread.in_shared_of(rank, reinterpret_cast<float*>(thread.shared) + place.offset);
        return k.workspace + (thread.team_index * plan.team + rank) * plan.workspace + place.offset;
    }
    IPVAE_DEVICE float* own(int name) const {
        const Place& place = plan.place[name];
        if (place.shared) return reinterpret_cast<float*>(thread.shared) + place.offset;
        return k.workspace + (thread.team_index * plan.team + thread.rank) * plan.workspace + place.offset;
    }

    template <class Function> IPVAE_DEVICE void each(int64_t n, Function function) const {
        for (int64_t i = thread.index(); i < n; i += Thread::kCount) function(i);
    }
    IPVAE_DEVICE void clear(int name, int64_t n) const {
        float* to = own(name);
        each(n, [&](int64_t i) { to[i] = 0.f; });
    }
    // function(row of the tile, row of the batch); a warp has a row to itself.
    template <class Function> IPVAE_DEVICE void each_row(Function function) const {
        for (int r = thread.warp(); r < kRows && tile * kRows + r < a.n_rows; r += kWarps) function(r, tile * kRows + r);
    }
    // function(neuron of the slice, how many there are from it on) for quads; a lane has a quad to itself.
    template <class Function> IPVAE_DEVICE void each_quad(Function function) const {
        for (int64_t n = 4 * thread.lane(); n < width; n += 128) function(n, width - n);
    }
    // function(input) for those of this block.
    template <class Function> IPVAE_DEVICE void each_input(Function function) const {
        for (int64_t p = begin + thread.lane(); p < end; p += 32) function(p);
    }

    // What does not change between tiles.
    IPVAE_DEVICE void load_constants() const {
        if (plan.resident) {
            float* phi = own(kPhi);
            each(plan.inputs * (plan.slice / 4), [&](int64_t i) {
                int p = static_cast<int>(i / (plan.slice / 4)), n = 4 * static_cast<int>(i % (plan.slice / 4));
                Quad q = quad(0.f);
                if (p < a.n_inputs && n < width) q = load_quad(k.dictionary + p * a.n_latents + first + n, width - n);
                IPVAE_UNROLL for (int j = 0; j < 4; ++j) phi[p * plan.slice + ResidentPhi::swizzled(p, n + j)] = q.v[j];
            });
        }
        float* inhibition = own(kInhibition);
        each(plan.slice, [&](int64_t i) { inhibition[i] = i < width ? exp(k.log_bias[first + i]) : 0.f; });
        float* precision = own(kPrecision);
        each(end - begin, [&](int64_t i) { precision[i] = exp(-2.f * k.log_sigma[begin + i]); });
    }

    // function(the slice of the dictionary)
    template <class Function> IPVAE_DEVICE void with_phi(Function function) const {
        if (plan.resident) {
            // Not by own(): the compiler must see that this lies in shared memory.
            const float* at = reinterpret_cast<const float*>(thread.shared) + plan.place[kPhi].offset;
            function(ResidentPhi{at, static_cast<int>(plan.slice)});
        } else {
            function(StreamedPhi{k.dictionary + first, a.n_latents, a.n_inputs, width});
        }
    }

    template <bool kDecode, int kColumns>
    IPVAE_DEVICE void multiply(const float* operand, float* out) const {
        int64_t m = kDecode ? plan.inputs : plan.slice, depth = kDecode ? plan.slice : plan.inputs;
        int64_t in = kDecode ? ls : lm, to = kDecode ? lm : ls;
        with_phi([&](const auto& phi) { product<kDecode, kColumns>(thread, phi, m, depth, operand, in, out, to); });
    }

    // The product with the whole dictionary, from the team's shares.
    IPVAE_DEVICE float whole(int64_t column, int64_t input) const {
        float sum = 0.f;
        for (int rank = 0; rank < plan.team; ++rank) sum += of(kPartial, rank)[column * lm + input];
        return sum;
    }
    // To every block's copy.
    IPVAE_DEVICE void gather(int64_t column, int64_t input, float value) const {
        for (int rank = 0; rank < plan.team; ++rank) of(kGathered, rank)[column * lm + input] = value;
    }

    // States of a quad: from [S, n_rows, n_latents] of the batch, and from [S, rows, slice] of the block.
    using State = typename Cell::State;
    IPVAE_DEVICE State load_batch(const float* from, int64_t row, int64_t n, int64_t valid) const {
        State s;
        IPVAE_UNROLL for (int i = 0; i < kStates; ++i)
            s.of[i] = load_quad(from + (i * a.n_rows + row) * a.n_latents + first + n, valid);
        return s;
    }
    IPVAE_DEVICE void store_batch(float* to, int64_t row, int64_t n, int64_t valid, const State& s) const {
        IPVAE_UNROLL for (int i = 0; i < kStates; ++i)
            store_quad(to + (i * a.n_rows + row) * a.n_latents + first + n, valid, s.of[i]);
    }
    IPVAE_DEVICE State load_own(int name, int64_t r, int64_t n) const {
        State s;
        IPVAE_UNROLL for (int i = 0; i < kStates; ++i)
            s.of[i] = *reinterpret_cast<const Quad*>(own(name) + (i * kRows + r) * ls + n);
        return s;
    }
    IPVAE_DEVICE void store_own(int name, int64_t r, int64_t n, const State& s) const {
        IPVAE_UNROLL for (int i = 0; i < kStates; ++i)
            *reinterpret_cast<Quad*>(own(name) + (i * kRows + r) * ls + n) = s.of[i];
    }
    IPVAE_DEVICE int64_t state_size() const { return kStates * a.n_rows * a.n_latents; }
};

// Zero beyond the last neuron: the products sum over the padding.
IPVAE_DEVICE Quad valid_part(const Quad& q, int64_t valid) {
    Quad out;
    IPVAE_UNROLL for (int j = 0; j < 4; ++j) out.v[j] = j < valid ? q.v[j] : 0.f;
    return out;
}

IPVAE_END
