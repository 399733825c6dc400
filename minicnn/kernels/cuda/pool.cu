// Everything between convolutions: pooling, upsampling, concatenation (Sec. 2.2) and tanh, each alone, and what
// interlinking layers make of a tanh in one. A thread takes a pixel (or a 2 x 2 tile) of one plane at a time.

// The planes of a block's row of the grid, and the pixels of a thread.
#define FOR_PLANES(plane, count) for (int plane = blockIdx.y; plane < (count); plane += gridDim.y)
#define FOR_PIXELS(pixel, count) \
    for (int pixel = blockIdx.x * blockDim.x + threadIdx.x; pixel < (count); pixel += gridDim.x * blockDim.x)

// Plane c of image n, where planes are numbered n * channels + c.
template <typename T>
__device__ __forceinline__ T* plane_of(T* array, Index step, int plane, int channels, int area) {
    return array + plane / channels * step + Index(plane % channels) * area;
}

template <typename T>
__device__ __forceinline__ void put(T* to, T value, int add) {
    *to = add ? *to + value : value;
}

// y[i, j] = max of x[stride i - padding + u, stride j - padding + v]; outside counts as -inf.
template <typename T>
__global__ void max_pool2d_forward(T* y, const T* x, Index y_step, Index x_step, int images, int channels, int height,
                                   int width, int kernel_size, int stride, int padding) {
    const int x_height = height * stride, x_width = width * stride;
    FOR_PLANES(plane, images * channels) {
        const T* const source = plane_of(x, x_step, plane, channels, x_height * x_width);
        T* const target = plane_of(y, y_step, plane, channels, height * width);
        FOR_PIXELS(pixel, height * width) {
            const int top = pixel / width * stride - padding, left = pixel % width * stride - padding;
            T peak = source[max(top, 0) * x_width + max(left, 0)];
            for (int i = max(top, 0); i < top + kernel_size; i++)
                for (int j = max(left, 0); j < left + kernel_size; j++) peak = largest(peak, source[i * x_width + j]);
            target[pixel] = peak;
        }
    }
}

// Place in x of the first maximum of a window in row-major order; of its first place, if the maximum is NaN.
template <typename T>
__device__ int first_maximum(const T* x, int width, T peak, int top, int left, int kernel_size) {
    for (int i = max(top, 0); i < top + kernel_size; i++)
        for (int j = max(left, 0); j < left + kernel_size; j++)
            if (x[i * width + j] == peak) return i * width + j;
    return max(top, 0) * width + max(left, 0);
}

// dx gathers from the windows that its pixel is the first maximum of.
template <typename T>
__global__ void max_pool2d_backward(T* dx, const T* dy, const T* x, const T* y, Index dx_step, Index dy_step,
                                    Index x_step, Index y_step, int images, int channels, int height, int width,
                                    int kernel_size, int stride, int padding, int add) {
    const int x_height = height * stride, x_width = width * stride;
    FOR_PLANES(plane, images * channels) {
        const T* const source = plane_of(x, x_step, plane, channels, x_height * x_width);
        const T* const peaks = plane_of(y, y_step, plane, channels, height * width);
        const T* const gradients = plane_of(dy, dy_step, plane, channels, height * width);
        T* const target = plane_of(dx, dx_step, plane, channels, x_height * x_width);
        FOR_PIXELS(pixel, x_height * x_width) {
            const int row = pixel / x_width + padding, column = pixel % x_width + padding;
            T gradient = 0;
            for (int i = max(row - kernel_size + stride, 0) / stride; i <= row / stride && i < height; i++)
                for (int j = max(column - kernel_size + stride, 0) / stride; j <= column / stride && j < width; j++) {
                    const T peak = peaks[i * width + j];
                    if (first_maximum(source, x_width, peak, i * stride - padding, j * stride - padding, kernel_size) ==
                        pixel)
                        gradient += gradients[i * width + j];
                }
            put(target + pixel, gradient, add);
        }
    }
}

