// Softmax cross-entropy over the labels of every pixel (Sec. 2.4 and 2.5) and the update (Sec. 2.5).

constexpr int SUMMERS = 256;  // threads of a block that sums

// Thread 0: the sum of all threads' values, in the same order every time.
template <typename T>
__device__ __forceinline__ T block_sum(T value) {
    T* const shared = shared_memory<T>();
    __syncthreads();  // nobody reads the last sum any more
    shared[threadIdx.x] = value;
    for (int half = SUMMERS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    }
    return threadIdx.x == 0 ? shared[0] : value;
}

// p = softmax of z over the labels; each block's sums of weights log p[t] and of weights go to `sums`, in pairs.
template <typename T>
__global__ void __launch_bounds__(SUMMERS)
    softmax_forward(T* __restrict__ p, T* __restrict__ sums, const T* __restrict__ z, const int* __restrict__ t,
                    const T* __restrict__ weights, Index p_step, Index z_step, int images, int labels, int area) {
    const Index pixel = Index(blockIdx.x) * SUMMERS + threadIdx.x;
    T loss = 0, weight = 0;
    if (pixel < Index(images) * area) {
        const T* const source = z + pixel / area * z_step + pixel % area;
        T* const target = p + pixel / area * p_step + pixel % area;
        T peak = source[0];
        for (int label = 1; label < labels; label++) peak = largest(peak, source[Index(label) * area]);
        T norm = 0;
        for (int label = 0; label < labels; label++) {
            const T value = exponential(source[Index(label) * area] - peak);
            target[Index(label) * area] = value;
            norm += value;
        }
        for (int label = 0; label < labels; label++) target[Index(label) * area] /= norm;
        weight = weights[pixel];
        // -log p[t], which stays finite where p[t] underflows
        loss = weight * (logarithm(norm) + peak - source[Index(t[pixel]) * area]);
    }
    loss = block_sum(loss);
    weight = block_sum(weight);
    if (threadIdx.x == 0) {
        sums[2 * Index(blockIdx.x)] = loss;
        sums[2 * Index(blockIdx.x) + 1] = weight;
    }
}

// total = sum of weights, loss = sum of -weights log p[t] / total, from the blocks' sums; one block.
template <typename T>
__global__ void __launch_bounds__(SUMMERS)
    softmax_sums(T* __restrict__ loss, T* __restrict__ total, const T* __restrict__ sums, int blocks) {
    double loss_sum = 0, weight_sum = 0;
    for (int block = threadIdx.x; block < blocks; block += SUMMERS) {
        loss_sum += sums[2 * Index(block)];
        weight_sum += sums[2 * Index(block) + 1];
    }
    loss_sum = block_sum(loss_sum);
    weight_sum = block_sum(weight_sum);
    if (threadIdx.x == 0) {
        *total = T(weight_sum);
        *loss = T(loss_sum / weight_sum);
    }
}

// dz = weights (p - onehot(t)) / total.
template <typename T>
__global__ void __launch_bounds__(SUMMERS)
    softmax_backward(T* __restrict__ dz, const T* __restrict__ p, const int* __restrict__ t,
                     const T* __restrict__ weights, const T* __restrict__ total, Index dz_step, Index p_step,
                     int images, int labels, int area) {
    const Index pixel = Index(blockIdx.x) * SUMMERS + threadIdx.x;
    if (pixel >= Index(images) * area) return;
    const T* const source = p + pixel / area * p_step + pixel % area;
    T* const target = dz + pixel / area * dz_step + pixel % area;
    const T scale = weights[pixel] / *total;
    const int truth = t[pixel];
    for (int label = 0; label < labels; label++)
        target[Index(label) * area] = (source[Index(label) * area] - T(label == truth)) * scale;
}

// One step of SGD on the flat buffers. The rate is read from the device, since it changes where a graph is replayed.
template <typename T>
__global__ void __launch_bounds__(SUMMERS)
    sgd_update(T* __restrict__ values, T* __restrict__ velocity, const T* __restrict__ gradients,
               const T* __restrict__ lr, Index count, T momentum, int nesterov, T weight_decay, T shrink) {
    const Index i = Index(blockIdx.x) * SUMMERS + threadIdx.x;
    if (i >= count) return;
    const T step = -*lr * (gradients[i] + weight_decay * values[i]);
    const T speed = momentum * velocity[i] + step;
    velocity[i] = speed;
    values[i] = shrink * values[i] + (nesterov ? momentum * speed + step : speed);
}
