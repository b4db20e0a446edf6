#include "cpu.h"

#include <atomic>
#include <chrono>
#include <cmath>
#include <stdexcept>
#include <thread>

#if defined(IPVAE_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "../common/cells/cell.h"
#include "buffers.h"
#include "parallel.h"

namespace ipvae {

// Defined by kernels.cpp, once per instruction set.
#if defined(IPVAE_X86)
#if defined(IPVAE_AMX)
namespace amx { extern const Kernels kernels; }
#endif
namespace avx512 { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
#endif
namespace baseline { extern const Kernels kernels; }

namespace cpu {
namespace {

#if defined(IPVAE_AMX)
// Whether the CPU has tile products of bfloat16 and bytes, and Linux (5.16 and later) lets this process use them.
bool amx_granted() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (kBf16 | kTile | kInt8)) != (kBf16 | kTile | kInt8)) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & 1u << 5)) return false;  // AVX512_BF16
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

std::vector<const Kernels*> supported() {
    std::vector<const Kernels*> sets;
#if defined(IPVAE_X86)
    __builtin_cpu_init();
    bool fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
#if defined(IPVAE_AMX)
        if (amx_granted()) sets.push_back(&amx::kernels);
#endif
        sets.push_back(&avx512::kernels);
    }
    if (fma) sets.push_back(&avx2::kernels);
#endif
    sets.push_back(&baseline::kernels);
    return sets;
}

std::atomic<const Kernels*>& current() {
    static std::atomic<const Kernels*> kernels{supported().front()};
    return kernels;
}

// The set that reads a dictionary that is not packed: the current one, or the next that can.
const Kernels* reader() {
    const Kernels* set = current().load();
    if (set->reads_dictionary) return set;
    for (const Kernels* kernels : supported())
        if (kernels->reads_dictionary) return kernels;
    return set;
}

void (*poll_caller)() = [] {};

// Asks the caller now and then whether a call is to end early; threads stop at the next piece of their work.
class Watch {
  public:
    bool go_on() {
        if (ended_) return false;
        if (std::this_thread::get_id() != caller_ || Clock::now() < next_) return true;
        try {
            poll_caller();
        } catch (...) {
            ended_ = true;
            throw;
        }
        next_ = Clock::now() + kPause;
        return true;
    }

  private:
    using Clock = std::chrono::steady_clock;
    static constexpr std::chrono::milliseconds kPause{100};
    std::thread::id caller_ = std::this_thread::get_id();
    Clock::time_point next_ = Clock::now() + kPause;
    std::atomic<bool> ended_{false};
};

// parallel() in pieces of `grain`, each with the same scratch of its thread; between them the caller is asked.
template <class Function>
void watched(int64_t n, int64_t grain, int64_t n_threads, int64_t scratch_floats, Function function) {
    Watch watch;
    parallel(n, n_threads, [&](int64_t begin, int64_t end) {
        Buffer scratch = allocate(scratch_floats);
        for (; begin < end && watch.go_on(); begin += grain) function(begin, std::min(begin + grain, end), scratch.get());
    });
}

// Rows of a tile of a wide dictionary, fewer where its scratch would not be small beside the dictionary; none below `least`.
template <class Floats> int wide_rows(const Kernels& k, int least, int64_t most_floats, Floats floats) {
    int rows = k.wide_rows;
    while (rows > least && floats(rows) > most_floats) rows /= 2;
    return rows;
}
constexpr int64_t kTeamFloats = int64_t{1} << 26, kThreadFloats = int64_t{1} << 24;

// Row blocks between two questions to the caller, in tiles of so many rows.
int64_t row_grain(int rows) { return std::max(rows, 32) / kRowBlock; }

Buffer packed(const Kernels& k, const float* matrix, int64_t depth, int64_t n, Packing packing, int64_t n_threads) {
    int64_t panels = (n + k.panel - 1) / k.panel;
    Buffer buffer = allocate(panels * k.panel_floats(depth, packing));
    parallel(panels, n_threads, [&](int64_t begin, int64_t end) {
        k.pack(matrix, depth, n, packing, buffer.get(), begin, end);
    });
    return buffer;
}

