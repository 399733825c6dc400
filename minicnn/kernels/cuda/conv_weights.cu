// Gradient of a convolution's weights and biases: dy correlated with x, summed over all pixels of all images. The sum
// is split over blocks, each of which leaves its part in the workspace; `sum_parts` adds the parts in a fixed order, so that
// the result is the same bits every time, without atomics.
//
//     block   some tiles (of one image each, tile_rows x tile_columns pixels), `chunk` channels, RO filters
//     thread  one channel, one row u of the window, one of `parts` shares of a tile's rows: RO x K sums in registers
//     loop    over tiles: stage x (with its border) and dy, then RS pixels of a row at a time
//
//         RS + K - 1 inputs    p p p p + + + +      loaded once and used by K windows each
//         RO gradients         at RS pixels         RO x K multiply-adds each

// Many sums leave registers for fewer threads.
template <int K, int RO>
constexpr int THREADS = RO* K <= SMALL_GRADIENT ? THREADS_OF_SMALL_GRADIENT : THREADS_OF_LARGE_GRADIENT;

// The sizes of a launch, of a tile that a block stages, and of the part of dw that it computes.
template <typename T, int K>
struct Sizes {
    int filters, channels, height, width;      // of the arrays
    int tile_rows, tile_columns;               // of a tile
    int pitch, area, pixels;                   // of a staged row of x, of a staged plane, of a tile
    int real_channels, real_filters;           // of this block: fewer in the last ones
    Index plane;
};

// The first pixel of a tile, and its image.
struct Tile {
    int top, left, image;
};

// Row and column of each place of a patch, and of each pixel of a tile: a division each, once.
template <typename T, int K>
__device__ __forceinline__ void make_table(int* table, const Sizes<T, K>& sizes) {
    for (int place = threadIdx.x; place < sizes.area; place += blockDim.x)
        table[place] = place / sizes.pitch << 16 | place % sizes.pitch;
    for (int pixel = threadIdx.x; pixel < sizes.pixels; pixel += blockDim.x)
        table[sizes.area + pixel] = pixel / sizes.tile_columns << 16 | pixel % sizes.tile_columns;
}

// Stage a tile of x with its border; `start` is its image's first channel of this block.
template <typename T, int K>
__device__ __forceinline__ void stage_inputs(T* patch, const int* table, const T* start, const Tile& tile,
                                             const Sizes<T, K>& sizes) {
    constexpr int BEFORE = (K - 1) / 2;
#pragma unroll 1
    for (int place = threadIdx.x; place < sizes.area; place += blockDim.x) {
        const int i = tile.top - BEFORE + (table[place] >> 16), j = tile.left - BEFORE + (table[place] & 0xffff);
        const bool inside = i >= 0 && i < sizes.height && j >= 0 && j < sizes.width;
        const T* from = start + Index(i) * sizes.width + j;
        T* to = patch + place;
#pragma unroll 1
        for (int first = 0; first < sizes.real_channels; first += UNROLL) {
            T values[UNROLL];
#pragma unroll
            for (int k = 0; k < UNROLL; k++, from += sizes.plane)
                values[k] = inside && first + k < sizes.real_channels ? *from : T(0);
#pragma unroll
            for (int k = 0; k < UNROLL; k++, to += sizes.area) *to = values[k];
        }
    }
}

// Stage a tile of dy, the filters of a pixel side by side, and add it to `biases`; `start` is its image's first filter
// of this block.
template <typename T, int K, int RO>
__device__ __forceinline__ void stage_gradients(T* gradients, T (&biases)[RO], const int* table, const T* start,
                                                const Tile& tile, const Sizes<T, K>& sizes) {
    constexpr int PADDED = whole_vectors<T>(RO);
#pragma unroll 1
    for (int pixel = threadIdx.x; pixel < sizes.pixels; pixel += blockDim.x) {
        const int place = table[sizes.area + pixel];
        const int i = tile.top + (place >> 16), j = tile.left + (place & 0xffff);
        const bool inside = i < sizes.height && j < sizes.width;
        const T* from = start + Index(i) * sizes.width + j;
        T values[PADDED];
#pragma unroll
        for (int o = 0; o < PADDED; o++, from += sizes.plane)
            values[o] = inside && o < sizes.real_filters ? *from : T(0);
        store_vectors(gradients + pixel * PADDED, values);
#pragma unroll
        for (int o = 0; o < RO; o++) biases[o] += values[o];
    }
}

// sums += RS pixels of a row: RS + K - 1 inputs and RO gradients of each pixel.
template <int RS, typename T, int RO, int K>
__device__ __forceinline__ void multiply_pixels(T (&sums)[RO][K], const T* line, const T* gradient) {
    constexpr int PADDED = whole_vectors<T>(RO);
    T inputs[whole_vectors<T>(RS + K - 1)];
    load_segment<RS, RS + K - 1>(inputs, line);
#pragma unroll
    for (int p = 0; p < RS; p++) {
        T factors[PADDED];
        load_vectors(factors, gradient + p * PADDED);
#pragma unroll
        for (int o = 0; o < RO; o++)
#pragma unroll
            for (int v = 0; v < K; v++) sums[o][v] = multiply_add(factors[o], inputs[p + v], sums[o][v]);
    }
}

// Store a thread's part of dw, one row of the window of each filter; `to` is the first filter's.
template <typename T, int RO, int K>
__device__ __forceinline__ void store_weights(T* to, const T (&sums)[RO][K], int filters, Index apart) {
#pragma unroll
    for (int o = 0; o < RO; o++)
        if (o < filters)
#pragma unroll
            for (int v = 0; v < K; v++) to[o * apart + v] = sums[o][v];
}

