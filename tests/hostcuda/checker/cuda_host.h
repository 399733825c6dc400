// CUDA C++ for a CPU: included by the compiler in front of an unmodified .cu file, see hostcompile.py.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <type_traits>
#include <utility>
#undef INFINITY  // NVRTC has none
#undef NAN

// ---- what a thread sees

struct uint3 {
    unsigned x, y, z;
};

// Of the thread that runs at the moment; runtime.cpp changes it with the thread.
struct CuThread {
    uint3 threadIdx, blockIdx, blockDim, gridDim;
    int lane;
    unsigned char* shared;
};
extern "C" CuThread cu_thread;

#define threadIdx cu_thread.threadIdx
#define blockIdx cu_thread.blockIdx
#define blockDim cu_thread.blockDim
#define gridDim cu_thread.gridDim

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)  // hostcompile.py reads it from the text

// ---- barriers and warps; the line tells one barrier from another

extern "C" {
void cu_barrier(int line);
void cu_warp_barrier(unsigned mask, int line);
uint32_t cu_shuffle(uint32_t value, int source, unsigned mask, int line);
void cu_atomic(void* place, int size, bool is_float);
}
#define CU_UNCHECKED __attribute__((no_sanitize("thread", "undefined"), noinline))

#define __syncthreads() cu_barrier(__LINE__)
#define __syncwarp(...) cu_warp_barrier(0xffffffffu, __LINE__)

template <typename T>
static inline T cu_shuffle_any(T value, int source, unsigned mask, int line) {
    static_assert(sizeof(T) % 4 == 0, "shuffles move 32 or 64 bits");
    uint32_t words[sizeof(T) / 4];
    memcpy(words, &value, sizeof(T));
    for (uint32_t& word : words) word = cu_shuffle(word, source, mask, line);
    memcpy(&value, words, sizeof(T));
    return value;
}
#define __shfl_sync(mask, value, source) cu_shuffle_any(value, (source) & 31, mask, __LINE__)
#define __shfl_xor_sync(mask, value, bits) cu_shuffle_any(value, cu_thread.lane ^ (bits), mask, __LINE__)
#define __shfl_down_sync(mask, value, by) \
    cu_shuffle_any(value, cu_thread.lane + int(by) < 32 ? cu_thread.lane + int(by) : cu_thread.lane, mask, __LINE__)
#define __shfl_up_sync(mask, value, by) \
    cu_shuffle_any(value, cu_thread.lane >= int(by) ? cu_thread.lane - int(by) : cu_thread.lane, mask, __LINE__)

// Atomics are one access of their own kind; those on floats are reported, since their order is not fixed.
template <typename T>
CU_UNCHECKED static T atomicAdd(T* place, T value) {
    cu_atomic(place, sizeof(T), std::is_floating_point_v<T>);
    const T old = *place;
    *place = old + value;
    return old;
}
template <typename T>
CU_UNCHECKED static T atomicMax(T* place, T value) {
    cu_atomic(place, sizeof(T), std::is_floating_point_v<T>);
    const T old = *place;
    *place = old > value ? old : value;
    return old;
}

// ---- arithmetic that CUDA has without headers

static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
static inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
static inline long long min(long long a, long long b) { return a < b ? a : b; }
static inline long long max(long long a, long long b) { return a > b ? a : b; }
template <typename T>
static inline T __ldg(const T* place) {
    return *place;
}

// ---- registration: the compiler knows the types of a kernel's arguments, the launcher compares what it is given

struct CuKernel {
    const char* name;
    void (*call)(void**);
    char signature[512];
    int most_threads;  // of __launch_bounds__, 1024 without
};
extern "C" void cu_register(CuKernel*);
constexpr int cu_first(int threads, int = 0) { return threads; }  // the arguments of __launch_bounds__

template <typename T>
static const char* cu_code() {
    using U = std::remove_cv_t<T>;
    if constexpr (std::is_same_v<U, float>) return "f4";
    if constexpr (std::is_same_v<U, double>) return "f8";
    if constexpr (std::is_same_v<U, bool>) return "b1";
    if constexpr (std::is_integral_v<U>) {
        static const char codes[2][4][3] = {{"u1", "u2", "u4", "u8"}, {"i1", "i2", "i4", "i8"}};
        return codes[std::is_signed_v<U>][sizeof(U) == 1 ? 0 : sizeof(U) == 2 ? 1 : sizeof(U) == 4 ? 2 : 3];
    }
    return "??";
}

// "R" pointer to const, "W" pointer, "S" scalar, and what it points to or is.
template <typename T>
static void cu_describe(char* text) {
    if constexpr (std::is_pointer_v<T>) {
        using U = std::remove_pointer_t<T>;
        strcat(strcat(text, std::is_const_v<U> ? "R" : "W"), cu_code<U>());
    } else {
        strcat(strcat(text, "S"), cu_code<T>());
    }
    strcat(text, " ");
}

template <auto function>
struct CuEntry;
template <typename... A, void (*function)(A...)>
struct CuEntry<function> {
    template <size_t... I>
    CU_UNCHECKED static void unpack(void** arguments, std::index_sequence<I...>) {
        function(*static_cast<std::remove_reference_t<A>*>(arguments[I])...);
    }
    CU_UNCHECKED static void call(void** arguments) { unpack(arguments, std::index_sequence_for<A...>{}); }
    static void enter(const char* name, int most_threads) {
        static CuKernel kernel;
        kernel = {name, call, "", most_threads};
        (cu_describe<A>(kernel.signature), ...);
        cu_register(&kernel);
    }
};
