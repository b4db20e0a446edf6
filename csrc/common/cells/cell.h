// The cells, and what tells them apart. To add one: its equations beside this file, an adapter to rows in csrc/cpu and to
// lanes in csrc/cuda, and a row of the table in ipvae_kernels/cells.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace ipvae {

// In the order of the table in Python, with which a test compares the names.
enum CellKind : int {
    kPoissonCell,       // log rate
    kGaussianCell,      // mean and xi = log sigma
    kGaussianReluCell,  // the same, rectified before the decoder
};
constexpr const char* kCellNames[] = {"poisson", "gaussian", "gaussian_relu"};

// On the host: calls one of two functions, that of the Poisson cell or that of the Gaussian ones. A new cell is a new case
// here, and the compiler then finds every caller.
template <class Poisson, class Gaussian> inline auto by_cell(int cell, Poisson poisson, Gaussian gaussian) {
    switch (static_cast<CellKind>(cell)) {
        case kPoissonCell: return poisson();
        case kGaussianCell:
        case kGaussianReluCell: return gaussian();
    }
    std::abort();  // Python counts by its table of cells
}

// Numbers that a neuron's state has.
inline int64_t states_of(int cell) {
    return by_cell(cell, [] { return int64_t{1}; }, [] { return int64_t{2}; });
}

}  // namespace ipvae
