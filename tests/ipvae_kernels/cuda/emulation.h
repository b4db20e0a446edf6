// Threads of a GPU on the host, to run the very kernel bodies of csrc/cuda without one.
//
// Every thread is a fiber with a stack of its own; it runs until it waits at a barrier, and the scheduler then takes the
// next one that can go on, forwards, backwards or in a shuffled order. So a missing barrier gives wrong results in some
// order, and barriers that not all reach end in an exception, not in a hang. Shared memory and workspaces start as NaN,
// with guards behind shared memory.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "../../../csrc/cuda/thread.cuh"

IPVAE_BEGIN

class Scheduler;

struct Barrier {
    int wanted = 0, arrived = 0;
    uint64_t generation = 0;
};

struct Warp {
    Barrier barrier;
    float in[2][32][6];  // what each lane brought, in turns
    int turn[32] = {};
};

// What Thread of csrc/cuda/thread.cuh is on a GPU.
struct Thread {
    char* shared;
    int kind, team, rank;
    int64_t team_index;

    static constexpr int kCount = kThreads;
    int index() const { return index_; }
    int lane() const { return index_ & 31; }
    int warp() const { return index_ >> 5; }
    void sync_warp() const { exchange({}, [](const Warp&, int) {}); }
    void sync_block() const;
    void sync_team();
    float* in_shared_of(int other, float* mine) const {
        return kind == kClusterTeam ? reinterpret_cast<float*>(blocks_[other] + (reinterpret_cast<char*>(mine) - shared)) : mine;
    }
    bool any(bool mask) const { return ballot(mask) != 0; }
    uint32_t ballot(bool mask) const {
        uint32_t result = 0;
        exchange({mask ? 1.f : 0.f}, [&](const Warp& w, int turn) {
            for (int i = 0; i < 32; ++i) result |= static_cast<uint32_t>(w.in[turn][i][0] != 0.f) << i;
        });
        return result;
    }
    float sum(float v) const {
        for (int distance = 16; distance; distance >>= 1)
            exchange({v}, [&](const Warp& w, int turn) { v += w.in[turn][lane() ^ distance][0]; });
        return v;
    }
    void multiply_add(float (&c)[4], const float (&a)[4], const float (&b)[2]) const {
        exchange({a[0], a[1], a[2], a[3], b[0], b[1]}, [&](const Warp& w, int turn) {
            int g = lane() >> 2, t = lane() & 3;
            for (int i = 0; i < 4; ++i) {
                int row = g + (i >> 1) * 8, column = 2 * t + (i & 1);
                double sum = c[i];
                for (int k = 0; k < 8; ++k) {
                    float left = w.in[turn][(row & 7) * 4 + (k & 3)][(row >> 3) + 2 * (k >> 2)];
                    float right = w.in[turn][column * 4 + (k & 3)][4 + (k >> 2)];
                    if (to_tf32(left) != left || to_tf32(right) != right)
                        if (left == left && right == right) throw std::logic_error("an operand is not a TF32 number");
                    sum += static_cast<double>(left) * right;
                }
                c[i] = static_cast<float>(sum);
            }
        });
    }

    // Every lane brings values, and looks at all of them once all have come.
    template <class Look> void exchange(std::initializer_list<float> values, Look look) const;

    int index_;
    Scheduler* scheduler_;
    Barrier *block_barrier_, *team_barrier_;
    Warp* warp_;
    char* const* blocks_;  // shared memory of the team's blocks
};

enum class Order { forwards, backwards, shuffled };

class Scheduler {
  public:
    explicit Scheduler(Order order) : order_(order) {}

    void add(std::function<void()> run) {
        fibers_.push_back(std::make_unique<Fiber>());
        Fiber& f = *fibers_.back();
        f.run = std::move(run);
        f.stack.reset(new char[kStack]);
    }

