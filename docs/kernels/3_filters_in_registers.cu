// Step 3: a thread computes its pixel for several filters.
//
// Step 2 stages the same patch once for each filter, and each multiply-add still reads two numbers from shared memory,
// which is fast but not as fast as a register. Here a thread keeps FILTERS sums in registers. It reads a pixel of the
// patch once and uses it FILTERS times; the patch is staged once for all of them.
//
//     a pixel of the window     1 read of x and FILTERS reads of w for FILTERS multiply-adds
//
// Launch: block (16, 16), grid (columns / 16, rows / 16, images x groups of FILTERS filters), shared memory for
// SIDE x SIDE + FILTERS x K x K floats.

constexpr int K = 5, R = K / 2, TILE = 16, SIDE = TILE + K - 1, FILTERS = 8;

extern "C" __global__ void convolve(float* y, const float* x, const float* w, const float* b, int filters, int channels,
                                    int height, int width) {
    extern __shared__ float memory[];
    float* const patch = memory;
    float* const windows = memory + SIDE * SIDE;  // [K x K][FILTERS]
    const int groups = (filters + FILTERS - 1) / FILTERS;
    const int top = blockIdx.y * TILE, left = blockIdx.x * TILE;
    const int first = blockIdx.z % groups * FILTERS, n = blockIdx.z / groups;
    const int thread = threadIdx.y * TILE + threadIdx.x;

    float sums[FILTERS] = {};
    for (int c = 0; c < channels; c++) {
        const float* const plane = x + (n * channels + c) * height * width;
        __syncthreads();
        for (int place = thread; place < SIDE * SIDE; place += TILE * TILE) {
            const int row = top + place / SIDE - R, column = left + place % SIDE - R;
            const bool inside = row >= 0 && row < height && column >= 0 && column < width;
            patch[place] = inside ? plane[row * width + column] : 0;
        }
        for (int place = thread; place < FILTERS * K * K; place += TILE * TILE) {
            const int o = first + place % FILTERS, tap = place / FILTERS;
            windows[place] = o < filters ? w[(o * channels + c) * K * K + tap] : 0;
        }
        __syncthreads();

        for (int u = 0; u < K; u++)
            for (int v = 0; v < K; v++) {
                const float pixel = patch[(threadIdx.y + u) * SIDE + threadIdx.x + v];
#pragma unroll
                for (int o = 0; o < FILTERS; o++) sums[o] += windows[(u * K + v) * FILTERS + o] * pixel;
            }
    }
    const int i = top + threadIdx.y, j = left + threadIdx.x;
    if (i >= height || j >= width) return;
#pragma unroll
    for (int o = 0; o < FILTERS; o++)
        if (first + o < filters) y[((n * filters + first + o) * height + i) * width + j] = sums[o] + b[first + o];
}
