// The kernels of one instruction set. CMake compiles this file once per set, with IPVAE_TARGET naming it and the
// compiler's flags for it. Nothing here may instantiate a template of the standard library: the linker would merge it
// with the other sets' copies.
#include "cells/gaussian.h"
#include "cells/poisson.h"
#include "rollout/backward.h"
#include "rollout/dictionary_grad.h"
#include "rollout/forward.h"

IPVAE_BEGIN

// ---- poisson ------------------------------------------------------------------------------------------------------

constexpr int kUnits = 8;  // chunks drawn together

static int64_t poisson_scratch() {
    return kUnits * (3 + Rates::arrays) * kPoissonChunk + draw_scratch(kUnits, kPoissonChunk);
}

static void poisson(const PoissonArgs& a, int64_t begin, int64_t end, float* memory) {
    int64_t chunks = (a.n_latents + kPoissonChunk - 1) / kPoissonChunk;
    int64_t np = chunks > 1 ? kPoissonChunk : padded(a.n_latents), size = kUnits * np;
    Scratch scratch{memory};
    float *u = scratch.take(size), *counts = scratch.take(size), *slopes = scratch.take(size);
    float* rates_memory = scratch.take(size * Rates::arrays);
    auto rates = [&](int i) {
        float* of_unit = rates_memory + i * Rates::arrays * np;
        return Rates{of_unit, of_unit + np};
    };
    DrawOptions options{(Estimator)a.estimator, a.temperature, a.n_arrivals};
    Stream stream = make_stream(a.seed, a.kind, a.inner, a.step, a.sample_offset);
    for (int64_t unit = begin; unit < end; unit += kUnits) {
        int units = (int)(end - unit < kUnits ? end - unit : kUnits);
        auto row = [&](int i) { return (unit + i) / chunks; };
        auto first = [&](int i) { return (unit + i) % chunks * kPoissonChunk; };
        auto width = [&](int i) { return a.n_latents - first(i) < np ? a.n_latents - first(i) : np; };
        auto at = [&](int i) { return row(i) * a.n_latents + first(i); };
        // Whole chunks that lie side by side are drawn where they are: the copies were 18 % of a profile.
        bool in_place = width(units - 1) == np && at(units - 1) == at(0) + (units - 1) * np;
        for (int i = 0; i < units; ++i) {
            if (!in_place) load_rows(a.log_rate + at(i), 1, width(i), np, kFloor, u + i * np);
            rates_of(in_place ? a.log_rate + at(i) : u + i * np, np, options.hard(), rates(i));
        }
        draw(options, units, rates, [&](int i) { return a.neuron_offset + (uint32_t)first(i); },
             [&](int i) { return a.sample_offset + (uint32_t)row(i); }, in_place ? a.counts + at(0) : counts,
             in_place && a.slopes ? a.slopes + at(0) : slopes, np, stream, scratch.next);
        for (int i = 0; i < units && !in_place; ++i) {
            store_rows(counts + i * np, 1, width(i), np, a.counts + at(i));
            if (a.slopes) store_rows(slopes + i * np, 1, width(i), np, a.slopes + at(i));
        }
    }
}

// ---- update -------------------------------------------------------------------------------------------------------

static void update(const UpdateArgs& a, int64_t begin, int64_t end) {
    CellConstants cell{a.learning_rate, a.leak, a.decay, a.clamp_u, a.clamp_du};
    for (int64_t row = begin; row < end; ++row) {
        for (int64_t k = 0; k < a.n_latents; k += kWidth) {
            int64_t at = row * a.n_latents + k, n = a.n_latents - k;
            store_part(a.out + at, n,
                       update_log_rate(load_part(a.log_rate + at, n), load_part(a.log_rate_prior + at, n),
                                       load_part(a.drive + at, n), load_part(a.inhibition + k, n), cell));
        }
    }
}