// Store the sums of all threads' `biases`: of each warp by shuffles, then of the warps, one filter a thread.
template <typename T, int RO>
__device__ __forceinline__ void store_biases(T* to, T (&biases)[RO], T* shared, int filters) {
    const int thread = threadIdx.x, warp = thread / WARP, warps = blockDim.x / WARP;
#pragma unroll
    for (int o = 0; o < RO; o++) {
#pragma unroll
        for (int half = WARP / 2; half > 0; half /= 2) biases[o] += __shfl_xor_sync(0xffffffff, biases[o], half);
        if (thread % WARP == 0) shared[warp * RO + o] = biases[o];
    }
    __syncthreads();
    if (thread < filters) {
        T total = 0;
        for (int k = 0; k < warps; k++) total += shared[k * RO + thread];
        to[thread] = total;
    }
}

template <typename T, int K, int RO, int RS>
__global__ void __launch_bounds__(THREADS<K, RO>, sizeof(T) == 4 ? 2 : 1)
    weight_gradient(T* __restrict__ dw_parts, T* __restrict__ db_parts, const T* __restrict__ dy,
                    const T* __restrict__ x, Index dy_step, Index x_step, int images, int filters, int channels,
                    int height, int width, int chunk, int parts, int tile_rows, int tile_columns, int tiles_a_block) {
    constexpr int PADDED = whole_vectors<T>(RO);
    const int first_channel = blockIdx.y * chunk, first_filter = blockIdx.z * RO;
    const int pitch = whole_vectors<T>(tile_columns + K - 1);
    const Sizes<T, K> sizes{filters, channels, height, width, tile_rows, tile_columns,
                            pitch, (tile_rows + K - 1) * pitch, tile_rows * tile_columns,
                            min(chunk, channels - first_channel), min(RO, filters - first_filter),
                            Index(height) * width};
    T* const patch = shared_memory<T>();  // [chunk rounded up to UNROLL][area]
    T* const gradients = patch + (chunk + UNROLL - 1) / UNROLL * UNROLL * sizes.area;      // [pixels][PADDED]
    int* const table = reinterpret_cast<int*>(gradients + sizes.pixels * PADDED);          // [area], then [pixels]

    const int thread = threadIdx.x, u = thread % K, c = thread / K % chunk, part = thread / K / chunk;
    const bool active = part < parts && c < sizes.real_channels;
    const int across = (width + tile_columns - 1) / tile_columns, down = (height + tile_rows - 1) / tile_rows;
    const int tiles = images * down * across;
    const int first_tile = blockIdx.x * tiles_a_block, last_tile = min(first_tile + tiles_a_block, tiles);

    T sums[RO][K];
    T biases[RO];
#pragma unroll
    for (int o = 0; o < RO; o++) {
        biases[o] = 0;
#pragma unroll
        for (int v = 0; v < K; v++) sums[o][v] = 0;
    }
    make_table(table, sizes);

#pragma unroll 1
    for (int number = first_tile; number < last_tile; number++) {
        const Tile tile{number / across % down * tile_rows, number % across * tile_columns, number / across / down};
        __syncthreads();  // the table is there; nobody reads the last tile any more
        stage_inputs(patch, table, x + tile.image * x_step + first_channel * sizes.plane, tile, sizes);
        stage_gradients(gradients, biases, table, dy + tile.image * dy_step + first_filter * sizes.plane, tile, sizes);
        __syncthreads();

        if (active) {
#pragma unroll 1
            for (int row = part; row < tile_rows; row += parts) {
                const T* line = patch + c * sizes.area + (row + u) * sizes.pitch;
                const T* gradient = gradients + row * tile_columns * PADDED;
#pragma unroll 1
                for (int j = 0; j < tile_columns; j += RS) {
                    multiply_pixels<RS>(sums, line, gradient);
                    line += RS;
                    gradient += RS * PADDED;
                }
            }
        }
    }

    if (active) {
        const Index apart = Index(channels) * K * K;  // from one filter's weights to the next one's
        T* const to = dw_parts + (Index(blockIdx.x) * parts + part) * filters * apart;
        store_weights(to + first_filter * apart + ((first_channel + c) * K + u) * K, sums, sizes.real_filters, apart);
    }
    if (blockIdx.y == 0) {
        __syncthreads();  // nobody reads the patch any more
        store_biases(db_parts + Index(blockIdx.x) * filters + first_filter, biases, patch, sizes.real_filters);
    }
}

// dw and db: the sums of their parts, [w_parts][weights] and [b_parts][filters]. A block has WARP numbers to sum, its
// warps a share of the parts each.
template <typename T>
__global__ void __launch_bounds__(256)
    sum_parts(T* __restrict__ dw, T* __restrict__ db, const T* __restrict__ dw_parts, const T* __restrict__ db_parts,
              int weights, int filters, int w_parts, int b_parts) {
    constexpr int SHARES = 256 / WARP;
    T* const shares = shared_memory<T>();  // [SHARES][WARP]
    const int share = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int number = blockIdx.x * WARP + lane;
    const bool is_bias = number >= weights;
    const int columns = is_bias ? filters : weights, column = is_bias ? number - weights : number;
    const int parts = is_bias ? b_parts : w_parts;
    const T* const from = (is_bias ? db_parts : dw_parts) + column;
    T total = 0;
    if (column < columns) {
#pragma unroll 4
        for (int part = share; part < parts; part += SHARES) total += from[Index(part) * columns];
    }
    shares[threadIdx.x] = total;
    __syncthreads();
    if (share == 0 && column < columns) {
        for (int k = 1; k < SHARES; k++) total += shares[k * WARP + lane];
        (is_bias ? db : dw)[column] = total;
    }
}
