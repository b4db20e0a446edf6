// Standard normals from Philox words. docs/design/randomness.md is the specification.
#pragma once

#include "philox.h"

IPVAE_BEGIN

// The quantile of the standard normal at p in [2^-33, 1/2]: PPND7 of Wichura, "Algorithm AS 241: the percentage points
// of the normal distribution", Applied Statistics 37 (1988), without its branch for p < e^-25.
template <class F> IPVAE_HD F normal_quantile(F p) {
    F q = p - 0.5f;  // exact where the result is near 0
    auto central = q >= splat<F>(-0.425f);
    F r = central ? 0.180625f - q * q : square_root(-log(p)) - 1.6f;
    // Both of its ratios of polynomials, with one division.
    auto pick = [central](float in_the_centre, float in_the_tail) {
        return central ? splat<F>(in_the_centre) : splat<F>(in_the_tail);
    };
    F above = ((pick(59.109374720f, 0.17023821103f) * r + pick(159.29113202f, 1.3067284816f)) * r +
               pick(50.434271938f, 2.7568153900f)) * r + pick(3.3871327179f, 1.4234372777f);
    F below = ((pick(67.187563600f, 0.f) * r + pick(78.757757664f, 0.12021132975f)) * r +
               pick(17.895169469f, 0.73700164250f)) * r + 1.f;
    return (central ? q : splat<F>(-1.f)) * above / below;
}

// Standard normal, from the tail that is nearer.
template <class F> IPVAE_HD F normal(lane_u<F> w) {
    F low = uniform<F>(w), high = uniform<F>(~w);  // high = 1 - low
    F tail = normal_quantile(min_keep_nan(low, high));
    return low < high ? tail : -tail;
}

IPVAE_END