static void update_grad(const UpdateGradArgs& g, int64_t begin, int64_t end) {
    const UpdateArgs& a = g.forward;
    CellConstants cell{a.learning_rate, a.leak, a.decay, a.clamp_u, a.clamp_du};
    for (int64_t group = begin; group < end; ++group) {
        float* partial = g.partial + group * (a.n_latents + 1);
        memset(partial, 0, (a.n_latents + 1) * sizeof(float));
        int64_t last = (group + 1) * kUpdateGroup < a.n_rows ? (group + 1) * kUpdateGroup : a.n_rows;
        vf log_lr{};
        for (int64_t row = group * kUpdateGroup; row < last; ++row) {
            for (int64_t k = 0; k < a.n_latents; k += kWidth) {
                int64_t at = row * a.n_latents + k, n = a.n_latents - k;
                vf inhibition = load_part(a.inhibition + k, n);
                UpdateGrad<vf> d = update_log_rate_grad(load_part(g.grad + at, n), load_part(a.log_rate + at, n),
                                                        load_part(a.log_rate_prior + at, n),
                                                        load_part(a.drive + at, n), inhibition, cell);
                store_part(g.grad_log_rate + at, n, d.u);
                store_part(g.grad_log_rate_prior + at, n, d.u_prior);
                store_part(g.grad_drive + at, n, d.drive);
                store_part(partial + k, n, load_part(partial + k, n) + d.inhibition * inhibition);
                log_lr = log_lr + d.log_lr;
            }
        }
        partial[a.n_latents] = sum(log_lr);
    }
}

// ---- rollout ------------------------------------------------------------------------------------------------------

static int64_t packed_floats(int64_t depth, Packing packing) {
    return packing == kTransposedForCounts ? counts_panel_floats(depth) : panel_floats(depth);
}

static void pack(const float* matrix, int64_t depth, int64_t n, Packing packing, float* packed, int64_t begin, int64_t end) {
    auto pack_one = packing == kTransposedForCounts ? pack_counts_panel : pack_panel;
    for (int64_t p = begin; p < end; ++p)
        pack_one(matrix, depth, n, packing != kPlain, p, packed + p * packed_floats(depth, packing));
}

static bool draws_counts(const RolloutArgs& a) {
    return a.cell == kPoissonCell && !a.expected && !uses_arrivals((Estimator)a.estimator);
}

static int64_t rollout_scratch(const RolloutArgs& a, int rows, bool alone) {
    return by_cell(
        a.cell, [&] { return forward_scratch<PoissonCell>(a, rows, alone); },
        [&] { return forward_scratch<GaussianCell>(a, rows, alone); });
}

static TeamFloats rollout_team_floats(const RolloutArgs& a, int rows) {
    return by_cell(
        a.cell, [&] { return team_floats<PoissonCell>(a, rows); }, [&] { return team_floats<GaussianCell>(a, rows); });
}

static bool rollout(const RolloutArgs& a, int64_t first, int rows, const Share& share, float* scratch) {
    auto tile = by_cell(a.cell, [] { return &rollout_tile<PoissonCell>; }, [] { return &rollout_tile<GaussianCell>; });
    return tile(a, first, rows, share, scratch);
}

static int64_t rollout_grad_scratch(const RolloutArgs& a, int rows) {
    return by_cell(
        a.cell, [&] { return backward_scratch<PoissonCell>(a, rows); }, [&] { return backward_scratch<GaussianCell>(a, rows); });
}

static int64_t rollout_grad_kept(const RolloutArgs& a) {
    return by_cell(a.cell, [&] { return backward_kept<PoissonCell>(a); }, [&] { return backward_kept<GaussianCell>(a); });
}

// Calls tile(first row, rows, what its row blocks keep) for the tiles, of so many rows, of a range of row blocks.
template <class Function>
static void for_grad_tiles(const RolloutArgs& a, int rows, int64_t begin, int64_t end, float* kept, Function tile) {
    int64_t last = end * kRowBlock < a.n_rows ? end * kRowBlock : a.n_rows, size = rollout_grad_kept(a);
    for (int64_t first = begin * kRowBlock; first < last; first += rows)
        tile(first, (int)(last - first < rows ? last - first : rows), kept + (first / kRowBlock - begin) * size);
}

static void rollout_grad(const RolloutGradArgs& g, int rows, int64_t begin, int64_t end, float* kept, float* scratch) {
    auto tile = by_cell(
        g.forward.cell, [] { return &rollout_grad_tile<PoissonCell>; }, [] { return &rollout_grad_tile<GaussianCell>; });
    for_grad_tiles(g.forward, rows, begin, end, kept,
                   [&](int64_t first, int of_tile, float* own) { tile(g, first, of_tile, own, scratch); });
}

