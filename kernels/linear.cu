// Products with weights for 1 to 8 columns in one pass over them: y = norm(x) @ w.T, with two ways to end.
//
//     linear          y[c][first + step * o] = sum over k of w[o][k] * x[c][k], times the norm's factor
//     linear_add      residual += bias + the same; what reads the residual next gets residual * norm
//
// Shapes    w [out_features][in_features] of type W: rows (dot.cuh) or tiles (tiles.cuh); x, squares, and what is
//           written for the next reader: activations.cuh; y float32 [n][y_width], residual float32 [n][out_features],
//           padded; bias and norm, the weight of the RMSNorm that comes next: float32 [out_features], null for none.
// Threads   grid (row pairs / W::ROW_PAIRS, ceil(n / COLUMNS)), blocks as dot.cuh and tiles.cuh say; a thread ends with
//           one pair of rows of one column. More columns read the weights again; prompts take linear_prompt.cu instead.
// Bytes     the weights once per 8 columns; x and y are small beside them.
#include "products.cuh"

template <class W, int COLUMNS>
__global__ void __launch_bounds__(W::THREADS, W::min_blocks(COLUMNS))
    linear(const typename W::Element* __restrict__ w, const typename W::Param* __restrict__ params, int group_shift,
           const typename W::Activation* x, const float* squares, int n_squares, float eps, float* y, int y_width,
           int first, int step, int in_features, int out_features, int n) {
    const Product product = normed_product<W, COLUMNS>(w, params, group_shift, x, squares, n_squares, eps, in_features,
                                                       out_features, n);
    const int row = 2 * product.pair;
    if (!product.exists || row >= out_features) return;
    float* out = y + static_cast<size_t>(product.column) * padded(y_width) + first + static_cast<size_t>(row) * step;
    out[0] = product.first;
    if (row + 1 < out_features) out[step] = product.second;
}

template <class W, int COLUMNS>
__global__ void __launch_bounds__(W::THREADS, W::min_blocks(COLUMNS))
    linear_add(const typename W::Element* __restrict__ w, const typename W::Param* __restrict__ params,
               int group_shift, const typename W::Activation* x, float* residual, const float* __restrict__ bias,
               const float* __restrict__ norm, float* rows, unsigned short* split, const int* __restrict__ place,
               float* squares, int in_features, int out_features, int n) {
    constexpr int PAIRS = W::ROW_PAIRS;
    __shared__ float of_pairs[COLUMNS][PAIRS];
    const int first_column = blockIdx.y * COLUMNS, n_left = n - first_column, thread = threadIdx.x;
    const int row = 2 * W::own_pair(), column = first_column + W::own_column();
    float* in_place = residual + static_cast<size_t>(column) * padded(out_features) + row;
    const bool has_column = W::own_column() < min(COLUMNS, n_left);
    const bool has[2] = {has_column && row < out_features, has_column && row + 1 < out_features};
    // The residual is older than the previous kernel, which has waited by now: what is loaded here is there in time.
    // From L2: the L1 cache of this multiprocessor may still hold what stood there a layer ago
    float values[2] = {}, norms[2] = {1.f, 1.f};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (has[i]) values[i] = __ldcg(in_place + i);
        if (has[i] && bias) values[i] += bias[row + i];
        if (has[i] && norm) norms[i] = norm[row + i];
    }
    const Product product =
        normed_product<W, COLUMNS>(w, params, group_shift, x, nullptr, 0, 0.f, in_features, out_features, n);
    const Writer writer = {rows, split, place, out_features};
    values[0] += product.first;
    values[1] += product.second;
    float square = 0.f;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (!has[i]) continue;
        in_place[i] = values[i];
        square += values[i] * values[i];
        writer.write(column, row + i, values[i] * norms[i]);
    }
    if (has_column) of_pairs[W::own_column()][W::own_pair() % PAIRS] = square;
    __syncthreads();
    if (thread >= min(COLUMNS, n_left)) return;
    float sum = 0.f;
    for (int i = 0; i < PAIRS; i++) sum += of_pairs[thread][i];
    squares[static_cast<size_t>(first_column + thread) * gridDim.x + blockIdx.x] = sum;
}