template <typename T>
__global__ void mean_pool2d_forward(T* y, const T* x, Index y_step, Index x_step, int images, int channels, int height,
                                    int width, int kernel_size) {
    const int x_width = width * kernel_size;
    FOR_PLANES(plane, images * channels) {
        const T* const source = plane_of(x, x_step, plane, channels, height * width * kernel_size * kernel_size);
        T* const target = plane_of(y, y_step, plane, channels, height * width);
        FOR_PIXELS(pixel, height * width) {
            const T* const tile = source + pixel / width * kernel_size * x_width + pixel % width * kernel_size;
            T sum = 0;
            for (int i = 0; i < kernel_size; i++)
                for (int j = 0; j < kernel_size; j++) sum += tile[i * x_width + j];
            target[pixel] = sum / T(kernel_size * kernel_size);
        }
    }
}

template <typename T>
__global__ void mean_pool2d_backward(T* dx, const T* dy, Index dx_step, Index dy_step, int images, int channels,
                                     int height, int width, int kernel_size, int add) {
    const int x_width = width * kernel_size;
    FOR_PLANES(plane, images * channels) {
        const T* const source = plane_of(dy, dy_step, plane, channels, height * width);
        T* const target = plane_of(dx, dx_step, plane, channels, height * width * kernel_size * kernel_size);
        FOR_PIXELS(pixel, height * width * kernel_size * kernel_size) {
            const T gradient = source[pixel / x_width / kernel_size * width + pixel % x_width / kernel_size];
            put(target + pixel, gradient / T(kernel_size * kernel_size), add);
        }
    }
}

// Each pixel of x (height x width) becomes a factor x factor block.
template <typename T>
__global__ void upsample_nearest2d_forward(T* y, const T* x, Index y_step, Index x_step, int images, int channels,
                                           int height, int width, int factor) {
    const int y_width = width * factor;
    FOR_PLANES(plane, images * channels) {
        const T* const source = plane_of(x, x_step, plane, channels, height * width);
        T* const target = plane_of(y, y_step, plane, channels, height * width * factor * factor);
        FOR_PIXELS(pixel, height * width * factor * factor)
            target[pixel] = source[pixel / y_width / factor * width + pixel % y_width / factor];
    }
}

template <typename T>
__global__ void upsample_nearest2d_backward(T* dx, const T* dy, Index dx_step, Index dy_step, int images, int channels,
                                            int height, int width, int factor, int add) {
    const int y_width = width * factor;
    FOR_PLANES(plane, images * channels) {
        const T* const source = plane_of(dy, dy_step, plane, channels, height * width * factor * factor);
        T* const target = plane_of(dx, dx_step, plane, channels, height * width);
        FOR_PIXELS(pixel, height * width) {
            const T* const block = source + pixel / width * factor * y_width + pixel % width * factor;
            T sum = 0;
            for (int i = 0; i < factor; i++)
                for (int j = 0; j < factor; j++) sum += block[i * y_width + j];
            put(target + pixel, sum, add);
        }
    }
}

// Two planes of each image: column parity and row parity.
template <typename T>
__global__ void parity_maps(T* y, Index y_step, int images, int height, int width) {
    FOR_PLANES(plane, images * 2) {
        T* const target = plane_of(y, y_step, plane, 2, height * width);
        FOR_PIXELS(pixel, height * width) target[pixel] = T((plane % 2 ? pixel / width : pixel % width) % 2);
    }
}

// y = x, or y += x: concatenation and its gradient are copies from and to some channels.
template <typename T>
__global__ void copy_planes(T* y, const T* x, Index y_step, Index x_step, int images, int channels, int area, int add) {
    FOR_PLANES(plane, images * channels) {
        const T* const source = plane_of(x, x_step, plane, channels, area);
        T* const target = plane_of(y, y_step, plane, channels, area);
        FOR_PIXELS(pixel, area) put(target + pixel, source[pixel], add);
    }
}

template <typename T>
__global__ void tanh_forward(T* y, const T* x, Index y_step, Index x_step, int images, int channels, int area) {
    FOR_PLANES(plane, images * channels) {
        const T* const source = plane_of(x, x_step, plane, channels, area);
        T* const target = plane_of(y, y_step, plane, channels, area);
        FOR_PIXELS(pixel, area) target[pixel] = hyperbolic_tangent(source[pixel]);
    }
}

