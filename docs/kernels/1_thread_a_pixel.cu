// Step 1: one thread computes one number of y, straight from the equation
//
//     y[n, o, i, j] = b[o] + sum over c, u, v of w[o, c, u, v] x[n, c, i + u - R, j + v - R]
//
// Every multiply-add reads a pixel and a weight from global memory. Neighbouring threads read nearly the same pixels,
// but none of them knows of the others.
//
// Launch: block (16, 16), grid (columns / 16, rows / 16, images x filters).

constexpr int K = 5, R = K / 2;

extern "C" __global__ void convolve(float* y, const float* x, const float* w, const float* b, int filters, int channels,
                                    int height, int width) {
    const int j = blockIdx.x * blockDim.x + threadIdx.x, i = blockIdx.y * blockDim.y + threadIdx.y;
    const int o = blockIdx.z % filters, n = blockIdx.z / filters;
    if (i >= height || j >= width) return;

    float sum = b[o];
    for (int c = 0; c < channels; c++)
        for (int u = 0; u < K; u++)
            for (int v = 0; v < K; v++) {
                const int row = i + u - R, column = j + v - R;
                if (row < 0 || row >= height || column < 0 || column >= width) continue;  // zeros around the plane
                sum += w[((o * channels + c) * K + u) * K + v] *
                       x[((n * channels + c) * height + row) * width + column];
            }
    y[((n * filters + o) * height + i) * width + j] = sum;
}
