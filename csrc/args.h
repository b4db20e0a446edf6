// What the kernels of both devices take: plain structs of sizes, constants and pointers. No memory is owned here.
//
// float arrays are row-major and contiguous unless a stride is named. S is the number of states of the cell.
#pragma once

#include <cstdint>

namespace ipvae {

struct PoissonArgs {
    int64_t n_rows, n_latents;
    uint64_t seed;
    uint32_t kind, inner, step;             // which draw, see common/schedule.h
    uint32_t sample_offset, neuron_offset;  // global indices of the first row and, a multiple of 4, of the first neuron
    int estimator;
    float temperature, n_arrivals;
    const float* log_rate;  // [n_rows, n_latents]
    float* counts;          // [n_rows, n_latents]
    float* slopes;          // [n_rows, n_latents] or null for hard counts
};
struct UpdateArgs {
    int64_t n_rows, n_latents;
    float learning_rate, leak, decay, clamp_u, clamp_du;
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

struct RolloutArgs {
    int64_t n_steps, n_inner, n_rows, n_inputs, n_latents;
    uint64_t seed;
    uint32_t step, sample_offset, neuron_offset;
    float learning_rate, leak, decay, clamp_u, clamp_du, temperature, n_arrivals, log_normalizer;
    float learning_rate_xi, clamp_xi, clamp_dxi;  // of log sigma; Gaussian cells only
    int cell, estimator, kl;
    bool single_draw;
    bool expected;  // updates are driven by rates in place of counts; Poisson cells only

    const float* x;              // [n_rows, n_inputs], or with a stride one per step
    int64_t x_step;              // n_rows * n_inputs, or 0
    const float* encoder;        // dictionary [n_inputs, n_latents], packed
    const float* decoder;        // its transpose, packed
    const float* dictionary;     // [n_inputs, n_latents] as it is, read block by block where nothing is packed, or
    const uint16_t* dictionary_bf16;  // the same in bfloat16; CPU only
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

// The parameters of a rollout as a user has them; RolloutArgs takes derived, packed forms on the CPU.
struct Parameters {
    const float* dictionary;  // [n_inputs, n_latents]
    const uint16_t* dictionary_bf16;  // the same in bfloat16, instead; CPU only
    const float* log_sigma;   // [n_inputs]
    const float* log_bias;    // [n_latents]
    const float* log_lr;      // [S]: one number for each state of the cell
};
struct ParameterGrads {
    float *dictionary, *log_sigma, *log_bias, *log_lr;
};

}  // namespace ipvae