    void run() {
        for (auto& f : fibers_) {
            getcontext(&f->context);
            f->context.uc_stack.ss_sp = f->stack.get();
            f->context.uc_stack.ss_size = kStack;
            f->context.uc_link = &main_;
            auto self = reinterpret_cast<uintptr_t>(this);
            makecontext(&f->context, reinterpret_cast<void (*)()>(&Scheduler::enter), 2, static_cast<unsigned>(self >> 32),
                        static_cast<unsigned>(self));
        }
        std::mt19937 random(1);
        std::vector<Fiber*> order;
        for (auto& f : fibers_) order.push_back(f.get());
        if (order_ == Order::backwards) order = {order.rbegin(), order.rend()};
        for (size_t left = order.size(); left > 0;) {
            bool moved = false;
            if (order_ == Order::shuffled) std::shuffle(order.begin(), order.end(), random);
            for (Fiber* f : order) {
                if (f->done || (f->waits_for && f->waits_for->generation == f->generation)) continue;
                f->waits_for = nullptr;
                current_ = f;
                swapcontext(&main_, &f->context);
                if (error_) std::rethrow_exception(error_);
                moved = true;
                left -= f->done;
            }
            if (!moved && left) throw std::logic_error("deadlock: some threads wait at a barrier that others never reach");
        }
    }

    void wait(Barrier& barrier) {
        if (++barrier.arrived == barrier.wanted) {
            barrier.arrived = 0;
            ++barrier.generation;
            return;
        }
        Fiber* self = current_;
        self->waits_for = &barrier;
        self->generation = barrier.generation;
        swapcontext(&self->context, &main_);
    }

  private:
    static constexpr size_t kStack = 1 << 16;
    struct Fiber {
        ucontext_t context;
        std::unique_ptr<char[]> stack;
        std::function<void()> run;
        Barrier* waits_for = nullptr;
        uint64_t generation = 0;
        bool done = false;
    };

    static void enter(unsigned high, unsigned low) {
        auto* self = reinterpret_cast<Scheduler*>(static_cast<uintptr_t>(high) << 32 | low);
        try {
            self->current_->run();
        } catch (...) {
            self->error_ = std::current_exception();
        }
        self->current_->done = true;
    }

    Order order_;
    std::vector<std::unique_ptr<Fiber>> fibers_;
    ucontext_t main_;
    Fiber* current_ = nullptr;
    std::exception_ptr error_;
};

inline void Thread::sync_block() const { scheduler_->wait(*block_barrier_); }
inline void Thread::sync_team() { scheduler_->wait(*team_barrier_); }

template <class Look> void Thread::exchange(std::initializer_list<float> values, Look look) const {
    int turn = warp_->turn[lane()] ^= 1;
    int i = 0;
    for (float v : values) warp_->in[turn][lane()][i++] = v;
    // One barrier is enough: a lane overwrites what it brought only two turns later, after all have looked.
    scheduler_->wait(warp_->barrier);
    look(*warp_, turn);
}

// Runs body(thread) in every thread of `team` blocks at a time, for teams [first, end).
template <class Body>
void launch_blocks(int kind, int team, int64_t first, int64_t end, int64_t shared_bytes, Order order, Body body) {
    constexpr int kGuard = 1024;
    constexpr uint32_t kGuardWord = 0x7FBADBAD;
    int64_t words = (shared_bytes + 3) / 4;
    for (int64_t t = first; t < end; ++t) {
        Scheduler scheduler(order);
        // Aligned to 16 bytes, as shared memory is; the sanitizers of a compiler see the bounds too.
        std::vector<std::vector<uint32_t>> memory(team, std::vector<uint32_t>(words + kGuard + 4, kGuardWord));
        std::vector<char*> blocks(team);
        std::vector<Barrier> block_barriers(team);
        std::vector<Warp> warps(team * (kThreads / 32));
        Barrier team_barrier{team * kThreads};
        for (int r = 0; r < team; ++r) {
            auto address = (reinterpret_cast<uintptr_t>(memory[r].data()) + 15) & ~static_cast<uintptr_t>(15);
            blocks[r] = reinterpret_cast<char*>(address);
            block_barriers[r].wanted = kThreads;
            for (int i = 0; i < kThreads; ++i) {
                Warp* warp = &warps[r * (kThreads / 32) + i / 32];
                warp->barrier.wanted = 32;
                scheduler.add([=, &scheduler, &blocks, &block_barriers, &team_barrier, &body] {
                    Thread thread{blocks[r], kind, team, r, t, i, &scheduler, &block_barriers[r], &team_barrier, warp,
                                  blocks.data()};
                    body(thread);
                });
            }
        }
        scheduler.run();
        for (int r = 0; r < team; ++r)
            for (int i = 0; i < kGuard - 4; ++i)
                if (reinterpret_cast<uint32_t*>(blocks[r])[words + i] != kGuardWord)
                    throw std::logic_error("a block wrote beyond its shared memory");
    }
}

IPVAE_END
