// From the sums of all blocks to the gradients of the weights: what was folded and packed is undone.
#pragma once
#include "backward_memory.cuh"

namespace gradients {

// The sums of all blocks, of 32 numbers: a lane adds four of them of every fourth block.
struct Reduce {
    static constexpr int BLOCKS = 4;
    static DEVICE void run(const Arguments& a, int i) {
        const Workspace w = plan_workspace(a.sizes);
        I32 lane = lane_id(), place = lane % 8 * 4 + i * 32, layer = place / w.layer_sums;
        Pred used = where(layer == 0, I32(a.sizes.first_residual), I32(a.sizes.residual)) == int(QUERY) || layer >= a.sizes.layers || place % w.layer_sums < w.point_sums;
        F32 sum[4] = {0.f, 0.f, 0.f, 0.f};
        const float* from = a.workspace + w.partial;
#pragma unroll 8
        for (int block = 0; block < w.blocks; block += 4) {
            F32 x[4];
            read_floats<4>(x, from + (long)block * w.all_sums, lane / 8 * w.all_sums + place, place < w.all_sums && lane / 8 + block < w.blocks && used);
#pragma unroll
            for (int k = 0; k < 4; ++k) sum[k] = sum[k] + x[k];
        }
#pragma unroll
        for (int k = 0; k < 4; ++k) sum[k] = sum[k] + shfl_xor(sum[k], 8), sum[k] = sum[k] + shfl_xor(sum[k], 16);
        write_floats<4>(sum, a.workspace + w.total, place, place < w.all_sums && lane < 8);
    }
};

struct Unfold {
    const Arguments& a;
    const Workspace w;

    DEVICE float total(long place) const { return a.workspace[w.total + place]; }
    DEVICE float norm(long sums, int which, int d) const {
        float sum = 0.f;
#pragma unroll
        for (int g = 0; g < 8; ++g) sum += total(sums + NORM_SUMS + (which * 8 + g) * DP + d);
        return sum;
    }
    // Of Wv's row v and column d, or of Wo's row d and column v.
    DEVICE float square(long sums, bool by_output, int v, int d) const {
        const int columns = a.sizes.dim / HEADS, r = v % columns, c = v / columns * V + r / 8, t = d / (2 * DB), b = d % (2 * DB) / 2, e = d % 2;
        if (by_output) return total(sums + OUTPUT_SUMS + (b / 2 * 4 + c) * 128 + ((2 * t + e) * 4 + r % 8 / 2) * 4 + r % 2 + 2 * (b % 2));
        return total(sums + VALUE_SUMS + (c / 2 * DB + b) * 128 + (r % 8 * 4 + t) * 4 + e + 2 * (c % 2));
    }
    // Through the folding of `rows` queries at `place` with keys, whose sums begin at `sums`, head by head each `of_head` further.
    DEVICE float queries(int place, int matrix, int row, int column, long sums, int of_head) const {
        const int dim = a.sizes.dim, columns = dim / HEADS;
        float sum = 0.f;
#pragma unroll 8
        for (int d = 0; d < dim; ++d) sum += total(sums + column / columns * of_head + d) * weight(a, place + KEY, (matrix * dim + column) * dim + d);
        return sum / sqrtf(float(columns));
    }
    DEVICE float keys(int place, int rows, int matrix, int column, int d, long sums, int of_row, int of_head) const {
        const int dim = a.sizes.dim, columns = dim / HEADS;
        float sum = 0.f;
#pragma unroll 8
        for (int row = 0; row < rows; ++row)
            sum += total(sums + column / columns * of_head + row * of_row + d) * weight(a, place + POINTS, (matrix * rows + row) * dim + column);
        return sum / sqrtf(float(columns));
    }
    // The gradient of element i of tensor `kind` of the layers.
    DEVICE float of_layers(int kind, int i) const {
        const Sizes& s = a.sizes;
        const int dim = s.dim, d = i % dim, row = i / dim;
        if (kind >= NORM_WEIGHT) return norm((long)row * w.layer_sums, kind - NORM_WEIGHT, d);
        const int rows = kind == POINTS ? s.points : dim, l = row / rows, r = row % rows;
        const long sums = (long)l * w.layer_sums;
        if (kind == VALUE) return square(sums, false, r, d);
        if (kind == OUTPUT) return square(sums, true, d, r);
        if (kind == KEY) return keys(0, s.points, l, r, d, sums + QUERY_SUMS, DP, s.points * DP);
        const bool added = (l ? s.residual : s.first_residual) == QUERY;
        return queries(0, l, r, d, sums + QUERY_SUMS + r * DP, s.points * DP) + (added ? total(sums + w.point_sums + r * DP + d) : 0.f);
    }
    DEVICE float of_adapters(int kind, int i) const {
        const Sizes& s = a.sizes;
        const int dim = s.dim, d = i % dim, row = i / dim;
        const bool is_square = kind >= KEY && kind <= OUTPUT;
        const int matrix = is_square ? row / dim : row, r = row % dim, l = matrix / s.tasks, task = matrix % s.tasks;
        const long sums = adapter_sums(s, w, l, task), folded_sums = (long)l * w.layer_sums + w.indicator_sums + task * HEADS * DP;
        if (kind >= NORM_WEIGHT) return norm(sums, kind - NORM_WEIGHT, d);
        if (kind == VALUE) return square(sums, false, r, d);
        if (kind == OUTPUT) return square(sums, true, d, r);
        if (kind == KEY) return keys(ADAPTERS, 1, matrix, r, d, folded_sums, 0, DP);
        return queries(ADAPTERS, matrix, 0, d, folded_sums, DP);
    }

    static DEVICE void run(const Arguments& a, int i) {
        const Unfold unfold{a, plan_workspace(a.sizes)};
        const Sizes& s = a.sizes;
        int place = i;
        for (int tensor = 0; tensor < NUM_WEIGHTS; ++tensor) {
            const bool of_adapters = tensor >= ADAPTERS;
            const int kind = tensor % ADAPTERS, matrices = s.layers * (of_adapters ? s.tasks : 1);
            const int rows = kind == POINTS ? (of_adapters ? 1 : s.points) : kind >= NORM_WEIGHT ? 1 : s.dim, size = matrices * rows * s.dim;
            if (place < size) {
                a.d_weights[i] = of_adapters ? unfold.of_adapters(kind, place) : unfold.of_layers(kind, place);
                return;
            }
            place -= size;
        }
    }
};

inline int num_weights(const Sizes& s) {
    return s.layers * s.dim * (s.points + 3 * s.dim + 2 + s.tasks * (1 + 3 * s.dim + 2));
}

}  // namespace gradients
