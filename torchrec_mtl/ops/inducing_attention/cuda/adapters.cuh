// The adapters' projections, residual and LayerNorm over the layers, TAFE eq. (21)-(22): one warp for 16 samples and a task.
#pragma once
#include "forward.cuh"

// What the attention of a task's queries gives to 16 samples after Wv: attended[samples][block of value dimensions].
DEVICE void project_contexts(const Arguments& a, const Layout& at, int tile, int l, int task, Operand (&attended)[2][4]) {
    I32 lane = lane_id(), g = lane / 4, t = lane & 3;
    const Sizes& s = a.sizes;
    const int of_sample = s.layers * s.tasks * HEADS * ROW;
    const uint32_t* from = a.contexts + (long)tile * 16 * of_sample + (l * s.tasks + task) * HEADS * ROW;
    const uint32_t* packed = a.packed + at.adapter_value + (l * s.tasks + task) * 32 * 4 * SHARE;
    Operand context[HEADS][2][DB];
#pragma unroll
    for (int h = 0; h < HEADS; ++h)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            I32 sample = g + 8 * i;
            read_blocks<P, DB>(context[h][i], from + h * ROW, sample * of_sample + t * SHARE, sample < s.batch - 16 * tile);
        }
#pragma unroll
    for (int p = 0; p < 2; ++p) {
        Operand w[2 * DB];
        read_blocks<P, 2 * DB>(w, packed + p * 32 * 2 * SHARE, lane * (2 * SHARE), all_lanes());
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int block = 2 * p + r, head = block / V;
            Operand right[DB];
            F32 d[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
            for (int k = 0; k < DB; ++k) right[k] = w[2 * k + r];
            P::template mma<DB>(d, context[head][0], context[head][1], right);
            attended[0][block] = P::make(d[0], d[1]), attended[1][block] = P::make(d[2], d[3]);
        }
    }
}

struct Adapt {
    static constexpr int BLOCKS = 4;
    static DEVICE void run(const Arguments& a, int i) {
        const Layout at = layout(a.sizes);
        const Sizes& s = a.sizes;
        const int tile = i / s.tasks, task = i % s.tasks;
        I32 lane = lane_id(), g = lane / 4, t = lane & 3;
        F32 x[2][DB][2];
#pragma unroll
        for (int j = 0; j < 2; ++j)
#pragma unroll
            for (int k = 0; k < DB; ++k) x[j][k][0] = x[j][k][1] = 0.f;
#pragma unroll 1
        for (int l = 0; l < s.layers; ++l) {
            const int matrix = l * s.tasks + task;
            Operand attended[2][4];
            project_contexts(a, at, tile, l, task, attended);
            project_output(x, attended, a.packed + at.adapter_output + matrix * 32 * 4 * SHARE);
            F32 weight[2 * DB], shift[2 * DB];
            const float* norm = reinterpret_cast<const float*>(a.packed + at.adapter_norm) + matrix * 2 * DP;
            read_numbers(weight, norm, t * (2 * DB), all_lanes());
            read_numbers(shift, norm + DP, t * (2 * DB), all_lanes());
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                U32 words[2 * DB];
                normalise(x[j], s.dim);
#pragma unroll
                for (int k = 0; k < DB; ++k)
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        x[j][k][e] = fma_(x[j][k][e], weight[2 * k + e], shift[2 * k + e]);
                        words[2 * k + e] = bits(x[j][k][e]);
                    }
                if (a.adapted) {
                    uint32_t* to = reinterpret_cast<uint32_t*>(a.adapted) + (long)tile * 16 * s.layers * s.tasks * DP + matrix * DP;
                    I32 sample = g + 8 * j;
                    store<2 * DB, ALIGNED<(2 * DB)>>(words, to, sample * (s.layers * s.tasks * DP) + t * (2 * DB), sample < s.batch - 16 * tile);
                }
            }
        }
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const int words = words_of_row(s.width);
            Operand out[DB];
#pragma unroll
            for (int k = 0; k < DB; ++k) out[k] = P::make(x[j][k][0], x[j][k][1]);
            I32 sample = g + 8 * j;
            write_blocks<P, DB>(out, a.output + ((long)tile * 16 * s.tasks + task) * words, sample * (s.tasks * words) + t * SHARE,
                                sample < s.batch - 16 * tile && t * (2 * DB) < s.width);
        }
    }
};
