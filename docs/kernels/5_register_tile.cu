// Step 5: the matrix product of step 4, with the patch of step 3 in place of the columns.
//
// The rows of `columns` that belong to one channel are shifted copies of one patch. So stage the patch, and let the
// address stand for the shift: global memory is read as seldom as in step 3. A thread computes RP neighbouring pixels
// for RO filters. Their windows overlap, so a row of them needs RP + K - 1 inputs, which serve all K shifts:
//
//     p p p p + + + +           8 inputs, read once, for a whole row of the window
//     K x RO weights            20, for K x RO x RP = 80 multiply-adds
//
// Launch: block 256, grid (columns / 32, rows / 8, images x groups of 16 filters), shared memory for
// ROWS x PITCH + FILTERS x K x K floats.

constexpr int K = 5, R = K / 2, RO = 4, RP = 4;
constexpr int ACROSS = 32, DOWN = 8, FILTERS = 16, THREADS = ACROSS / RP * DOWN * (FILTERS / RO);
constexpr int PITCH = ACROSS + K - 1, ROWS = DOWN + K - 1;

extern "C" __global__ void convolve(float* y, const float* x, const float* w, const float* b, int filters, int channels,
                                    int height, int width) {
    extern __shared__ float memory[];
    float* const patch = memory;
    float* const windows = memory + ROWS * PITCH;  // [K x K][FILTERS]
    const int groups = (filters + FILTERS - 1) / FILTERS;
    const int top = blockIdx.y * DOWN, left = blockIdx.x * ACROSS;
    const int first = blockIdx.z % groups * FILTERS, n = blockIdx.z / groups;
    const int segment = threadIdx.x % (ACROSS / RP) * RP, own_row = threadIdx.x / (ACROSS / RP) % DOWN;
    const int own_filter = threadIdx.x / (ACROSS / RP) / DOWN * RO;

    float sums[RO][RP] = {};
    for (int c = 0; c < channels; c++) {
        const float* const plane = x + (n * channels + c) * height * width;
        __syncthreads();
        for (int place = threadIdx.x; place < ROWS * PITCH; place += THREADS) {
            const int row = top + place / PITCH - R, column = left + place % PITCH - R;
            const bool inside = row >= 0 && row < height && column >= 0 && column < width;
            patch[place] = inside ? plane[row * width + column] : 0;
        }
        for (int place = threadIdx.x; place < FILTERS * K * K; place += THREADS) {
            const int o = first + place % FILTERS, tap = place / FILTERS;
            windows[place] = o < filters ? w[(o * channels + c) * K * K + tap] : 0;
        }
        __syncthreads();

        for (int u = 0; u < K; u++) {
            float inputs[RP + K - 1];
#pragma unroll
            for (int p = 0; p < RP + K - 1; p++) inputs[p] = patch[(own_row + u) * PITCH + segment + p];
#pragma unroll
            for (int v = 0; v < K; v++)
#pragma unroll
                for (int o = 0; o < RO; o++) {
                    const float weight = windows[(u * K + v) * FILTERS + own_filter + o];
#pragma unroll
                    for (int p = 0; p < RP; p++) sums[o][p] += weight * inputs[v + p];
                }
        }
    }
    const int i = top + own_row;
#pragma unroll
    for (int o = 0; o < RO; o++) {
        const int filter = first + own_filter + o;
        if (filter >= filters || i >= height) return;
        const float bias = b[filter];
#pragma unroll
        for (int p = 0; p < RP; p++) {
            const int j = left + segment + p;
            if (j < width) y[((n * filters + filter) * height + i) * width + j] = sums[o][p] + bias;
        }
    }
}
