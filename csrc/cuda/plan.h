// How a rollout is laid out on a GPU: plain C++, so that it can be tested where there is none.
//
// Rows of the batch are taken in tiles. A team of blocks serves a tile: each block owns a slice of the neurons and keeps
// their state for all steps; twice a step the team adds up what its slices decode. Three kinds of team share one kernel:
//
//   block    one block, which owns all neurons
//   cluster  up to 16 blocks of a thread-block cluster (Hopper and later), which exchange through shared memory
//   grid     any number of blocks of a cooperative launch, which exchange through global memory
//
// The slice of the dictionary, and every array a block works on, lie in shared memory where they fit, the dictionary
// first; what does not fit lies in a workspace (L2), and a dictionary that does not fit is read where it is. So no size
// is refused.
#pragma once

#include <cstdint>

#include "../args.h"

namespace ipvae {

enum TeamKind : int { kAnyTeam, kBlockTeam, kClusterTeam, kGridTeam };

constexpr int kThreads = 256;  // of a block of a rollout

// Limits of a device, read at run time.
struct DeviceLimits {
    int sms;
    int64_t shared;    // bytes of shared memory that one block can have
    int max_cluster;   // blocks of a cluster; 1 where there are none
};

// The arrays of a block, hottest first: shared memory is given out in this order.
enum Array : int {
    kPhi,        // [padded inputs, slice] dictionary, swizzled (dictionary.cuh); last to be given up
    kOperand,    // forward: codes [2 rows, slice]; backward: gradients of the drives [rows, slice]
    kGathered,   // forward: weighted errors [rows, inputs]; backward: gradients of the errors [2 rows, inputs]
    kPartial,    // this slice's share of the product with the dictionary: [2 rows or rows, inputs]
    kFired,      // forward: [2 rows, 1 + slice / 32] how many codes of a row are not 0, then a bit for each
    kProduct,    // forward: drives [rows, slice]; backward: gradients of the codes [2 rows, slice]
    kState,      // forward: [states, rows, slice]; backward: its gradient
    kPrior,      // the same of the step's start; forward: only with several inner iterations
    kMemo,       // forward: standard normals of a Gaussian cell [rows, slice]
    kInhibition, // [slice]
    kPrecision,  // [chunk] of the inputs whose residual this block forms
    kOffset,     // forward: [chunk] log sigma + log(2 pi) / 2
    kInputSums,  // forward: [team, rows, 2] sums over each block's inputs; used by block 0
    kLatentSums, // forward: [team, rows, 3] sums over each block's neurons; used by block 0
    kGradBias,   // backward: [rows, slice], summed over steps
    kGradSigma,  // backward: [rows, chunk], summed over steps
    kGradX,      // backward: [rows, chunk], summed over the draws of a step, or of all steps
    kGradLr,     // backward: [rows, states], summed over steps
    kArrays,
};

// Where an array lies: floats from the start of shared memory, or of the block's workspace.
struct Place {
    int64_t offset;
    bool shared;
};

struct Plan {
    int kind;          // TeamKind
    int team;          // blocks of a team
    int rows;          // of a tile: 8 or 16
    bool resident;     // the dictionary's slice lies in shared memory
    int64_t tiles;     // of the batch
    int64_t teams;     // launched; each serves tiles team, team + teams, ...
    int64_t slice;     // neurons of a block, a multiple of 32
    int64_t inputs;    // padded to a multiple of 32
    int64_t chunk;     // inputs whose residual a block forms
    // Distance between rows of an array of the slice or of the inputs: 4 words beyond a multiple of 32, so that the eight
    // rows and four columns that a warp reads for one fragment of a product lie in different banks.
    int64_t slice_stride, input_stride;
    int64_t shared_bytes;
    int64_t workspace;       // floats of a block
    int64_t workspace_bytes; // of all blocks, counters of the barriers first
    Place place[kArrays];
};

// Floats that array `name` has in a plan.
int64_t array_size(const Plan& plan, const RolloutArgs& args, bool backward, int name);

// The plan of a rollout. kind, team and rows: 0, or what to insist on.
// Throws std::invalid_argument where the device cannot serve what is insisted on.
Plan make_plan(const RolloutArgs& args, bool backward, const DeviceLimits& device, int kind, int team, int rows);

}  // namespace ipvae
