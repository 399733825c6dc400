// One kernel for each mistake that the checker must report, and its like without the mistake.

__device__ float* shared_floats() {
    extern __shared__ __align__(16) unsigned char memory[];
    return reinterpret_cast<float*>(memory);
}

__global__ void read_beyond(const float* x, float* y, int n) { y[threadIdx.x] = x[threadIdx.x + n]; }

__global__ void write_beyond(const float* x, float* y, int n) { y[threadIdx.x + n] = x[threadIdx.x]; }

__global__ void write_to_const(const float* x, float* y, int n) { const_cast<float*>(x)[threadIdx.x] = n; }

struct alignas(16) Four {
    float at[4];
};
__global__ void copy_vectors(const float* x, float* y, int n) {
    const Four four = *reinterpret_cast<const Four*>(x + n);
    *reinterpret_cast<Four*>(y) = four;
}

__global__ void reverse(const float* x, float* y, int wait) {
    float* const shared = shared_floats();
    shared[threadIdx.x] = 0;
    __syncthreads();
    shared[threadIdx.x] = x[threadIdx.x];
    if (wait) __syncthreads();
    y[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

__global__ void shared_beyond(const float* x, float* y, int n) {
    float* const shared = shared_floats();
    shared[threadIdx.x + n] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = shared[threadIdx.x + n];
}

__global__ void shared_before_written(const float* x, float* y, int n) {
    float* const shared = shared_floats();
    if (threadIdx.x < blockDim.x - n) shared[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = shared[threadIdx.x];
}

__global__ void same_place(const float* x, float* y, int n) { y[threadIdx.x % n] = x[threadIdx.x]; }

__global__ void across_blocks(const float* x, float* y, int apart) { y[blockIdx.x * apart] = x[blockIdx.x]; }

__global__ void add_up(const float* x, float* y, int n) { atomicAdd(y, x[threadIdx.x]); }

__global__ void count_up(const float* x, int* y, int n) { atomicAdd(y, n); }

__global__ void leave_early(const float* x, float* y, int n) {
    if (int(threadIdx.x) >= n) return;
    __syncthreads();
    y[threadIdx.x] = x[threadIdx.x];
}

__global__ void two_barriers(const float* x, float* y, int n) {
    if (int(threadIdx.x) < n)
        __syncthreads();
    else
        __syncthreads();
    y[threadIdx.x] = x[threadIdx.x];
}

__global__ void shuffle_some(const float* x, float* y, int n) {
    float value = x[threadIdx.x];
    if (int(threadIdx.x) < n) value += __shfl_xor_sync(0xffffffff, value, 1);
    y[threadIdx.x] = value;
}

__global__ void shuffle_or_wait(const float* x, float* y, int n) {
    float value = x[threadIdx.x];
    if (int(threadIdx.x) < n)
        value += __shfl_xor_sync(0xffffffff, value, 1);
    else
        __syncthreads();
    y[threadIdx.x] = value;
}

__global__ void overflow(const float* x, float* y, int n) { y[threadIdx.x] = n * n * n > 0; }

__global__ void divide(const float* x, float* y, int n) { y[threadIdx.x] = 7 / n; }

__global__ void for_ever(const float* x, float* y, int n) {
    while (x[0] < n) y[0] = 0;
}

template <typename T, int MOST>
__global__ void __launch_bounds__(MOST < 64 ? MOST : 64) bounded(const T* x, T* y, int n) {
    y[threadIdx.x] = x[threadIdx.x];
}
