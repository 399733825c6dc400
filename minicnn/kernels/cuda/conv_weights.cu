// Gradient of a convolution's weights and biases: dy correlated with x, summed over all pixels of all images. The sum
// is split over blocks, each of which leaves its part in scratch; `sum_parts` adds the parts in a fixed order, so that
// the result is the same bits every time, without atomics.
//
//     block   some tiles (of one image each, tile_rows x tile_columns pixels), `chunk` channels, RO filters
//     thread  one channel, one row u of the window, one of `parts` shares of a tile's rows: RO x K sums in registers
//     loop    over tiles: stage x (with its border) and dy, then RS pixels of a row at a time
//
//         RS + K - 1 inputs    p p p p + + + +      loaded once and used by K windows each
//         RO gradients         at RS pixels         RO x K multiply-adds each

template <typename T, int K, int RO, int RS>
__global__ void __launch_bounds__(RO* K <= 48 ? 256 : 192, sizeof(T) == 4 ? 2 : 1)
    weight_gradient(T* __restrict__ dw_parts, T* __restrict__ db_parts, const T* __restrict__ dy,
                    const T* __restrict__ x, Index dy_step, Index x_step, int images, int filters, int channels,
                    int height, int width, int chunk, int parts, int tile_rows, int tile_columns, int tiles_a_block) {
    constexpr int BEFORE = (K - 1) / 2, SPAN = whole_vectors<T>(RS + K - 1), PADDED = whole_vectors<T>(RO);
    constexpr int UNROLL = 4;  // channels staged at once

    const Index plane = Index(height) * width;
    const int pitch = whole_vectors<T>(tile_columns + K - 1), area = (tile_rows + K - 1) * pitch;
    const int pixels = tile_rows * tile_columns;
    T* const patch = shared_memory<T>();  // [chunk rounded up to UNROLL][area]
    T* const gradients = patch + (chunk + UNROLL - 1) / UNROLL * UNROLL * area;      // [pixels][PADDED]
    int* const table = reinterpret_cast<int*>(gradients + pixels * PADDED);          // [area], then [pixels]

    const int first_channel = blockIdx.y * chunk, first_filter = blockIdx.z * RO;
    const int real_channels = min(chunk, channels - first_channel), real_filters = min(RO, filters - first_filter);
    const int thread = threadIdx.x, u = thread % K, c = thread / K % chunk, part = thread / K / chunk;
    const bool active = part < parts && c < real_channels;
    const int across = (width + tile_columns - 1) / tile_columns, down = (height + tile_rows - 1) / tile_rows;
    const int tiles = images * down * across;
    const int first_tile = blockIdx.x * tiles_a_block, last_tile = min(first_tile + tiles_a_block, tiles);

    T sums[RO][K];
#pragma unroll
    for (int o = 0; o < RO; o++)
#pragma unroll
        for (int v = 0; v < K; v++) sums[o][v] = 0;
    T biases[RO];
#pragma unroll
    for (int o = 0; o < RO; o++) biases[o] = 0;
    // Row and column of each place of a patch, and of each pixel: a division each, once.
    for (int place = thread; place < area; place += blockDim.x) table[place] = place / pitch << 16 | place % pitch;
    for (int pixel = thread; pixel < pixels; pixel += blockDim.x)
        table[area + pixel] = pixel / tile_columns << 16 | pixel % tile_columns;

#pragma unroll 1
    for (int tile = first_tile; tile < last_tile; tile++) {
        const int left = tile % across * tile_columns, top = tile / across % down * tile_rows;
        const int n = tile / across / down;
        __syncthreads();  // the table is there; nobody reads the last tile any more

#pragma unroll 1
        for (int place = thread; place < area; place += blockDim.x) {
            const int i = top - BEFORE + (table[place] >> 16), j = left - BEFORE + (table[place] & 0xffff);
            const bool inside = i >= 0 && i < height && j >= 0 && j < width;
            const T* from = x + n * x_step + first_channel * plane + Index(i) * width + j;
            T* to = patch + place;
#pragma unroll 1
            for (int first = 0; first < real_channels; first += UNROLL) {
                T values[UNROLL];
#pragma unroll
                for (int k = 0; k < UNROLL; k++, from += plane)
                    values[k] = inside && first + k < real_channels ? *from : T(0);
#pragma unroll
                for (int k = 0; k < UNROLL; k++, to += area) *to = values[k];
            }
        }

#pragma unroll 1
        for (int pixel = thread; pixel < pixels; pixel += blockDim.x) {
            const int i = top + (table[area + pixel] >> 16), j = left + (table[area + pixel] & 0xffff);
            const bool inside = i < height && j < width;
            const T* from = dy + n * dy_step + first_filter * plane + Index(i) * width + j;
            T values[PADDED];
#pragma unroll
            for (int o = 0; o < PADDED; o++, from += plane) values[o] = inside && o < real_filters ? *from : T(0);
            store_vectors(gradients + pixel * PADDED, values);
#pragma unroll
            for (int o = 0; o < RO; o++) biases[o] += values[o];
        }
        __syncthreads();

        if (active) {
#pragma unroll 1
            for (int row = part; row < tile_rows; row += parts) {
                const T* line = patch + c * area + (row + u) * pitch;
                const T* gradient = gradients + row * tile_columns * PADDED;
#pragma unroll 1
                for (int j = 0; j < tile_columns; j += RS) {
                    T inputs[SPAN];
                    if constexpr (RS * sizeof(T) % 16 == 0) {
                        load_vectors(inputs, line);
                    } else {
#pragma unroll
                        for (int k = 0; k < RS + K - 1; k++) inputs[k] = line[k];
                    }
#pragma unroll
                    for (int p = 0; p < RS; p++) {
                        T factors[PADDED];
                        load_vectors(factors, gradient + p * PADDED);
#pragma unroll
                        for (int o = 0; o < RO; o++)
#pragma unroll
                            for (int v = 0; v < K; v++)
                                sums[o][v] = multiply_add(factors[o], inputs[p + v], sums[o][v]);
                    }
                    line += RS;
                    gradient += RS * PADDED;
                }
            }
        }
    }

    if (active) {
        T* const to = dw_parts + (Index(blockIdx.x) * parts + part) * filters * channels * K * K;
#pragma unroll
        for (int o = 0; o < RO; o++)
            if (o < real_filters)
#pragma unroll
                for (int v = 0; v < K; v++)
                    to[((Index(first_filter + o) * channels + first_channel + c) * K + u) * K + v] = sums[o][v];
    }
    if (blockIdx.y == 0) {
        const int warp = thread / WARP, warps = blockDim.x / WARP;
        __syncthreads();  // nobody reads the patch any more
#pragma unroll
        for (int o = 0; o < RO; o++) {
#pragma unroll
            for (int half = WARP / 2; half > 0; half /= 2) biases[o] += __shfl_xor_sync(0xffffffff, biases[o], half);
            if (thread % WARP == 0) patch[warp * RO + o] = biases[o];
        }
        __syncthreads();
        if (thread < real_filters) {
            T total = 0;
            for (int k = 0; k < warps; k++) total += patch[k * RO + thread];
            db_parts[Index(blockIdx.x) * filters + first_filter + thread] = total;
        }
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
