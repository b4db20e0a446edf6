// What a kernel body asks of the thread that runs it. Bodies are templates over this type: on a GPU it is the struct
// below, in the tests a fiber of the host that keeps the same promises (tests/ipvae_kernels/cuda/emulation.h).
#pragma once

#include "../common/target.h"
#include "plan.h"

#if defined(__CUDACC__)
#define IPVAE_DEVICE __device__ __forceinline__
#define IPVAE_UNROLL _Pragma("unroll")
#define IPVAE_NO_UNROLL _Pragma("unroll 1")
#else
#define IPVAE_DEVICE inline
#define IPVAE_UNROLL
#define IPVAE_NO_UNROLL
#endif

IPVAE_BEGIN

// v rounded to the 11 significant bits of TF32; NaN stays NaN.
IPVAE_DEVICE float to_tf32(float v) {
#if defined(__CUDA_ARCH__)
    uint32_t u;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(u) : "f"(v));
    return from_bits(u & 0xFFFFE000u);  // tensor cores ignore the other bits, a difference to v would not
#else
    return v == v ? from_bits((bits(v) + 0x1000u) & 0xFFFFE000u) : v;
#endif
}

IPVAE_DEVICE int bit_count(uint32_t v) {
#if defined(__CUDA_ARCH__)
    return __popc(v);
#else
    return __builtin_popcount(v);
#endif
}
// Index of the lowest bit; there is one.
IPVAE_DEVICE int lowest_bit(uint32_t v) {
#if defined(__CUDA_ARCH__)
    return __ffs(static_cast<int>(v)) - 1;
#else
    return __builtin_ctz(v);
#endif
}

#if defined(__CUDACC__)

struct Thread {
    char* shared;  // of this block
    int kind, team, rank;
    int64_t team_index;
    unsigned long long* counter;  // of the team's barrier, zero at first; grid teams only
    unsigned long long meetings;

    static constexpr int kCount = kThreads;
    __device__ __forceinline__ int index() const { return static_cast<int>(threadIdx.x); }
    __device__ __forceinline__ int lane() const { return index() & 31; }
    __device__ __forceinline__ int warp() const { return index() >> 5; }

    __device__ __forceinline__ void sync_warp() const { __syncwarp(); }
    __device__ __forceinline__ void sync_block() const { __syncthreads(); }

    // All threads of the team; what they wrote to shared and global memory before is seen after.
    __device__ __forceinline__ void sync_team() {
        if (kind == kBlockTeam) {
            __syncthreads();
        } else if (kind == kClusterTeam) {
#if __CUDA_ARCH__ >= 900
            asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
#endif
        } else {
            ++meetings;
            __syncthreads();
            if (threadIdx.x == 0) {
                __threadfence();
                atomicAdd(counter, 1ull);
                unsigned long long all = meetings * static_cast<unsigned long long>(team);
                while (*static_cast<volatile unsigned long long*>(counter) < all) {
                }
                __threadfence();
            }
            __syncthreads();
        }
    }

    // The same place in the shared memory of another block of the cluster.
    __device__ __forceinline__ float* in_shared_of(int other, float* mine) const {
#if __CUDA_ARCH__ >= 900
        if (kind == kClusterTeam) {
            uint64_t there;
            asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(reinterpret_cast<uint64_t>(mine)), "r"(other));
            return reinterpret_cast<float*>(there);
        }
#endif
        return mine;
    }

    __device__ __forceinline__ bool any(bool mask) const { return __any_sync(0xFFFFFFFFu, mask); }
    // Bit i is lane i's.
    __device__ __forceinline__ uint32_t ballot(bool mask) const { return __ballot_sync(0xFFFFFFFFu, mask); }

    // Sum over the warp, in an order of its own, the same in every lane.
    __device__ __forceinline__ float sum(float v) const {
        for (int distance = 16; distance; distance >>= 1) v += __shfl_xor_sync(0xFFFFFFFFu, v, distance);
        return v;
    }

    // c += a b on tensor cores: A [16, 8], B [8, 8] of TF32 numbers, C [16, 8]. With g = lane / 4 and t = lane % 4, a lane
    // holds A(g, t), A(g + 8, t), A(g, t + 4), A(g + 8, t + 4); B(t, g), B(t + 4, g); C(g, 2t), C(g, 2t + 1),
    // C(g + 8, 2t), C(g + 8, 2t + 1).
    __device__ __forceinline__ void multiply_add(float (&c)[4], const float (&a)[4], const float (&b)[2]) const {
        asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(bits(a[0])), "r"(bits(a[1])), "r"(bits(a[2])), "r"(bits(a[3])), "r"(bits(b[0])), "r"(bits(b[1])));
    }
};

#endif

// Four neighbouring numbers, in one access of 16 bytes where all of them exist and lie right. Neighbours in a row have
// n > 0 valid ones.
struct alignas(16) Quad {
    float v[4];
};

IPVAE_DEVICE bool wide(const float* p, int64_t n) { return n >= 4 && (reinterpret_cast<uintptr_t>(p) & 15) == 0; }

IPVAE_DEVICE Quad load_quad(const float* p, int64_t n) {
    if (wide(p, n)) return *reinterpret_cast<const Quad*>(p);
    Quad q;
    IPVAE_UNROLL for (int j = 0; j < 4; ++j) q.v[j] = j < n ? p[j] : 0.f;
    return q;
}

IPVAE_DEVICE void store_quad(float* p, int64_t n, const Quad& q) {
    if (wide(p, n)) {
        *reinterpret_cast<Quad*>(p) = q;
        return;
    }
    IPVAE_UNROLL for (int j = 0; j < 4; ++j)
        if (j < n) p[j] = q.v[j];
}

IPVAE_DEVICE Quad quad(float v) { return {{v, v, v, v}}; }

IPVAE_END