// exp(scale v) of n values, zero in the padding to full panels.
Buffer padded_exp(const Kernels& k, const float* v, int64_t n, float scale) {
    int64_t padded = (n + k.panel - 1) / k.panel * k.panel;
    Buffer buffer = allocate(padded);
    for (int64_t i = 0; i < padded; ++i) buffer[i] = i < n ? std::exp(scale * v[i]) : 0.f;
    return buffer;
}

int64_t n_states(const RolloutArgs& args) { return states_of(args.cell); }

// A team's threads, each with some blocks of the neurons.
class NeuronTeam {
  public:
    NeuronTeam(int64_t threads, const Exchange& exchange) : threads_(threads), exchange_(exchange) {}

    // Returns once all have come; false where the caller, asked now and then, wants to end the call.
    static bool meet(void* team) {
        auto& self = *static_cast<NeuronTeam*>(team);
        try {
            if (!self.watch_.go_on()) self.ended_ = true;
        } catch (...) {
            self.ended_ = true;
            self.error_ = std::current_exception();
        }
        // One answer for all: a thread that is slow to leave must not see that another was told to end at the next meeting.
        self.barrier_.wait(self.threads_, [&] { self.goes_on_ = !self.ended_; });
        return self.goes_on_;
    }
    // Adds up numbers of all processes; what goes wrong ends the call at the next meeting.
    static void exchange(void* team, float* sums, int64_t n) {
        auto& self = *static_cast<NeuronTeam*>(team);
        try {
            self.exchange_(sums, n);
        } catch (...) {
            self.ended_ = true;
            self.error_ = std::current_exception();
        }
    }
    void set_threads(int64_t threads) { threads_ = threads; }
    void rethrow() const {
        if (error_) std::rethrow_exception(error_);
    }

  private:
    std::atomic<int64_t> threads_;
    Barrier barrier_;
    Watch watch_;
    std::atomic<bool> ended_{false};
    bool goes_on_ = true;       // decided at the last meeting
    std::exception_ptr error_;  // of the calling thread
    const Exchange& exchange_;
};

int64_t row_blocks(const RolloutArgs& args) { return (args.n_rows + kRowBlock - 1) / kRowBlock; }

void rollout_by_rows(const Kernels& k, const RolloutArgs& args, int64_t n_threads) {
    Share all{0, (args.n_latents - 1) / k.neuron_block + 1};
    int tile = k.tile_rows;
    watched(row_blocks(args), row_grain(tile), n_threads, k.rollout_scratch(args, tile, true),
            [&](int64_t begin, int64_t end, float* scratch) {
                int64_t last = std::min(end * kRowBlock, args.n_rows);
                for (int64_t first = begin * kRowBlock; first < last; first += tile)
                    k.rollout(args, first, static_cast<int>(std::min<int64_t>(tile, last - first)), all, scratch);
            });
}

// Tile after tile of rows, about as many each and `most` at most, each by all threads.
void rollout_by_neurons(const Kernels& k, const RolloutArgs& args, int64_t most, int64_t n_threads, const Exchange& exchange) {
    int64_t n_blocks = (args.n_latents - 1) / k.neuron_block + 1, n_tiles = std::max<int64_t>(1, (args.n_rows + most - 1) / most);
    int tile = static_cast<int>((args.n_rows + n_tiles - 1) / n_tiles);
    TeamFloats sizes = k.team_floats(args, tile);
    Buffer blocks = allocate(sizes.blocks), parts = allocate(sizes.parts), terms = allocate(sizes.terms);
    std::vector<Buffer> scratch;
    for (int64_t i = 0; i < n_threads; ++i) scratch.push_back(allocate(k.rollout_scratch(args, tile, false)));
    NeuronTeam meeting(n_threads, exchange);
    team(n_threads, [&](int64_t thread, int64_t threads) noexcept {
        meeting.set_threads(threads);  // all set the same
        Share share{n_blocks * thread / threads, n_blocks * (thread + 1) / threads, blocks.get(), parts.get(), terms.get(),
                    &NeuronTeam::meet, &meeting, exchange ? &NeuronTeam::exchange : nullptr};
        for (int64_t first = 0; first < args.n_rows; first += tile) {
            int rows = static_cast<int>(std::min<int64_t>(tile, args.n_rows - first));
            if (!k.rollout(args, first, rows, share, scratch[thread].get())) return;
        }
    });
    meeting.rethrow();
}

