// What the kernels of one instruction set offer to the dispatcher: plain structs of sizes and pointers, plain functions
// over a range of the work. No memory is allocated and no thread started behind this interface.
//
// float arrays are row-major and contiguous unless a stride is named.
#pragma once

#include <cstdint>

namespace ipvae {

struct PoissonArgs {
    int64_t n_rows, n_latents;
    uint64_t seed;
    uint32_t kind, inner, step, sample_offset, neuron_offset;  // which draw, see docs/randomness.md
    int estimator;
    float temperature, n_arrivals;
    const float* log_rate;  // [n_rows, n_latents]
    float* counts;          // [n_rows, n_latents]
    float* slopes;          // [n_rows, n_latents] or null for hard counts
};
// Neurons of a row drawn at a time, so that long rows are shared among threads and their lists stay in the L1 cache.
constexpr int64_t kPoissonChunk = 1024;

struct UpdateArgs {
    int64_t n_rows, n_latents;
    float learning_rate, leak, clamp_u, clamp_du;
    const float *log_rate, *log_rate_prior, *drive;  // [n_rows, n_latents]
    const float* inhibition;                         // [n_latents] exp(log_bias)
    float* out;                                      // [n_rows, n_latents]
};

struct UpdateGradArgs {
    UpdateArgs forward;                                      // out is not used
    const float* grad;                                       // [n_rows, n_latents]
    float *grad_log_rate, *grad_log_rate_prior, *grad_drive; // [n_rows, n_latents]
    float* partial;                                          // [n_groups, n_latents + 1] d log_bias, d log_lr
};
constexpr int64_t kUpdateGroup = 64;  // rows whose parameter gradients are summed into one partial

// The model of a rollout, and the states it keeps of a neuron; S below is their number.
enum CellKind : int {
    kPoissonCell,       // log rate
    kGaussianCell,      // mean and xi = log sigma
    kGaussianReluCell,  // the same, rectified before the decoder
};

struct RolloutArgs {
    int64_t n_steps, n_inner, n_rows, n_inputs, n_latents;
    uint64_t seed;
    uint32_t step, sample_offset;
    float learning_rate, leak, clamp_u, clamp_du, temperature, n_arrivals, log_normalizer;
    float learning_rate_xi, clamp_xi, clamp_dxi;  // of log sigma; Gaussian cells only
    int cell, estimator, kl;
    bool single_draw;

    const float* x;              // [n_rows, n_inputs], or with a stride one per step
    int64_t x_step;              // n_rows * n_inputs, or 0
    const float* encoder;        // dictionary [n_inputs, n_latents], packed
    const float* decoder;        // its transpose, packed
    bool draws_counts;           // what it decodes are integers; forward: the decoder is packed for them
    const float* precision;      // [padded n_inputs] exp(-2 log_sigma), 0 in the padding
    const float* inhibition;     // [padded n_latents] exp(log_bias), 0 in the padding
    const float* log_rate;       // [S, n_rows, n_latents]
    float* log_rate_out;         // [S, n_rows, n_latents]

    // Records of every record_every-th step, null where not wanted.
    int64_t record_every;
    float *recon, *kl_out, *squared_error, *spikes, *zeros;  // [records, n_rows]
    float* log_rates;                                        // [records, S, n_rows, n_latents]
    float *counts, *reconstruction;                          // [records, n_rows, n_latents or n_inputs]

    // The trajectory, null in inference.
    float* path;          // [n_steps * n_inner + 1, S, n_rows, n_latents]
    float* drawn;         // [n_steps, n_inner + 1, n_rows, n_latents]
    float* slopes;        // [n_steps, n_inner + 1, n_rows, n_latents]; Gaussian: standard normals
    float* errors;        // [n_steps, n_inner + 1, n_rows, n_inputs]
    float* drives;        // [n_steps * n_inner, n_rows, n_latents]
};

// Rows whose parameter gradients are summed into one partial, whatever the tile and the thread they belong to.
constexpr int64_t kRowBlock = 4;

struct RolloutGradArgs {
    RolloutArgs forward;         // with the trajectory filled in
    const float *grad_recon, *grad_kl;  // [n_steps, n_rows]
    const float* grad_log_rate;  // [S, n_rows, n_latents] of the final state
    float* grad_log_rate_in;     // [S, n_rows, n_latents] of the initial state
    float* grad_x;               // as x
    float* grad_errors;          // [n_steps, n_inner + 1, n_rows, n_inputs] scratch
    float* grad_drives;          // [n_steps * n_inner, n_rows, n_latents] scratch
    float* partial;              // [row blocks, n_inputs + n_latents + S] d log_sigma, d log_bias, d log_lr
    float* grad_dictionary;      // [n_inputs, n_latents]
};

// How a matrix B [depth, n] lies in memory, and for what rows it is packed.
enum Packing : int {
    kPlain,                // [depth, n], for any rows
    kTransposed,           // [n, depth], for any rows
    kTransposedForCounts,  // [n, depth], for counts
};

// Work units: chunks of rows for poisson, rows for update, groups of rows for update_grad, row blocks for the rollouts,
// panels of columns for pack and dictionary_grad.
struct Kernels {
    const char* name;
    int64_t panel;
    int64_t (*poisson_scratch)();  // floats, per thread
    void (*poisson)(const PoissonArgs&, int64_t begin, int64_t end, float* scratch);
    void (*update)(const UpdateArgs&, int64_t begin, int64_t end);
    void (*update_grad)(const UpdateGradArgs&, int64_t begin, int64_t end);
    int64_t (*panel_floats)(int64_t depth, Packing packing);  // of a packed matrix
    void (*pack)(const float* matrix, int64_t depth, int64_t n, Packing packing, float* packed, int64_t begin, int64_t end);
    bool (*draws_counts)(const RolloutArgs&);  // whether what it decodes are integers
    int64_t (*rollout_scratch)(const RolloutArgs&);
    void (*rollout)(const RolloutArgs&, int64_t begin, int64_t end, float* scratch);
    int64_t (*rollout_grad_scratch)(const RolloutArgs&);
    void (*rollout_grad)(const RolloutGradArgs&, int64_t begin, int64_t end, float* scratch);
    int64_t (*dictionary_grad_scratch)(const RolloutArgs&, int64_t n_panels);
    void (*dictionary_grad)(const RolloutGradArgs&, int64_t begin, int64_t end, float* scratch);
    bool (*all_below)(const float* data, int64_t n, float limit);
    // For tests: functions of csrc/common at n floats, and Philox4x32 with 7 or 10 rounds, [4] words from a scalar and
    // [4] from a vector evaluation.
    void (*evaluate)(const char* function, const float* in, float* out, int64_t n);
    void (*philox)(const uint32_t* counter, const uint32_t* key, int rounds, uint32_t* out);
};

}  // namespace ipvae
