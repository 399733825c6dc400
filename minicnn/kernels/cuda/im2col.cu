// The plain convolution: unfold the input into columns, let cuBLAS multiply, fold back.

// col[n, (c, u, v), pixel] = x[n, c, i + u - before, j + v - before], 0 outside of the plane.
template <typename T>
__global__ void __launch_bounds__(256)
    im2col(T* __restrict__ col, const T* __restrict__ x, Index x_step, int images, int channels, int height, int width,
           int kernel_size, int before) {
    const Index count = Index(images) * channels * kernel_size * kernel_size * height * width;
    for (Index k = Index(blockIdx.x) * blockDim.x + threadIdx.x; k < count; k += Index(gridDim.x) * blockDim.x) {
        Index rest = k;
        const int column = int(rest % width);
        const int row = int((rest /= width) % height);
        const int v = int((rest /= height) % kernel_size);
        const int u = int((rest /= kernel_size) % kernel_size);
        const int c = int((rest /= kernel_size) % channels);
        const Index n = rest / channels;
        const int i = row + u - before, j = column + v - before;
        const bool inside = i >= 0 && i < height && j >= 0 && j < width;
        col[k] = inside ? x[n * x_step + (Index(c) * height + i) * width + j] : T(0);
    }
}

// dx[n, c, i, j] = sum of the columns' gradients in all windows that the pixel was in: gathered, without atomics.
template <typename T>
__global__ void __launch_bounds__(256)
    col2im(T* __restrict__ dx, const T* __restrict__ dcol, Index dx_step, int images, int channels, int height,
           int width, int kernel_size, int before, int add) {
    const Index count = Index(images) * channels * height * width;
    for (Index k = Index(blockIdx.x) * blockDim.x + threadIdx.x; k < count; k += Index(gridDim.x) * blockDim.x) {
        const int j = int(k % width), i = int(k / width % height), c = int(k / width / height % channels);
        const Index n = k / width / height / channels;
        T sum = 0;
        for (int u = 0; u < kernel_size; u++)
            for (int v = 0; v < kernel_size; v++) {
                const int row = i - u + before, column = j - v + before;
                if (row >= 0 && row < height && column >= 0 && column < width)
                    sum += dcol[(((n * channels + c) * kernel_size + u) * kernel_size + v) * height * width + row * width +
                                column];
            }
        T* const to = dx + n * dx_step + (Index(c) * height + i) * width + j;
        *to = add ? *to + sum : sum;
    }
}

// y = product + b.
template <typename T>
__global__ void __launch_bounds__(256)
    add_bias(T* __restrict__ y, const T* __restrict__ product, const T* __restrict__ b, Index y_step, int images,
             int filters, int area) {
    const Index count = Index(images) * filters * area;
    for (Index k = Index(blockIdx.x) * blockDim.x + threadIdx.x; k < count; k += Index(gridDim.x) * blockDim.x) {
        const Index within = k % (Index(filters) * area), n = k / (Index(filters) * area);
        y[n * y_step + within] = product[k] + b[within / area];
    }
}

// sums[n, o] = sum of plane o of image n; a block a plane.
template <typename T>
__global__ void __launch_bounds__(256) plane_sums(T* __restrict__ sums, const T* __restrict__ dy, int area) {
    T* const shared = shared_memory<T>();
    T sum = 0;
    for (int pixel = threadIdx.x; pixel < area; pixel += 256) sum += dy[Index(blockIdx.x) * area + pixel];
    shared[threadIdx.x] = sum;
    for (int half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = shared[0];
}
