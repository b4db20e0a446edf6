// Arrival times, of which relaxed counts are made. docs/design/randomness.md is the specification.
#pragma once

#include "counts.h"
#include "estimators.h"

IPVAE_BEGIN

constexpr float kSaturatedMin = 8.f;           // mean saturated count from which they are drawn at once
constexpr float kMaxArrivals = 2097152.f;      // 2^21, half of what the words of one draw allow
// Blocks of arrivals after which a draw with many of them starts new sums: added one by one to the time and the count of a
// million others, gaps and small shares are lost in the rounding of float32.
constexpr uint32_t kStretch = 64;

// The window of arrival times that need looking at: f = 1 before 1 - half, f = 0 after 1 + half.
struct Window {
    float half, inv_temperature;
};
IPVAE_HD Window make_window(Estimator e, float temperature) {
    return {half_width(e) * temperature, 1.f / temperature};
}

// The arrivals of a neuron, or of a vector of them, so far. Time is kept as what has elapsed since the first moment that
// matters, `lead` before time 1: at a rate of 10^8 and a window of 10^-3, gaps vanish in the rounding of a time near 1, but
// not in that of a time within the window.
template <class F> struct Arrivals {
    F lead;        // 1, or half a window where earlier arrivals were drawn at once
    F elapsed;     // at the last arrival
    F remaining;   // arrivals that n_arrivals still allows
    F count;
    F slope;       // without its last factors

    IPVAE_HD auto active(const Window& window) const {
        return (elapsed <= lead + window.half) & (remaining > splat<F>(0.f));
    }
};

// One more arrival: its share of the count and of the slope, where it comes before the window's end.
template <Estimator kind, class F> IPVAE_HD void arrive(lane_u<F> word, F inv_rate, const Window& window, Arrivals<F>& a) {
    a.elapsed = a.elapsed + exponential<F>(word) * inv_rate;
    auto counted = a.active(window);
    a.remaining = a.remaining - 1.f;
    F early = a.lead - a.elapsed;  // 1 - t
    Indicated<F> f = indicator<kind>(early * window.inv_temperature);
    F zero = splat<F>(0.f);
    a.count = a.count + (counted ? f.value : zero);
    a.slope = a.slope + (counted ? f.derivative * (1.f - early) : zero);
}

// The slope d count / d log rate from the sum over arrivals.
template <class F> IPVAE_HD F slope_of_arrivals(F sum, F rate, const Window& window) {
    return sum * (window.inv_temperature * ((rate - kRateFloor) * reciprocal(rate)));
}

IPVAE_END
