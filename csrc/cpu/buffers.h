// Scratch memory that outlives a call: a fresh megabyte costs more in page faults than a step of inference.
#pragma once

#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#include <pthread.h>

namespace ipvae {

// Freed blocks, kept for the next call up to kKept bytes. docs/design/cpu.md, "Buffers outlive a
// call", says what that saves.
class BufferPool {
  public:
    static BufferPool& instance() {
        static BufferPool* pool = new BufferPool;  // never destroyed: a thread may still free at exit
        return *pool;
    }

    std::pair<void*, size_t> take(size_t bytes) {
        size_t alignment = bytes >= kHugePage / 8 ? kHugePage : kLine;
        bytes = (bytes + alignment - 1) / alignment * alignment;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            for (auto& block : free_) {
                if (block.second < bytes || block.second > 2 * bytes) continue;
                std::pair<void*, size_t> found = block;
                block = free_.back();
                free_.pop_back();
                kept_ -= found.second;
                return found;
            }
        }
        void* p = std::aligned_alloc(alignment, bytes);
        if (!p) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
        if (alignment == kHugePage) madvise(p, bytes, MADV_HUGEPAGE);
#endif
        return {p, bytes};
    }

    void give(void* p, size_t bytes) noexcept {
        std::lock_guard<std::mutex> lock(mutex_);
        if (kept_ + bytes <= kKept && free_.size() < free_.capacity()) {
            free_.push_back({p, bytes});
            kept_ += bytes;
        } else {
            std::free(p);
        }
    }

  private:
    // A fork copies the mutex as it is, but only the thread that forks: that thread holds the mutex meanwhile.
    BufferPool() {
        free_.reserve(64);
        pthread_atfork([] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); }, [] { instance().mutex_.unlock(); });
    }

    static constexpr size_t kLine = 64, kHugePage = size_t{1} << 21, kKept = size_t{64} << 20;
    std::mutex mutex_;
    std::vector<std::pair<void*, size_t>> free_;
    size_t kept_ = 0;
};

struct GiveBack {
    size_t bytes = 0;
    void operator()(float* p) const { BufferPool::instance().give(p, bytes); }
};
using Buffer = std::unique_ptr<float[], GiveBack>;

// n floats, aligned to a cache line, and at least a vector more, so that a full vector can be read at any of them.
inline Buffer allocate(int64_t n) {
    auto [p, bytes] = BufferPool::instance().take((static_cast<size_t>(n) + 64) * sizeof(float));
    return Buffer(static_cast<float*>(p), GiveBack{bytes});
}

}  // namespace ipvae