template <typename T>
__global__ void tanh_backward(T* dx, const T* dy, const T* y, Index dx_step, Index dy_step, Index y_step, int images,
                              int channels, int area, int add) {
    FOR_PLANES(plane, images * channels) {
        const T* const source = plane_of(dy, dy_step, plane, channels, area);
        const T* const values = plane_of(y, y_step, plane, channels, area);
        T* const target = plane_of(dx, dx_step, plane, channels, area);
        FOR_PIXELS(pixel, area) {
            const T gradient = source[pixel], value = values[pixel];
            put(target + pixel, gradient - gradient * value * value, add);
        }
    }
}

enum { OWN = 1, POOL = 2, DOUBLE = 4 };

// y = tanh(x); pooled = maxima of 2 x 2 tiles of y (POOL), up = y doubled (DOUBLE). y may be x itself.
template <typename T>
__global__ void interlink_forward(T* y, T* pooled, T* up, const T* x, Index y_step, Index pooled_step, Index up_step,
                                  Index x_step, int images, int channels, int height, int width, int flags) {
    const int area = height * width, across = (width + 1) / 2, tiles = (height + 1) / 2 * across;
    FOR_PLANES(plane, images * channels) {
        const T* const source = plane_of(x, x_step, plane, channels, area);
        T* const target = plane_of(y, y_step, plane, channels, area);
        FOR_PIXELS(tile, tiles) {
            const int top = tile / across * 2, left = tile % across * 2;
            T peak = 0;
            for (int i = top; i < min(top + 2, height); i++)
                for (int j = left; j < min(left + 2, width); j++) {
                    const T value = hyperbolic_tangent(source[i * width + j]);
                    target[i * width + j] = value;
                    peak = i == top && j == left ? value : largest(peak, value);
                    if (flags & DOUBLE) {
                        T* const above = plane_of(up, up_step, plane, channels, 4 * area) + 4 * i * width + 2 * j;
                        above[0] = above[1] = above[2 * width] = above[2 * width + 1] = value;
                    }
                }
            if (flags & POOL) plane_of(pooled, pooled_step, plane, channels, area / 4)[tile] = peak;
        }
    }
}

// dx = (dy (OWN) + gradients of pooled and up) (1 - y^2). dx may be dy itself.
template <typename T>
__global__ void interlink_backward(T* dx, const T* dy, const T* dpooled, const T* dup, const T* y, Index dx_step,
                                   Index dy_step, Index dpooled_step, Index dup_step, Index y_step, int images,
                                   int channels, int height, int width, int flags) {
    const int area = height * width, across = (width + 1) / 2, tiles = (height + 1) / 2 * across;
    FOR_PLANES(plane, images * channels) {
        const T* const values = plane_of(y, y_step, plane, channels, area);
        T* const target = plane_of(dx, dx_step, plane, channels, area);
        FOR_PIXELS(tile, tiles) {
            const int top = tile / across * 2, left = tile % across * 2;
            int peak = -1;  // place that the pooled gradient goes to
            if (flags & POOL) {
                T highest = values[top * width + left];
                for (int i = top; i < top + 2; i++)
                    for (int j = left; j < left + 2; j++) highest = largest(highest, values[i * width + j]);
                peak = first_maximum(values, width, highest, top, left, 2);
            }
            for (int i = top; i < min(top + 2, height); i++)
                for (int j = left; j < min(left + 2, width); j++) {
                    const int pixel = i * width + j;
                    T gradient = flags & OWN ? plane_of(dy, dy_step, plane, channels, area)[pixel] : T(0);
                    if (flags & DOUBLE) {
                        const T* const above = plane_of(dup, dup_step, plane, channels, 4 * area) + 4 * i * width + 2 * j;
                        gradient += above[0] + above[1] + above[2 * width] + above[2 * width + 1];
                    }
                    if (pixel == peak) gradient += plane_of(dpooled, dpooled_step, plane, channels, area / 4)[tile];
                    const T value = values[pixel];
                    target[pixel] = gradient - gradient * value * value;
                }
        }
    }
}
