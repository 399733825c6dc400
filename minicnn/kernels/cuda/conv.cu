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
constexpr int CHUNK = K <= SMALL_WINDOW ? CHUNK_OF_SMALL_WINDOW : CHUNK_OF_LARGE_WINDOW;

// Small tiles hide little latency: more threads of them, and no loop over the window's rows.
template <int RO, int RP>
constexpr bool SMALL = RO* RP <= SMALL_TILE;
template <int RO, int RP>
constexpr int THREADS = SMALL<RO, RP> ? THREADS_OF_SMALL_TILE : THREADS_OF_LARGE_TILE;

// A tap of a pass's windows, one channel after the other: where a filter has it, and where it is staged.
struct Tap {
    int source, target;
};

// The sizes of a launch and what follows from them, the same for all threads.
template <typename T, int K, int RO, int RP, bool BACKWARD>
struct Sizes {
    static constexpr int TAPS = K * K, BEFORE = BACKWARD ? K / 2 : (K - 1) / 2;
    static constexpr int SHARE = (CHUNK<K> * TAPS + WARP - 1) / WARP;  // of a lane, in the taps of a pass
    static constexpr int PADDED = whole_vectors<T>(RO);

    int images, filters, channels, height, width;  // of the arrays
    int tile_images, tile_rows, segments, groups;  // of a block
    int plane;                                     // pixels of a plane
    int pitch, area, places;    // staged inputs of a channel: of a patch's row, of a patch, of the patches of all images
    int line_of_weights, lines; // staged weights of a window row, for all filters of a block; number of such rows
    Index apart;                // from one filter's weights to the next one's

    __device__ __forceinline__ Sizes(int images, int filters, int channels, int height, int width, int tile_images,
                                     int tile_rows, int segments, int groups)
        : images(images), filters(filters), channels(channels), height(height), width(width),
          tile_images(tile_images), tile_rows(tile_rows), segments(segments), groups(groups),
          plane(height * width), pitch(whole_vectors<T>(segments * RP + K - 1)), area((tile_rows + K - 1) * pitch),
          places(tile_images * area), line_of_weights(groups * K * PADDED), lines(SHARE * WARP / K + 1),
          apart(BACKWARD ? TAPS : Index(channels) * TAPS) {}
};

// What a block computes: its first pixel, image and filter, and how many of its images and filters there are.
struct Block {
    int left, top, first_image, first_filter, images, filters;

    template <typename T, int K, int RO, int RP, bool BACKWARD>
    __device__ __forceinline__ explicit Block(const Sizes<T, K, RO, RP, BACKWARD>& sizes) {
        const int columns = sizes.segments * RP;
        const int across = (sizes.width + columns - 1) / columns;
        const int down = (sizes.height + sizes.tile_rows - 1) / sizes.tile_rows;
        left = blockIdx.x % across * columns;
        top = blockIdx.x / across % down * sizes.tile_rows;
        first_image = blockIdx.x / across / down * sizes.tile_images;
        first_filter = blockIdx.y * sizes.groups * RO;
        images = min(sizes.tile_images, sizes.images - first_image);
        filters = min(sizes.groups * RO, sizes.filters - first_filter);
    }
};

// What a thread computes: one segment of a row of one image, RO filters. Threads that are not active fill the last warp
// and only help to stage.
struct Place {
    int segment, row, image, group;
    bool active;

    template <typename Size>
    __device__ __forceinline__ explicit Place(const Size& sizes) {
        const int thread = threadIdx.x;
        segment = thread % sizes.segments;
        row = thread / sizes.segments % sizes.tile_rows;
        image = thread / sizes.segments / sizes.tile_rows % sizes.tile_images;
        group = thread / sizes.segments / sizes.tile_rows / sizes.tile_images;
        active = group < sizes.groups;
    }
};

// Offsets from the first image's plane of all places of a tile's patches, -1 outside of a plane or behind the last
// image: the same for every channel.
template <typename T, int K, int RO, int RP, bool BACKWARD>
__device__ __forceinline__ void make_table(Index* table, const Sizes<T, K, RO, RP, BACKWARD>& sizes,
                                           const Block& block, Index step) {
    const int top = block.top - sizes.BEFORE, left = block.left - sizes.BEFORE;
    for (int place = threadIdx.x; place < sizes.places; place += blockDim.x) {
        const int image = place / sizes.area;
        const int i = top + place % sizes.area / sizes.pitch, j = left + place % sizes.pitch;
        const bool inside = image < block.images && i >= 0 && i < sizes.height && j >= 0 && j < sizes.width;
        table[place] = inside ? image * step + Index(i) * sizes.width + j : -1;
    }
}

