// Counts from log rates, and the pointwise half of a step, for tensors of any size.
//
// Floors for 10^6 elements on an H100 (3.35 TB/s; 132 SMs, 128 lanes, 1.7 GHz; arithmetic on paper, not measured):
//   poisson, hard: 8 bytes each, 2.4 us; some 120 instructions each, 4.2 us: bound by issue.
//   update: 16 bytes each, 4.8 us.   update_grad: 28 bytes each, 8.4 us.   Both bound by bandwidth.
// Barriers: none, but two of the block in update_grad.
// Tried: nothing, for want of a GPU. Untried: two quads to a thread.
#pragma once

#include "draw.cuh"

#include "../common/cells/poisson.h"

IPVAE_BEGIN

IPVAE_HD int64_t quads_of(int64_t n) { return (n + 3) / 4; }

// The quad of a matrix that number `i` means: its row and first column.
struct QuadAt {
    int64_t row, column, at, valid;

    IPVAE_DEVICE QuadAt(int64_t i, int64_t n_columns) {
        int64_t per_row = quads_of(n_columns);
        row = i / per_row;
        column = 4 * (i - row * per_row);
        at = row * n_columns + column;
        valid = n_columns - column;
    }
};

IPVAE_DEVICE void poisson_quad(const PoissonArgs& a, uint64_t seed, int64_t i) {
    QuadAt q(i, a.n_latents);
    Quad u = load_quad(a.log_rate + q.at, q.valid), rate, count, slope;
    IPVAE_UNROLL for (int j = 0; j < 4; ++j) rate.v[j] = rate_of(u.v[j]);
    Stream stream = make_stream(seed, a.kind, a.inner, a.step, a.sample_offset + static_cast<uint32_t>(q.row));
    DrawOptions options{static_cast<Estimator>(a.estimator), a.temperature, a.n_arrivals};
    draw_counts(options, stream, a.neuron_offset + static_cast<uint32_t>(q.column), rate, count, slope);
    store_quad(a.counts + q.at, q.valid, count);
    if (a.slopes) store_quad(a.slopes + q.at, q.valid, slope);
}

IPVAE_DEVICE void update_quad(const UpdateArgs& a, const CellConstants& constants, int64_t i) {
    QuadAt q(i, a.n_latents);
    Quad u = load_quad(a.log_rate + q.at, q.valid), prior = load_quad(a.log_rate_prior + q.at, q.valid);
    Quad drive = load_quad(a.drive + q.at, q.valid), bias = load_quad(a.inhibition + q.column, q.valid), out;
    IPVAE_UNROLL for (int j = 0; j < 4; ++j)
        out.v[j] = update_log_rate(u.v[j], prior.v[j], drive.v[j], bias.v[j], constants);
    store_quad(a.out + q.at, q.valid, out);
}

// ---- update_grad: a block takes a group of rows and a stretch of columns ------------------------------------------

constexpr int kGradQuads = 32;                      // quads of columns of a block: one lane each
constexpr int kGradRows = kThreads / kGradQuads;    // rows at a time: one warp each
constexpr int64_t kGradColumns = 4 * kGradQuads;
constexpr int64_t kUpdateGradShared = kGradRows * (kGradColumns + 1);  // floats

IPVAE_HD int64_t update_groups(const UpdateArgs& a) { return (a.n_rows + kUpdateGroup - 1) / kUpdateGroup; }
IPVAE_HD int64_t update_stretches(const UpdateArgs& a) { return (a.n_latents + kGradColumns - 1) / kGradColumns; }

// partial: [groups, n_latents] of log_bias, then [groups, stretches] of log_lr.
template <class Thread>
IPVAE_DEVICE void update_grad_block(const UpdateGradArgs& g, const CellConstants& constants, int64_t block, Thread& thread) {
    const UpdateArgs& a = g.forward;
    float* shared = reinterpret_cast<float*>(thread.shared);  // [kGradRows, kGradColumns], then [kGradRows]
    int64_t group = block / update_stretches(a), stretch = block % update_stretches(a);
    int64_t column = stretch * kGradColumns + 4 * thread.lane(), valid = a.n_latents - column;
    int64_t end = (group + 1) * kUpdateGroup < a.n_rows ? (group + 1) * kUpdateGroup : a.n_rows;
    Quad bias_sum = quad(0.f);
    float log_lr = 0.f;
    if (valid > 0) {
        Quad bias = load_quad(a.inhibition + column, valid);
        for (int64_t row = group * kUpdateGroup + thread.warp(); row < end; row += kGradRows) {
            int64_t at = row * a.n_latents + column;
            Quad grad = load_quad(g.grad + at, valid), u = load_quad(a.log_rate + at, valid);
            Quad prior = load_quad(a.log_rate_prior + at, valid), drive = load_quad(a.drive + at, valid);
            Quad to_u, to_prior, to_drive;
            IPVAE_UNROLL for (int j = 0; j < 4; ++j) {
                UpdateGrad<float> d =
                    update_log_rate_grad(grad.v[j], u.v[j], prior.v[j], drive.v[j], bias.v[j], constants);
                to_u.v[j] = d.u;
                to_prior.v[j] = d.u_prior;
                to_drive.v[j] = d.drive;
                bias_sum.v[j] += d.inhibition * bias.v[j];
                log_lr += j < valid ? d.log_lr : 0.f;
            }
            store_quad(g.grad_log_rate + at, valid, to_u);
            store_quad(g.grad_log_rate_prior + at, valid, to_prior);
            store_quad(g.grad_drive + at, valid, to_drive);
        }
    }
    *reinterpret_cast<Quad*>(shared + thread.warp() * kGradColumns + 4 * thread.lane()) = bias_sum;
    log_lr = thread.sum(log_lr);
    if (thread.lane() == 0) shared[kGradRows * kGradColumns + thread.warp()] = log_lr;
    thread.sync_block();
    for (int64_t i = thread.index(); i < kGradColumns; i += Thread::kCount) {
        if (stretch * kGradColumns + i >= a.n_latents) continue;
        float sum = 0.f;
        for (int r = 0; r < kGradRows; ++r) sum += shared[r * kGradColumns + i];
        g.partial[group * a.n_latents + stretch * kGradColumns + i] = sum;
    }
    if (thread.index() == 0) {
        float sum = 0.f;
        for (int r = 0; r < kGradRows; ++r) sum += shared[kGradRows * kGradColumns + r];
        g.partial[update_groups(a) * a.n_latents + block] = sum;
    }
    thread.sync_block();  // before the next block of the stride writes
}

IPVAE_END