static void rollout_grad_to_seam(const RolloutGradArgs& g, int64_t update, int rows, int64_t begin, int64_t end, float* kept,
                                 float* scratch) {
    auto tile = by_cell(
        g.forward.cell, [] { return &rollout_grad_seam<PoissonCell>; }, [] { return &rollout_grad_seam<GaussianCell>; });
    for_grad_tiles(g.forward, rows, begin, end, kept,
                   [&](int64_t first, int of_tile, float* own) { tile(g, update, first, of_tile, own, scratch); });
}

// ---- checks -------------------------------------------------------------------------------------------------------

static bool all_below(const float* data, int64_t n, float limit) {
    // Without their signs floats compare as their bits, infinite ones and then NaN above all.
    int32_t end = (int32_t)bits(limit);
    vi bad{};
    int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth) bad |= (vi)(bits(load(data + i)) & 0x7FFFFFFFu) >= vi{} + end;
    bool ok = !any(bad);
    for (; i < n; ++i) ok &= (int32_t)(bits(data[i]) & 0x7FFFFFFFu) < end;
    return ok;
}

template <class Function> static void map(const float* in, float* out, int64_t n, Function f) {
    for (int64_t i = 0; i < n; i += kWidth) store_part(out + i, n - i, f(load_part(in + i, n - i)));
}

static bool same(const char* a, const char* b) { return strcmp(a, b) == 0; }

static void evaluate(const char* function, const float* in, float* out, int64_t n) {
    if (same(function, "exp")) map(in, out, n, [](vf x) { return exp(x); });
    if (same(function, "expm1")) map(in, out, n, [](vf x) { return expm1(x); });
    if (same(function, "log")) map(in, out, n, [](vf x) { return log(x); });
    if (same(function, "soft_clamp")) map(in, out, n, [](vf x) { return soft_clamp(x, 10.f).value; });
    if (same(function, "soft_clamp_slope")) map(in, out, n, [](vf x) { return soft_clamp(x, 10.f).slope; });
    if (same(function, "sinpi")) map(in, out, n, [](vf x) { return sinpi(x); });
    if (same(function, "cospi")) map(in, out, n, [](vf x) { return cospi(x); });
    if (same(function, "kl_shape")) map(in, out, n, [](vf x) { return kl_shape(x); });
    if (same(function, "log_ratio_kl")) map(in, out, n, [](vf x) { return log_ratio_kl(x); });
    if (same(function, "tanh_clamp")) map(in, out, n, [](vf x) { return tanh_clamp(x, 7.f).value; });
    if (same(function, "tanh_clamp_slope")) map(in, out, n, [](vf x) { return tanh_clamp(x, 7.f).slope; });
    if (same(function, "normal_quantile")) map(in, out, n, [](vf x) { return normal_quantile(x); });
    // These three read the bits of `in` as Philox words.
    if (same(function, "uniform")) map(in, out, n, [](vf x) { return uniform<vf>(bits(x)); });
    if (same(function, "exponential")) map(in, out, n, [](vf x) { return exponential<vf>(bits(x)); });
    if (same(function, "normal")) map(in, out, n, [](vf x) { return normal<vf>(bits(x)); });
}

template <int kRounds> static void philox_both(const uint32_t* c, const uint32_t* k, uint32_t* out) {
    Words<uint32_t> one = philox<kRounds>(c[0], c[1], c[2], c[3], k[0], k[1]);
    vu zero{};
    Words<vu> many = philox<kRounds>(zero + c[0], zero + c[1], zero + c[2], zero + c[3], k[0], k[1]);
    for (int i = 0; i < 4; ++i) {
        out[i] = one.w[i];
        out[4 + i] = many.w[i][kWidth - 1];
    }
}

static void known_philox(const uint32_t* counter, const uint32_t* key, int rounds, uint32_t* out) {
    rounds == 7 ? philox_both<7>(counter, key, out) : philox_both<10>(counter, key, out);
}

#define IPVAE_STRING_(x) #x
#define IPVAE_STRING(x) IPVAE_STRING_(x)

extern const Kernels kernels;
const Kernels kernels = {
    IPVAE_STRING(IPVAE_TARGET), kPanel, poisson_scratch, poisson, update, update_grad, packed_floats,
    pack, draws_counts, kReadsDictionary, kPackedBytes, kNeuronBlock, kTileRows, kTeamRows, kWideRows, rollout_scratch, rollout_team_floats, rollout, rollout_grad_kept,
    rollout_grad_scratch, rollout_grad, rollout_grad_to_seam, grad_product_scratch, dictionary_grad_panels, all_below, evaluate, known_philox,
};

IPVAE_END