// From the last update to the first: all rows come to its seam, and what they decoded there is added up over processes.
void rollout_grad_by_updates(const Kernels& k, const RolloutGradArgs& args, int rows, int64_t n_threads, const Exchange& exchange) {
    const RolloutArgs& a = args.forward;
    int64_t size = k.rollout_grad_kept(a), n = a.n_rows * a.n_inputs;
    Buffer kept = allocate(row_blocks(a) * size);
    for (int64_t update = a.n_steps * a.n_inner - 1; update >= -1; --update) {
        watched(row_blocks(a), row_grain(rows), n_threads, k.rollout_grad_scratch(a, rows),
                [&](int64_t begin, int64_t end, float* scratch) {
                    k.rollout_grad_to_seam(args, update, rows, begin, end, kept.get() + begin * size, scratch);
                });
        if (update >= 0) exchange(args.grad_errors + (update + update / a.n_inner) * n, n);
    }
}

// Column sums of partial [n_partials, n], in order, so that they do not depend on the threads.
std::vector<double> column_sums(const float* partial, int64_t n_partials, int64_t n) {
    std::vector<double> sums(n, 0.0);
    for (int64_t i = 0; i < n_partials; ++i)
        for (int64_t j = 0; j < n; ++j) sums[j] += partial[i * n + j];
    return sums;
}

}  // namespace

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const Kernels* kernels : supported()) names.push_back(kernels->name);
    return names;
}

std::string instruction_set() { return current().load()->name; }

void set_instruction_set(const std::string& name) {
    for (const Kernels* kernels : supported()) {
        if (name == kernels->name) {
            current() = kernels;
            return;
        }
    }
    std::string choices;
    for (const std::string& set : instruction_sets()) choices += (choices.empty() ? "" : ", ") + set;
    throw std::invalid_argument("instruction set: expected one of " + choices + ", got " + name);
}

void prepare(void (*poll)()) {
    poll_caller = poll;
    watch_forks();
    BufferPool::instance();
    OpenMp::runtime();
    current();
}

bool packs(int64_t n_inputs, int64_t n_latents) { return 4 * n_inputs * n_latents < current().load()->packed_bytes; }

Prepared::Prepared(const Parameters& p, int64_t n_inputs, int64_t n_latents, int cell, bool counts, bool pack,
                   int64_t n_threads)
    : set_(current().load()), kernels_(pack ? set_ : reader()), dictionary_(pack ? nullptr : p.dictionary),
      dictionary_bf16_(p.dictionary_bf16), n_inputs_(n_inputs), n_latents_(n_latents), cell_(cell), counts_(counts) {
    const Kernels& k = *kernels_;
    Packing packing = counts ? kTransposedForCounts : kTransposed;
    if (pack) {
        encoder_ = packed(k, p.dictionary, n_inputs, n_latents, kPlain, n_threads);
        decoder_ = packed(k, p.dictionary, n_latents, n_inputs, packing, n_threads);
    }
    precision_ = padded_exp(k, p.log_sigma, n_inputs, -2.f);
    inhibition_ = padded_exp(k, p.log_bias, n_latents, 1.f);
    learning_rate_ = std::exp(p.log_lr[0]);
    learning_rate_xi_ = states_of(cell) > 1 ? std::exp(p.log_lr[1]) : 0.f;
    double normalizer = 0.5 * std::log(2 * 3.14159265358979323846) * static_cast<double>(n_inputs);
    for (int64_t i = 0; i < n_inputs; ++i) normalizer += p.log_sigma[i];
    log_normalizer_ = static_cast<float>(normalizer);
    auto panels = [&](int64_t n) { return (n + k.panel - 1) / k.panel; };
    bytes_ = 4 * k.panel * (panels(n_latents) + panels(n_inputs));
    if (pack)
        bytes_ += 4 * (panels(n_latents) * k.panel_floats(n_inputs, kPlain) +
                       panels(n_inputs) * k.panel_floats(n_latents, packing));
}

void Prepared::apply(RolloutArgs& args) const {
    if (set_ != current().load() || n_inputs_ != args.n_inputs || n_latents_ != args.n_latents || cell_ != args.cell ||
        counts_ != set_->draws_counts(args))
        throw std::invalid_argument(std::string("prepared parameters: expected those of this model, made with the instruction "
                                                "set ") + set_->name + ", found " + current().load()->name);
    apply_to_any(args);
}

