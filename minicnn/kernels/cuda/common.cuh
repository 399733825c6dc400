// What all kernels share. T is float or double; arrays are planes (images, channels, height, width) whose images lie
// `step` elements apart, since an array may be some channels of a larger one; each image is contiguous.

// Offsets: a batch may have more than 2^31 elements. Counts of one image's pixels or of channels fit an int.
typedef long long Index;

constexpr int WARP = 32;

// The start of a block's shared memory, as many bytes as the launch asks for.
template <typename T>
__device__ __forceinline__ T* shared_memory() {
    extern __shared__ __align__(16) unsigned char memory[];
    return reinterpret_cast<T*>(memory);
}

// 16 bytes: what one instruction loads or stores.
template <typename T>
struct alignas(16) Vector {
    T at[16 / sizeof(T)];
};

template <typename T>
constexpr int whole_vectors(int count) {
    constexpr int size = 16 / sizeof(T);
    return (count + size - 1) / size * size;
}

__device__ __forceinline__ float hyperbolic_tangent(float x) { return tanhf(x); }
__device__ __forceinline__ double hyperbolic_tangent(double x) { return tanh(x); }
__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }
__device__ __forceinline__ float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) { return fma(a, b, c); }

// The larger of two; NaN is not lost.
template <typename T>
__device__ __forceinline__ T largest(T a, T b) {
    return b > a || b != b ? b : a;
}

// Whether vectors may be loaded from and stored to a place.
template <typename T>
__device__ __forceinline__ bool on_vector(const T* place) {
    return reinterpret_cast<size_t>(place) % 16 == 0;
}

// to = COUNT numbers, a multiple of a vector's, from a place that is aligned for vectors.
template <int COUNT, typename T>
__device__ __forceinline__ void load_vectors(T (&to)[COUNT], const T* from) {
    constexpr int size = 16 / sizeof(T);
    static_assert(COUNT % size == 0, "whole vectors only");
#pragma unroll
    for (int i = 0; i < COUNT; i += size) {
        const Vector<T> vector = *reinterpret_cast<const Vector<T>*>(from + i);
#pragma unroll
        for (int j = 0; j < size; j++) to[i + j] = vector.at[j];
    }
}

// to = NEEDED numbers from where a segment of a row begins. The segments are STEP long: if each begins on a vector, whole
// vectors are loaded, up to COUNT numbers.
template <int STEP, int NEEDED, int COUNT, typename T>
__device__ __forceinline__ void load_segment(T (&to)[COUNT], const T* from) {
    if constexpr (STEP * sizeof(T) % 16 == 0) {
        load_vectors(to, from);
    } else {
#pragma unroll
        for (int i = 0; i < NEEDED; i++) to[i] = from[i];
    }
}

template <int COUNT, typename T>
__device__ __forceinline__ void store_vectors(T* to, const T (&from)[COUNT]) {
    constexpr int size = 16 / sizeof(T);
    static_assert(COUNT % size == 0, "whole vectors only");
#pragma unroll
    for (int i = 0; i < COUNT; i += size) {
        Vector<T> vector;
#pragma unroll
        for (int j = 0; j < size; j++) vector.at[j] = from[i + j];
        *reinterpret_cast<Vector<T>*>(to + i) = vector;
    }
}

// Store the first `count` of COUNT numbers, by vectors where they fit.
template <int COUNT, typename T>
__device__ __forceinline__ void store(T* to, const T (&from)[COUNT], int count) {
    if constexpr (COUNT * sizeof(T) % 16 == 0) {
        if (count >= COUNT && on_vector(to)) {
            store_vectors(to, from);
            return;
        }
    }
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        if (i < count) to[i] = from[i];
}

// Add the first `count` of COUNT numbers to what is there.
template <int COUNT, typename T>
__device__ __forceinline__ void add(T* to, T (&from)[COUNT], int count) {
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        if (i < count) from[i] += to[i];
    store(to, from, count);
}
