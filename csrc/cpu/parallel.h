// Threads for one call: the range is cut into equal contiguous pieces, one per thread.
//
// The threads are torch's own. torch brings an OpenMP runtime into the process, whose threads spin for some milliseconds
// after each parallel operation; threads of ours beside them would share the cores with that. So the work is handed to the
// same runtime: its entry point is looked up by name at run time (GCC's libgomp and LLVM's and Intel's libomp all have it),
// and nothing is linked. Where there is none, threads are started for the call, at 54 microseconds each (median). So they
// are in the child of a fork, where the runtime would wait for ever for threads that exist in the parent only.
#pragma once

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <system_error>
#include <thread>
#include <type_traits>
#include <vector>

namespace ipvae {

// Whether this process is the child of a fork that came after watch_forks().
inline std::atomic<bool>& forked() {
    static std::atomic<bool> is_child{false};
    return is_child;
}
inline void watch_forks() {
    pthread_atfork(nullptr, nullptr, [] { forked() = true; });
}

// The OpenMP runtime of the process, or nulls.
struct OpenMp {
    void (*parallel)(void (*function)(void*), void* data, unsigned n_threads, unsigned flags);
    int (*thread)();
    int (*team)();

    static const OpenMp& runtime() {
        static const OpenMp found = [] {
            OpenMp omp{};
            auto look_up = [](auto& function, const char* name) {
                function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(RTLD_DEFAULT, name));
                return function != nullptr;
            };
            bool all = look_up(omp.parallel, "GOMP_parallel") && look_up(omp.thread, "omp_get_thread_num") &&
                       look_up(omp.team, "omp_get_num_threads");
            return all ? omp : OpenMp{};
        }();
        return found;
    }
};

// Runs function(thread, threads) on so many threads at once, n_threads of them at most; it throws nothing.
template <class Function> void team(int64_t n_threads, Function&& function) {
    const OpenMp& omp = OpenMp::runtime();
    if (n_threads == 1) {
        function(int64_t{0}, int64_t{1});
    } else if (omp.parallel && !forked()) {
        struct Team {
            const OpenMp& omp;
            std::remove_reference_t<Function>& run;
        } of{omp, function};
        omp.parallel(
            [](void* data) {
                const Team& t = *static_cast<Team*>(data);
                t.run(int64_t{t.omp.thread()}, int64_t{t.omp.team()});
            },
            &of, static_cast<unsigned>(n_threads), 0);
    } else {
        std::atomic<int64_t> size{0};  // known once all that can be started are
        std::vector<std::thread> threads;
        threads.reserve(n_threads - 1);
        auto run = [&](int64_t thread) {
            while (!size.load(std::memory_order_acquire)) std::this_thread::yield();
            function(thread, size.load(std::memory_order_relaxed));
        };
        try {
            for (int64_t i = 1; i < n_threads; ++i) threads.emplace_back(run, i);
        } catch (const std::system_error&) {
            // No further thread could be started.
        }
        size.store(static_cast<int64_t>(threads.size()) + 1, std::memory_order_release);
        run(0);
        for (std::thread& thread : threads) thread.join();
    }
}

// Where the threads of a team wait for each other, some tens of thousands of times a second: they spin at first.
class Barrier {
  public:
    // The last that comes calls decide() before any goes on: what it leaves stands until all have come again.
    template <class Function> void wait(int64_t threads, Function&& decide) {
        int64_t round = round_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
            arrived_.store(0, std::memory_order_relaxed);
            decide();
            round_.store(round + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins)
            if (spins >= kSpins) std::this_thread::yield();
    }

  private:
    static constexpr int kSpins = 4096;  // some 10 to 40 microseconds
    alignas(64) std::atomic<int64_t> arrived_{0};
    alignas(64) std::atomic<int64_t> round_{0};
};

// Runs function(begin, end) on pieces of [0, n). The first exception of any piece is thrown again here, after all pieces
// have ended; a piece for which no thread could be started runs on the caller's.
template <class Function> void parallel(int64_t n, int64_t n_threads, Function&& function) {
    n_threads = std::max<int64_t>(1, std::min(n_threads, n));
    std::vector<std::exception_ptr> errors(n_threads);
    auto piece = [&](int64_t i) noexcept {
        try {
            function(n * i / n_threads, n * (i + 1) / n_threads);
        } catch (...) {
            errors[i] = std::current_exception();
        }
    };
    const OpenMp& omp = OpenMp::runtime();
    if (n_threads == 1) {
        piece(0);
    } else if (omp.parallel && !forked()) {
        struct Team {
            const OpenMp& omp;
            decltype(piece)& run;
            int64_t pieces;
        } team{omp, piece, n_threads};
        omp.parallel(
            [](void* data) {
                // The team may be smaller than asked for.
                const Team& t = *static_cast<Team*>(data);
                for (int64_t i = t.omp.thread(); i < t.pieces; i += t.omp.team()) t.run(i);
            },
            &team, static_cast<unsigned>(n_threads), 0);
    } else {
        std::vector<std::thread> threads;
        threads.reserve(n_threads - 1);
        int64_t started = 1;
        try {
            for (; started < n_threads; ++started) threads.emplace_back(piece, started);
        } catch (const std::system_error&) {
            // No further thread could be started.
        }
        piece(0);
        for (int64_t i = started; i < n_threads; ++i) piece(i);
        for (std::thread& thread : threads) thread.join();
    }
    for (const std::exception_ptr& error : errors)
        if (error) std::rethrow_exception(error);
}

}  // namespace ipvae