void Prepared::apply_to_any(RolloutArgs& args) const {
    args.encoder = encoder_.get();
    args.decoder = decoder_.get();
    args.dictionary = dictionary_;
    args.dictionary_bf16 = dictionary_bf16_;
    args.precision = precision_.get();
    args.inhibition = inhibition_.get();
    args.learning_rate = learning_rate_;
    args.learning_rate_xi = learning_rate_xi_;
    args.log_normalizer = log_normalizer_;
}

void poisson(const PoissonArgs& args, int64_t n_threads) {
    const Kernels& k = *current().load();
    // Some 10^4 neurons take as long as starting a thread.
    n_threads = std::min(n_threads, 1 + args.n_rows * args.n_latents / 10000);
    int64_t chunks = args.n_rows * ((args.n_latents + kPoissonChunk - 1) / kPoissonChunk);
    constexpr int64_t kGrain = 64;  // a multiple of the chunks that are drawn together
    watched(chunks, kGrain, n_threads, k.poisson_scratch(),
            [&](int64_t begin, int64_t end, float* scratch) { k.poisson(args, begin, end, scratch); });
}

void update(const UpdateArgs& args, int64_t n_threads) {
    const Kernels& k = *current().load();
    n_threads = std::min(n_threads, 1 + args.n_rows * args.n_latents / 10000);
    parallel(args.n_rows, n_threads, [&](int64_t begin, int64_t end) { k.update(args, begin, end); });
}

void update_grad(UpdateGradArgs args, float* grad_log_bias, float* grad_log_lr, int64_t n_threads) {
    const Kernels& k = *current().load();
    int64_t n = args.forward.n_latents, groups = (args.forward.n_rows + kUpdateGroup - 1) / kUpdateGroup;
    Buffer partial = allocate(groups * (n + 1));
    args.partial = partial.get();
    n_threads = std::min(n_threads, 1 + args.forward.n_rows * n / 10000);
    parallel(groups, n_threads, [&](int64_t begin, int64_t end) { k.update_grad(args, begin, end); });
    std::vector<double> sums = column_sums(partial.get(), groups, n + 1);
    for (int64_t i = 0; i < n; ++i) grad_log_bias[i] = static_cast<float>(sums[i]);
    *grad_log_lr = static_cast<float>(sums[n]);
}

void rollout(RolloutArgs args, const Parameters& parameters, int64_t n_threads) {
    bool counts = current().load()->draws_counts(args);
    bool pack = packs(args.n_inputs, args.n_latents);
    rollout_prepared(args, Prepared(parameters, args.n_inputs, args.n_latents, args.cell, counts, pack, n_threads), n_threads);
}

int64_t shared_rows() { return current().load()->wide_rows; }

void rollout_shared(RolloutArgs args, const Parameters& parameters, int64_t rows, int64_t n_threads, const Exchange& exchange) {
    bool counts = current().load()->draws_counts(args);
    bool pack = packs(args.n_inputs, args.n_latents);
    Prepared prepared(parameters, args.n_inputs, args.n_latents, args.cell, counts, pack, n_threads);
    const Kernels& k = prepared.kernels();
    args.draws_counts = k.draws_counts(args);
    prepared.apply(args);
    int64_t blocks = (args.n_latents - 1) / k.neuron_block + 1;
    rollout_by_neurons(k, args, rows, std::min(blocks, n_threads), exchange);
}

void rollout_prepared(RolloutArgs args, const Prepared& prepared, int64_t n_threads) {
    const Kernels& k = prepared.kernels();
    args.draws_counts = k.draws_counts(args);
    prepared.apply(args);
    // Threads share the neurons where that keeps more of them busy than sharing the rows.
    int64_t rows = k.team_rows;
    if (!prepared.packs())
        rows = wide_rows(k, k.team_rows, kTeamFloats, [&](int r) { return k.team_floats(args, r).blocks; });
    int64_t tiles = (args.n_rows + rows - 1) / rows;
    int64_t blocks = (args.n_latents - 1) / k.neuron_block + 1;
    bool by_neurons = blocks > 1 && std::min(blocks, n_threads) >= std::min(tiles, n_threads);
    by_neurons ? rollout_by_neurons(k, args, rows, std::min(blocks, n_threads), {}) : rollout_by_rows(k, args, n_threads);
}

