// Step 2: the threads of a block share what they read.
//
// A block computes TILE x TILE pixels of one filter. For each channel its threads first copy the patch of x that all of
// their windows cover, and the filter's window, into shared memory; then each thread computes from there.
//
//     patch   TILE + K - 1 = 20 rows and columns: 400 reads from global memory serve 256 x 25 multiply-adds
//
// The zeros around the plane are written into the patch, so the inner loop has no condition.
//
// Launch: block (16, 16), grid (columns / 16, rows / 16, images x filters), shared memory for SIDE x SIDE + K x K
// floats.

constexpr int K = 5, R = K / 2, TILE = 16, SIDE = TILE + K - 1;

extern "C" __global__ void convolve(float* y, const float* x, const float* w, const float* b, int filters, int channels,
                                    int height, int width) {
    extern __shared__ float memory[];
    float* const patch = memory;
    float* const window = memory + SIDE * SIDE;
    const int top = blockIdx.y * TILE, left = blockIdx.x * TILE;
    const int o = blockIdx.z % filters, n = blockIdx.z / filters;
    const int thread = threadIdx.y * TILE + threadIdx.x;

    float sum = 0;
    for (int c = 0; c < channels; c++) {
        const float* const plane = x + (n * channels + c) * height * width;
        __syncthreads();  // nobody reads the last channel's patch any more
        for (int place = thread; place < SIDE * SIDE; place += TILE * TILE) {
            const int row = top + place / SIDE - R, column = left + place % SIDE - R;
            const bool inside = row >= 0 && row < height && column >= 0 && column < width;
            patch[place] = inside ? plane[row * width + column] : 0;
        }
        if (thread < K * K) window[thread] = w[(o * channels + c) * K * K + thread];
        __syncthreads();  // the patch is complete

        for (int u = 0; u < K; u++)
            for (int v = 0; v < K; v++)
                sum += window[u * K + v] * patch[(threadIdx.y + u) * SIDE + threadIdx.x + v];
    }
    const int i = top + threadIdx.y, j = left + threadIdx.x;
    if (i < height && j < width) y[((n * filters + o) * height + i) * width + j] = sum + b[o];
}