// Where each lane finds its share of a pass's weights, and where it stages them. The gradient turns a window by 180
// degrees and reads it from another filter for each channel.
template <typename T, int K, int RO, int RP, bool BACKWARD>
__device__ __forceinline__ void make_taps(Tap* taps, const Sizes<T, K, RO, RP, BACKWARD>& sizes) {
    constexpr int TAPS = K * K;
    for (int tap = threadIdx.x; tap < sizes.SHARE * WARP; tap += blockDim.x) {
        const int source = BACKWARD ? (tap / TAPS * sizes.filters + 1) * TAPS - 1 - tap % TAPS : tap;
        taps[tap] = Tap{source, tap / K * sizes.line_of_weights + tap % K * sizes.PADDED};
    }
}

// Stage `count` channels of the patch, which begin at `start`; the pass's other channels are zeros.
template <typename T, int K, int RO, int RP, bool BACKWARD>
__device__ __forceinline__ void stage_patch(T* patch, const Index* table, const T* start, int count,
                                            const Sizes<T, K, RO, RP, BACKWARD>& sizes) {
#pragma unroll 1
    for (int place = threadIdx.x; place < sizes.places; place += blockDim.x) {
        const Index offset = table[place];
        const T* from = start + offset;
        T* to = patch + place;
        T values[CHUNK<K>];
#pragma unroll
        for (int c = 0; c < CHUNK<K>; c++, from += sizes.plane) values[c] = offset >= 0 && c < count ? *from : T(0);
#pragma unroll
        for (int c = 0; c < CHUNK<K>; c++, to += sizes.places) *to = values[c];
    }
}

// Stage the weights of `count` channels, which begin at `start` for the block's first filter: a filter a warp.
template <typename T, int K, int RO, int RP, bool BACKWARD>
__device__ __forceinline__ void stage_weights(T* weights, const Tap* taps, const T* start, int count, int filters,
                                              const Sizes<T, K, RO, RP, BACKWARD>& sizes) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const T* from = start + warp * sizes.apart;
#pragma unroll 1
    for (int f = warp; f < filters; f += warps, from += warps * sizes.apart) {
        T* const to = weights + f / RO * K * sizes.PADDED + f % RO;
#pragma unroll
        for (int k = 0; k < sizes.SHARE; k++) {
            const Tap tap = taps[lane + k * WARP];
            to[tap.target] = lane + k * WARP < count * sizes.TAPS ? from[tap.source] : T(0);
        }
    }
}

// sums += a row of the window over a segment: RP + K - 1 inputs and K weights of each of RO filters.
template <int K, typename T, int RO, int RP>
__device__ __forceinline__ void multiply_row(T (&sums)[RO][RP], const T* line, const T* weight) {
    T inputs[whole_vectors<T>(RP + K - 1)];
    load_segment<RP, RP + K - 1>(inputs, line);
#pragma unroll
    for (int v = 0; v < K; v++) {
        T factors[whole_vectors<T>(RO)];
        load_vectors(factors, weight + v * whole_vectors<T>(RO));
#pragma unroll
        for (int o = 0; o < RO; o++)
#pragma unroll
            for (int p = 0; p < RP; p++) sums[o][p] = multiply_add(factors[o], inputs[v + p], sums[o][p]);
    }
}

// Take one filter's sums out of the registers, into shared memory, and move the others up: a loop that is not unrolled
// cannot index registers, and unrolled it is long.
template <typename T, int RO, int RP>
__device__ __forceinline__ void take_first(T (&sums)[RO][RP], T* mine) {
#pragma unroll
    for (int p = 0; p < RP; p++) {
        mine[p * blockDim.x] = sums[0][p];
#pragma unroll
        for (int o = 1; o < RO; o++) sums[o - 1][p] = sums[o][p];
    }
}

template <typename T, int RP>
__device__ __forceinline__ void read_mine(T (&values)[RP], const T* mine) {
#pragma unroll
    for (int p = 0; p < RP; p++) values[p] = mine[p * blockDim.x];
}

// Store `count` values upsampled by 2: each twice in a row, the row twice, `width` apart.
template <typename T, int RP>
__device__ __forceinline__ void store_twice(T* to, const T (&values)[RP], int count, int width) {
    T twice[2 * RP];
#pragma unroll
    for (int p = 0; p < 2 * RP; p++) twice[p] = values[p / 2];
    store(to, twice, 2 * count);
    store(to + width, twice, 2 * count);
}

// Store the maxima of 2 x 2 tiles of `count` values and of those of the thread of the row below.
template <typename T, int RP>
__device__ __forceinline__ void store_peaks(T* to, const T (&values)[RP], const T* below, int count) {
    const int threads = blockDim.x;
    T peaks[RP / 2];
#pragma unroll
    for (int p = 0; p < RP / 2; p++)
        peaks[p] = largest(largest(values[2 * p], values[2 * p + 1]),
                           largest(below[2 * p * threads], below[(2 * p + 1) * threads]));
    store(to, peaks, count / 2);
}

