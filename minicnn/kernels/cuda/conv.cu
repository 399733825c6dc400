// Convolution as the network means it, eq. (1): a correlation with zero padding, and, with the weights turned by 180
// degrees and transposed, the gradient of its input. An implicit GEMM: the columns of im2col are read out of a patch of
// the input in shared memory and exist nowhere.
//
//     block   tile_images x tile_rows x (segments x RP) pixels, groups x RO filters
//     thread  one segment of RP pixels in a row, RO filters: RO x RP sums in registers
//     loop    over CHUNK channels at a time: stage the patch and the weights, then for each channel and window row
//
//         segment + window     p p p p p p p p + + + +     RP + K - 1 inputs, loaded once and used K times
//         RO weights           K times                     RO x RP multiply-adds each
//
// What the grid's tiles hang over a plane is staged as zeros, computed, and not stored.

enum { ADD = 1, TANH = 2, POOL = 4, DOUBLE = 8 };

// Channels of one pass of the main loop.
template <int K>
constexpr int CHUNK = K > 5 ? 2 : 4;

// Small tiles hide little latency: more threads of them, and no loop over the window's rows.
template <int RO, int RP>
constexpr bool SMALL = RO* RP <= 40;

// Offsets from the first image's plane of all places of a tile's patches, -1 outside of a plane or behind the last
// image: the same for every channel.
__device__ __forceinline__ void make_table(Index* table, int images, Index step, int rows, int pitch, int top,
                                           int left, int height, int width) {
    const int area = rows * pitch;
    for (int place = threadIdx.x; place < images * area; place += blockDim.x) {
        const int i = top + place % area / pitch, j = left + place % pitch;
        const bool inside = i >= 0 && i < height && j >= 0 && j < width;
        table[place] = inside ? place / area * step + Index(i) * width + j : -1;
    }
}

// A tap of a pass's windows, one channel after the other: where a filter has it, and where it is staged.
struct Tap {
    int source, target;
};

