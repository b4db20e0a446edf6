// What the kernels of one instruction set offer to the dispatcher: plain functions over a range of the work. No memory is
// allocated and no thread started behind this interface.
#pragma once

#include <cstdint>

#include "../args.h"

namespace ipvae {

// Neurons of a row drawn at a time, so that long rows are shared among threads and their lists stay in the L1 cache.
constexpr int64_t kPoissonChunk = 1024;

// Rows whose parameter gradients are summed into one partial, whatever the tile and the thread they belong to.
constexpr int64_t kRowBlock = 4;

// How a matrix B [depth, n] lies in memory, and for what rows it is packed.
enum Packing : int {
    kPlain,                // [depth, n], for any rows
    kTransposed,           // [n, depth], for any rows
    kTransposedForCounts,  // [n, depth], for counts
};

// What one thread does of a rollout: the blocks [begin, end) of the neurons. Alone (meet is null) it does all of them; in a
// team the threads share memory, and meet() returns once all have come: false where the call is to end. Where other
// processes have more neurons, exchange() adds up n numbers of all of them; the thread with the first block calls it.
struct Share {
    int64_t begin, end;
    float *blocks, *parts, *terms;
    bool (*meet)(void* team);
    void* team;
    void (*exchange)(void* team, float* sums, int64_t n);
};
struct TeamFloats {
    int64_t blocks, parts, terms;
};

// Work units: chunks of rows for poisson, rows for update, groups of rows for update_grad, row blocks for rollout_grad,
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
    bool reads_dictionary;        // whether a rollout need not have it packed
    int64_t packed_bytes;         // size of a dictionary below which it is worth packing
    int64_t neuron_block;         // neurons of a block of a rollout
    int tile_rows, team_rows;     // rows that a thread, and a team, takes at a time
    int wide_rows;                // the same of a team that reads the dictionary, or shares neurons with other processes
    int64_t (*rollout_scratch)(const RolloutArgs&, int rows, bool alone);
    TeamFloats (*team_floats)(const RolloutArgs&, int rows);
    bool (*rollout)(const RolloutArgs&, int64_t first, int rows, const Share&, float* scratch);
    int64_t (*rollout_grad_kept)(const RolloutArgs&);  // floats, per row block, that stay from update to update
    int64_t (*rollout_grad_scratch)(const RolloutArgs&, int rows);
    void (*rollout_grad)(const RolloutGradArgs&, int rows, int64_t begin, int64_t end, float* kept, float* scratch);
    // The same in parts, for all row blocks one after the other: see rollout/backward.h.
    void (*rollout_grad_to_seam)(const RolloutGradArgs&, int64_t update, int rows, int64_t begin, int64_t end, float* kept,
                                 float* scratch);
    int64_t (*dictionary_grad_scratch)(const RolloutArgs&, int64_t n_panels);
    void (*dictionary_grad)(const RolloutGradArgs&, int64_t begin, int64_t end, float* scratch);
    bool (*all_below)(const float* data, int64_t n, float limit);
    // For tests: functions of csrc/common at n floats, and Philox4x32 with 7 or 10 rounds, [4] words from a scalar and
    // [4] from a vector evaluation.
    void (*evaluate)(const char* function, const float* in, float* out, int64_t n);
    void (*philox)(const uint32_t* counter, const uint32_t* key, int rounds, uint32_t* out);
};

}  // namespace ipvae
