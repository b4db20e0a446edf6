// Which draw of a step uses which stream, and which draws a step wants. docs/design/randomness.md is the specification.
#pragma once

#include "../args.h"
#include "philox.h"

IPVAE_BEGIN

// What a draw is for.
enum Kind : uint32_t { kUpdate = 0, kLoss = 1, kStandalone = 2 };

struct DrawOf {
    uint32_t kind, inner, step;
};

// The fresh draw of a step, for its loss and its records.
IPVAE_HD DrawOf loss_draw_of(uint32_t step) { return {kLoss, 0, step}; }

// The draw that drives an update; with single_draw that is the fresh one of the step before, where there is one.
IPVAE_HD DrawOf update_draw_of(bool single_draw, uint32_t step, uint32_t inner) {
    if (single_draw && step > 0) return loss_draw_of(step - 1);
    return {kUpdate, inner, step};
}

IPVAE_HD Stream make_stream(uint64_t seed, const DrawOf& draw, uint32_t sample) {
    return make_stream(seed, draw.kind, draw.inner, draw.step, sample);
}

// Whether anything that is asked for needs the fresh draw of a step.
IPVAE_HD bool wants_loss_draw(const RolloutArgs& a) {
    return a.drawn || a.recon || a.squared_error || a.spikes || a.zeros || a.counts || a.reconstruction;
}

IPVAE_END