template <typename T, int K, int RO, int RP, bool BACKWARD>
__global__ void __launch_bounds__(THREADS<RO, RP>, sizeof(T) == 8 ? 1 : SMALL<RO, RP> ? 2 : 3)
    correlate(T* __restrict__ y, T* __restrict__ pooled, T* __restrict__ up, const T* __restrict__ x,
              const T* __restrict__ w, const T* __restrict__ b, Index y_step, Index pooled_step, Index up_step,
              Index x_step, int images, int filters, int channels, int height, int width, int tile_images,
              int tile_rows, int segments, int groups, int flags) {
    const Sizes<T, K, RO, RP, BACKWARD> sizes(images, filters, channels, height, width, tile_images, tile_rows,
                                              segments, groups);
    const Block block(sizes);
    const Place own(sizes);

    T* const patch = shared_memory<T>();                // [CHUNK][tile_images][area]
    T* const weights = patch + CHUNK<K> * sizes.places;  // [CHUNK][K][groups][K][PADDED], and more for idle lanes
    Index* const table = reinterpret_cast<Index*>(weights + sizes.lines * sizes.line_of_weights);  // [places]
    Tap* const taps = reinterpret_cast<Tap*>(table + sizes.places);                                // [SHARE x WARP]
    make_table(table, sizes, block, x_step);
    make_taps(taps, sizes);
    for (int i = threadIdx.x; i < sizes.lines * sizes.line_of_weights; i += blockDim.x) weights[i] = 0;

    T sums[RO][RP];
#pragma unroll
    for (int o = 0; o < RO; o++)
#pragma unroll
        for (int p = 0; p < RP; p++) sums[o][p] = 0;

#pragma unroll 1
    for (int first = 0; first < channels; first += CHUNK<K>) {
        const int count = min(CHUNK<K>, channels - first);
        __syncthreads();  // tables and zeros are there; nobody reads the last pass's any more
        stage_patch(patch, table, x + block.first_image * x_step + Index(first) * sizes.plane, count, sizes);
        const Index start = block.first_filter * sizes.apart + Index(first) * (BACKWARD ? filters : 1) * sizes.TAPS;
        stage_weights(weights, taps, w + start, count, block.filters, sizes);
        __syncthreads();

        if (own.active) {
            const T* line = patch + own.image * sizes.area + own.row * sizes.pitch + own.segment * RP;
            const T* weight = weights + own.group * K * sizes.PADDED;
#pragma unroll 1
            for (int c = 0; c < count; c++) {
#pragma unroll (SMALL<RO, RP> ? K : 1)
                for (int u = 0; u < K; u++) {
                    multiply_row<K>(sums, line, weight);
                    line += sizes.pitch;
                    weight += sizes.line_of_weights;
                }
                line += sizes.places - K * sizes.pitch;
            }
        }
    }

    const int n = block.first_image + own.image, i = block.top + own.row, j = block.left + own.segment * RP;
    const int count = own.active && n < images && i < height ? min(RP, width - j) : 0;
    T* const mine = patch + threadIdx.x;
    __syncthreads();  // nobody reads the patch any more
#pragma unroll 1
    for (int o = 0; o < RO; o++) {
        take_first(sums, mine);
        const int filter = block.first_filter + own.group * RO + o;
        const int stored = filter < filters ? count : 0;
        T* const to = y + n * y_step + Index(filter) * sizes.plane + Index(i) * width + j;
        T values[RP];
        if constexpr (BACKWARD) {
            read_mine(values, mine);
            if (flags & ADD)
                add(to, values, stored);
            else
                store(to, values, stored);
        } else {
            const T bias = filter < filters ? b[filter] : T(0);
#pragma unroll 1
            for (int p = 0; p < RP; p++) {
                const T sum = mine[p * blockDim.x] + bias;
                mine[p * blockDim.x] = flags & TANH ? hyperbolic_tangent(sum) : sum;
            }
            read_mine(values, mine);
            store(to, values, stored);
            if (flags & DOUBLE) {
                const Index corner = Index(filter) * 4 * sizes.plane + Index(2 * i) * 2 * width + 2 * j;
                store_twice(up + n * up_step + corner, values, stored, 2 * width);
            }
            if constexpr (RP % 2 == 0) {
                if (flags & POOL) {
                    __syncthreads();  // each thread's values are there for the one of the row above
                    if (stored > 0 && own.row % 2 == 0) {
                        const Index place = Index(i / 2) * (width / 2) + j / 2;
                        T* const at = pooled + n * pooled_step + Index(filter) * (sizes.plane / 4) + place;
                        store_peaks(at, values, mine + segments, stored);
                    }
                    __syncthreads();  // before the next filter's sums
                }
            }
        }
    }
}
