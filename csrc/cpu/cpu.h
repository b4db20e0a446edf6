// The CPU backend: chooses the instruction set, allocates scratch, spreads work over threads.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "buffers.h"
#include "kernels.h"

namespace ipvae::cpu {

// Instruction sets compiled in that this machine can run, fastest first.
std::vector<std::string> instruction_sets();
std::string instruction_set();
// Throws std::invalid_argument where the machine cannot run it.
void set_instruction_set(const std::string& name);

// To be called once, when the module is loaded: a process must not be forked in the middle of what this sets up. During a
// long call `poll` is called some ten times a second on the caller's thread; it ends the call by throwing.
void prepare(void (*poll)());

void poisson(const PoissonArgs& args, int64_t n_threads);
void update(const UpdateArgs& args, int64_t n_threads);
// Writes grad_log_bias [n_latents] and grad_log_lr [1]; args.partial is provided here.
void update_grad(UpdateGradArgs args, float* grad_log_bias, float* grad_log_lr, int64_t n_threads);

// Whether a dictionary is worth packing, by its size alone: a result may depend on it with AMX.
bool packs(int64_t n_inputs, int64_t n_latents);

// What a rollout derives from its parameters, the packed dictionary above all: made once, and used by many calls.
class Prepared {
  public:
    // For codes that are counts or any numbers, see Kernels::draws_counts. Without `pack` the dictionary is read as it is, and
    // has to outlive this.
    Prepared(const Parameters& parameters, int64_t n_inputs, int64_t n_latents, int cell, bool counts, bool pack,
             int64_t n_threads);
    // Throws std::invalid_argument where it was made for other sizes, another cell or instruction set.
    void apply(RolloutArgs& args) const;
    void apply_to_any(RolloutArgs& args) const;
    int64_t bytes() const { return bytes_; }
    const Kernels& kernels() const { return *kernels_; }
    bool packs() const { return encoder_ != nullptr; }

  private:
    const Kernels *set_, *kernels_;  // in force when it was made; what computes with it
    const float* dictionary_;
    const uint16_t* dictionary_bf16_;
    int64_t n_inputs_, n_latents_, bytes_;
    int cell_;
    bool counts_;
    Buffer encoder_, decoder_, precision_, inhibition_;
    float learning_rate_, learning_rate_xi_, log_normalizer_;
};

// Adds up n numbers over the processes that share a layer's neurons, in place.
using Exchange = std::function<void(float* sums, int64_t n)>;

void rollout(RolloutArgs args, const Parameters& parameters, int64_t n_threads);
// Of the neurons of this process: means are summed over processes, on the caller's thread, once for the draws of a state;
// kl, spikes and zeros are those of this process. The sums are of tiles of `rows` at most, alike in all processes and no more
// than shared_rows() in any.
void rollout_shared(RolloutArgs args, const Parameters& parameters, int64_t rows, int64_t n_threads, const Exchange& exchange);
int64_t shared_rows();
void rollout_prepared(RolloutArgs args, const Prepared& prepared, int64_t n_threads);
// With an exchange: of the neurons of this process, where `args` is what rollout_shared found; what the gradients of drives
// decode to is summed over processes, on the caller's thread, once for all rows of an update. The gradients of x and log_sigma
// are then the whole ones, that of log_lr is this process's part.
void rollout_grad(RolloutGradArgs args, const Parameters& parameters, const ParameterGrads& grads, int64_t n_threads,
                  const Exchange& exchange);

// Whether |v| < limit for every element v; false where there is a NaN.
bool all_below(const float* data, int64_t n, float limit, int64_t n_threads);
// Evaluates one of the functions of csrc/common at n floats, for accuracy tests.
void evaluate(const std::string& function, const float* in, float* out, int64_t n);
// Philox4x32 of 7 or 10 rounds by the current instruction set: four words from scalar code, then four from a vector.
std::vector<uint32_t> philox(const std::vector<uint32_t>& counter, const std::vector<uint32_t>& key, int rounds);

}  // namespace ipvae::cpu
