// Threads for one call: the range is cut into equal contiguous pieces, one per thread.
//
// Threads live for the call only. Starting one costs some 20 microseconds, which a whole rollout does not notice; a
// pool of our own would compete with torch's for the cores, and would not survive a fork.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace ipvae {

template <class Function> void parallel(int64_t n, int64_t n_threads, Function&& function) {
    n_threads = std::max<int64_t>(1, std::min(n_threads, n));
    std::vector<std::thread> threads;
    threads.reserve(n_threads - 1);
    for (int64_t i = 1; i < n_threads; ++i)
        threads.emplace_back([&function, n, n_threads, i] { function(n * i / n_threads, n * (i + 1) / n_threads); });
    function(0, n / n_threads);
    for (std::thread& thread : threads) thread.join();
}

}  // namespace ipvae
