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