template <typename T, int K, int RO, int RP, bool BACKWARD>
__global__ void __launch_bounds__(SMALL<RO, RP> ? 256 : 128, sizeof(T) == 8 ? 1 : SMALL<RO, RP> ? 2 : 3)
    correlate(T* __restrict__ y, T* __restrict__ pooled, T* __restrict__ up, const T* __restrict__ x,
              const T* __restrict__ w, const T* __restrict__ b, Index y_step, Index pooled_step, Index up_step,
              Index x_step, int images, int filters, int channels, int height, int width, int tile_images,
              int tile_rows, int segments, int groups, int flags) {
    constexpr int TAPS = K * K, BEFORE = BACKWARD ? K / 2 : (K - 1) / 2;
    constexpr int SHARE = (CHUNK<K> * TAPS + WARP - 1) / WARP;  // of a lane, in the taps of a pass
    constexpr int SPAN = whole_vectors<T>(RP + K - 1), PADDED = whole_vectors<T>(RO);

    const int plane = height * width, pitch = whole_vectors<T>(segments * RP + K - 1);
    const int area = (tile_rows + K - 1) * pitch, places = tile_images * area;
    const int line_of_weights = groups * K * PADDED, lines = SHARE * WARP / K + 1;
    T* const patch = shared_memory<T>();                // [CHUNK][tile_images][area]
    T* const weights = patch + CHUNK<K> * places;       // [CHUNK][K][groups][K][PADDED], and more for idle lanes
    Index* const table = reinterpret_cast<Index*>(weights + lines * line_of_weights);  // [places]
    Tap* const taps = reinterpret_cast<Tap*>(table + places);  // [SHARE x WARP]

    const int across = (width + segments * RP - 1) / (segments * RP), down = (height + tile_rows - 1) / tile_rows;
    const int left = blockIdx.x % across * segments * RP, top = blockIdx.x / across % down * tile_rows;
    const int first_image = blockIdx.x / across / down * tile_images, first_filter = blockIdx.y * groups * RO;
    const int thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP, warps = blockDim.x / WARP;
    const int segment = thread % segments, row = thread / segments % tile_rows;
    const int image = thread / segments / tile_rows % tile_images, group = thread / segments / tile_rows / tile_images;
    const bool active = group < groups;  // the others, which fill the last warp, only help to stage

    make_table(table, min(tile_images, images - first_image), x_step, tile_rows + K - 1, pitch, top - BEFORE,
               left - BEFORE, height, width);
    for (int place = min(tile_images, images - first_image) * area + thread; place < places; place += blockDim.x)
        table[place] = -1;
    for (int tap = thread; tap < SHARE * WARP; tap += blockDim.x) {
        const int source = BACKWARD ? (tap / TAPS * filters + 1) * TAPS - 1 - tap % TAPS : tap;
        taps[tap] = Tap{source, tap / K * line_of_weights + tap % K * PADDED};
    }
    for (int i = thread; i < lines * line_of_weights; i += blockDim.x) weights[i] = 0;

    const int real = min(groups * RO, filters - first_filter);
    const Index apart = BACKWARD ? TAPS : Index(channels) * TAPS;  // from one filter's taps to the next one's

    T sums[RO][RP];
#pragma unroll
    for (int o = 0; o < RO; o++)
#pragma unroll
        for (int p = 0; p < RP; p++) sums[o][p] = 0;

#pragma unroll 1
    for (int first = 0; first < channels; first += CHUNK<K>) {
        const int count = min(CHUNK<K>, channels - first);
        __syncthreads();  // tables and zeros are there; nobody reads the last pass's any more

        const T* const start = x + first_image * x_step + Index(first) * plane;
#pragma unroll 1
        for (int place = thread; place < places; place += blockDim.x) {
            const Index offset = table[place];
            const T* from = start + offset;
            T* to = patch + place;
            T values[CHUNK<K>];
#pragma unroll
            for (int c = 0; c < CHUNK<K>; c++, from += plane) values[c] = offset >= 0 && c < count ? *from : T(0);
#pragma unroll
            for (int c = 0; c < CHUNK<K>; c++, to += places) *to = values[c];
        }

        const T* from = w + (Index(first_filter + warp) * apart + Index(first) * (BACKWARD ? filters : 1) * TAPS);
#pragma unroll 1
        for (int f = warp; f < real; f += warps, from += warps * apart) {
            T* const to = weights + f / RO * K * PADDED + f % RO;
#pragma unroll
            for (int k = 0; k < SHARE; k++) {
                const Tap tap = taps[lane + k * WARP];
                to[tap.target] = lane + k * WARP < count * TAPS ? from[tap.source] : T(0);
            }
        }
        __syncthreads();

        if (active) {
            const T* line = patch + image * area + row * pitch + segment * RP;
            const T* weight = weights + group * K * PADDED;
#pragma unroll 1
            for (int c = 0; c < count; c++) {
#pragma unroll (SMALL<RO, RP> ? K : 1)
                for (int u = 0; u < K; u++) {
                    T inputs[SPAN];
                    if constexpr (RP * sizeof(T) % 16 == 0) {
                        load_vectors(inputs, line);
                    } else {
#pragma unroll
                        for (int j = 0; j < RP + K - 1; j++) inputs[j] = line[j];
                    }
#pragma unroll
                    for (int v = 0; v < K; v++) {
                        T factors[PADDED];
                        load_vectors(factors, weight + v * PADDED);
#pragma unroll
                        for (int o = 0; o < RO; o++)
#pragma unroll
                            for (int p = 0; p < RP; p++)
                                sums[o][p] = multiply_add(factors[o], inputs[v + p], sums[o][p]);
                    }
                    line += pitch;
                    weight += line_of_weights;
                }
                line += places - K * pitch;
            }
        }
    }

    const int n = first_image + image, i = top + row, j = left + segment * RP;
    const int count = active && n < images && i < height ? min(RP, width - j) : 0;
    const Index pixel = Index(i) * width + j;
    // One filter's sums at a time pass through shared memory, where of each pair of rows the upper one's thread finds the
    // lower one's. The others' move up: a loop that is not unrolled cannot index registers, and unrolled it is long.
    T* const mine = patch + thread;
    const int threads = blockDim.x;
    __syncthreads();  // nobody reads the patch any more
#pragma unroll 1
    for (int o = 0; o < RO; o++) {
#pragma unroll
        for (int p = 0; p < RP; p++) {
            mine[p * threads] = sums[0][p];
#pragma unroll
            for (int q = 1; q < RO; q++) sums[q - 1][p] = sums[q][p];
        }
        const int filter = first_filter + group * RO + o;
        const int stored = filter < filters ? count : 0;
        T* const to = y + n * y_step + Index(filter) * plane + pixel;
        T values[RP];
        if constexpr (BACKWARD) {
#pragma unroll
            for (int p = 0; p < RP; p++) values[p] = mine[p * threads];
            if (flags & ADD)
                add(to, values, stored);
            else
                store(to, values, stored);
        } else {
            const T bias = filter < filters ? b[filter] : T(0);
#pragma unroll 1
            for (int p = 0; p < RP; p++) {
                const T sum = mine[p * threads] + bias;
                mine[p * threads] = flags & TANH ? hyperbolic_tangent(sum) : sum;
            }
#pragma unroll
            for (int p = 0; p < RP; p++) values[p] = mine[p * threads];
            store(to, values, stored);
            if (flags & DOUBLE) {
                T twice[2 * RP];
#pragma unroll
                for (int p = 0; p < 2 * RP; p++) twice[p] = values[p / 2];
                T* const above = up + n * up_step + Index(filter) * 4 * plane + Index(2 * i) * 2 * width + 2 * j;
                store(above, twice, 2 * stored);
                store(above + 2 * width, twice, 2 * stored);
            }
            if constexpr (RP % 2 == 0) {
                if (flags & POOL) {
                    __syncthreads();
                    if (stored > 0 && row % 2 == 0) {
                        const T* const below = mine + segments;
                        T peaks[RP / 2];
#pragma unroll
                        for (int p = 0; p < RP / 2; p++)
                            peaks[p] = largest(largest(values[2 * p], values[2 * p + 1]),
                                               largest(below[2 * p * threads], below[(2 * p + 1) * threads]));
                        const Index place = Index(i / 2) * (width / 2) + j / 2;
                        store(pooled + n * pooled_step + Index(filter) * (plane / 4) + place, peaks, stored / 2);
                    }
                    __syncthreads();  // before the next filter's sums
                }
            }
        }
    }
}
