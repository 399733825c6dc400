// Step 4: the convolution as a matrix product.
//
//     y (filters x pixels) = w (filters x C K K) times columns (C K K x pixels)
//
// Column p of `columns` (im2col) is the window around pixel p, channel after channel. The matrix would be 25 times as
// large as x; an implicit GEMM never stores it, but computes the address of each entry when a tile of it is staged.
// What remains is the classic product: a block computes FILTERS x PIXELS of y, DEPTH rows of `columns` at a time, and a
// thread RO x RP of them in registers.
//
//     a row of the tiles        RO + RP = 8 reads from shared memory for RO x RP = 16 multiply-adds
//
// One kernel serves every window, stride and padding, since only the addresses know of them. The price: `columns` holds
// each pixel K x K times, and each time it is read from global memory (or from a cache).
//
// Launch: block 64, grid (pixels / 64, filters / 16, images), shared memory for DEPTH x (FILTERS + PIXELS) floats.

constexpr int K = 5, R = K / 2, FILTERS = 16, PIXELS = 64, DEPTH = 16, RO = 4, RP = 4;
constexpr int THREADS = FILTERS / RO * (PIXELS / RP);

extern "C" __global__ void convolve(float* y, const float* x, const float* w, const float* b, int filters, int channels,
                                    int height, int width) {
    extern __shared__ float memory[];
    float* const weights = memory;                     // [DEPTH][FILTERS]
    float* const columns = memory + DEPTH * FILTERS;  // [DEPTH][PIXELS]
    const int pixels = height * width, depth = channels * K * K, n = blockIdx.z;
    const int first_pixel = blockIdx.x * PIXELS, first_filter = blockIdx.y * FILTERS;
    const int own_pixel = threadIdx.x % (PIXELS / RP), own_filter = threadIdx.x / (PIXELS / RP);

    float sums[RO][RP] = {};
    for (int start = 0; start < depth; start += DEPTH) {
        __syncthreads();
        for (int place = threadIdx.x; place < DEPTH * FILTERS; place += THREADS) {
            const int d = start + place / FILTERS, o = first_filter + place % FILTERS;
            weights[place] = d < depth && o < filters ? w[o * depth + d] : 0;
        }
        for (int place = threadIdx.x; place < DEPTH * PIXELS; place += THREADS) {
            const int d = start + place / PIXELS, pixel = first_pixel + place % PIXELS;
            const int c = d / (K * K), row = pixel / width + d / K % K - R, column = pixel % width + d % K - R;
            const bool inside = d < depth && row >= 0 && row < height && column >= 0 && column < width;
            columns[place] = inside && pixel < pixels ? x[(n * channels + c) * pixels + row * width + column] : 0;
        }
        __syncthreads();

        for (int d = 0; d < DEPTH; d++) {
            float factors[RO], inputs[RP];
#pragma unroll
            for (int o = 0; o < RO; o++) factors[o] = weights[d * FILTERS + own_filter * RO + o];
#pragma unroll
            for (int p = 0; p < RP; p++) inputs[p] = columns[d * PIXELS + own_pixel + p * (PIXELS / RP)];
#pragma unroll
            for (int o = 0; o < RO; o++)
#pragma unroll
                for (int p = 0; p < RP; p++) sums[o][p] += factors[o] * inputs[p];
        }
    }
#pragma unroll
    for (int o = 0; o < RO; o++)
#pragma unroll
        for (int p = 0; p < RP; p++) {
            const int filter = first_filter + own_filter * RO + o, pixel = first_pixel + own_pixel + p * (PIXELS / RP);
            if (filter < filters && pixel < pixels) y[(n * filters + filter) * pixels + pixel] = sums[o][p] + b[filter];
        }
}