void rollout_grad(RolloutGradArgs args, const Parameters& parameters, const ParameterGrads& grads, int64_t n_threads,
                  const Exchange& exchange) {
    const Kernels& k = *current().load();
    RolloutArgs& a = args.forward;
    a.draws_counts = k.draws_counts(a);
    // What is decoded here are gradients.
    Prepared prepared(parameters, a.n_inputs, a.n_latents, a.cell, false, true, n_threads);
    prepared.apply_to_any(a);
    int64_t n_blocks = row_blocks(a), n_partial = a.n_inputs + a.n_latents + n_states(a);
    Buffer grad_errors = allocate(a.n_steps * (a.n_inner + 1) * a.n_rows * a.n_inputs);
    Buffer grad_drives = allocate(a.n_steps * a.n_inner * a.n_rows * a.n_latents);
    Buffer partial = allocate(n_blocks * n_partial);
    args.grad_errors = grad_errors.get();
    args.grad_drives = grad_drives.get();
    args.partial = partial.get();
    args.grad_dictionary = grads.dictionary;
    // A dictionary that no cache holds is read for more rows at a time: docs/design/cpu.md, "Wide dictionaries".
    int rows = k.tile_rows;
    if (!packs(a.n_inputs, a.n_latents))
        rows = wide_rows(k, k.tile_rows, kThreadFloats, [&](int r) { return k.rollout_grad_scratch(a, r); });
    int64_t kept = row_grain(rows) * k.rollout_grad_kept(a);
    if (exchange)
        rollout_grad_by_updates(k, args, rows, n_threads, exchange);
    else
        watched(n_blocks, row_grain(rows), n_threads, kept + k.rollout_grad_scratch(a, rows),
                [&](int64_t begin, int64_t end, float* scratch) {
                    k.rollout_grad(args, rows, begin, end, scratch, scratch + kept);
                });
    parallel((a.n_latents + k.panel - 1) / k.panel, n_threads, [&](int64_t begin, int64_t end) {
        Buffer scratch = allocate(k.dictionary_grad_scratch(a, end - begin));
        k.dictionary_grad(args, begin, end, scratch.get());
    });
    std::vector<double> sums = column_sums(partial.get(), n_blocks, n_partial);
    for (int64_t i = 0; i < a.n_inputs; ++i) grads.log_sigma[i] = static_cast<float>(sums[i]);
    for (int64_t i = 0; i < a.n_latents; ++i) grads.log_bias[i] = static_cast<float>(sums[a.n_inputs + i]);
    for (int64_t i = 0; i < n_states(a); ++i)
        grads.log_lr[i] = static_cast<float>(sums[a.n_inputs + a.n_latents + i]);
}

bool all_below(const float* data, int64_t n, float limit, int64_t n_threads) {
    const Kernels& k = *current().load();
    // A thread is worth waking for some 10^5 numbers, which one reads in 10 microseconds.
    constexpr int64_t kChunk = 1 << 16;
    int64_t chunks = (n + kChunk - 1) / kChunk;
    std::atomic<bool> below{true};
    parallel(chunks, std::min(n_threads, 1 + chunks / 2), [&](int64_t begin, int64_t end) {
        int64_t first = begin * kChunk, last = std::min(end * kChunk, n);
        if (!k.all_below(data + first, last - first, limit)) below = false;
    });
    return below;
}

void evaluate(const std::string& function, const float* in, float* out, int64_t n) {
    current().load()->evaluate(function.c_str(), in, out, n);
}

std::vector<uint32_t> philox(const std::vector<uint32_t>& counter, const std::vector<uint32_t>& key, int rounds) {
    if (counter.size() != 4 || key.size() != 2 || (rounds != 7 && rounds != 10))
        throw std::invalid_argument("philox: expected 4 counter words, 2 key words and 7 or 10 rounds");
    std::vector<uint32_t> out(8);
    current().load()->philox(counter.data(), key.data(), rounds, out.data());
    return out;
}

}  // namespace cpu
}  // namespace ipvae
