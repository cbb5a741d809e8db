// In which order samples are taken: those with more rows first, so that warps that run at once run the same code and end
// together. Stable, so it is the same from run to run. Two kernels of a warp for 32 samples: counts, then places.
#pragma once
#include "rows.cuh"

constexpr int CHUNK = 32, CLASSES = 8;      // samples of a warp; numbers of row blocks
constexpr int CHUNKS_IN_ORDER = 512;        // only these many chunks are ordered among each other

DEVICE I32 class_of(I32 rows) { return CLASSES - where(rows > 8, (rows + 7) / 8, I32(1)); }

struct Count {
    static DEVICE void run(const Arguments& a, int chunk) {
        const int first = chunk * CHUNK, samples = a.sizes.batch - first < CHUNK ? a.sizes.batch - first : CHUNK;
        I32 lane = lane_id(), rows = 0;
#pragma unroll 4
        for (int i = 0; i < samples; ++i) rows = where(lane == i, I32(selected(a, first + i).rows), rows);
        const U32 word[1] = {U32(rows)};
        store<1, 1>(word, reinterpret_cast<uint32_t*>(a.rows) + first, lane, lane < samples);
        I32 own = class_of(rows);
        U32 count[1] = {0u};
#pragma unroll
        for (int c = 0; c < CLASSES; ++c) count[0] = where(lane == c, U32(count_bits(vote(own == c && lane < samples))), count[0]);
        store<1, 1>(count, reinterpret_cast<uint32_t*>(a.histograms) + chunk * CLASSES, lane, lane < CLASSES);
    }
};

struct Place {
    static constexpr int BLOCKS = 4;
    static DEVICE void run(const Arguments& a, int chunk) {
        const int begin = chunk / CHUNKS_IN_ORDER * CHUNKS_IN_ORDER, chunks = (a.sizes.batch + CHUNK - 1) / CHUNK;
        const int end = chunks < begin + CHUNKS_IN_ORDER ? chunks : begin + CHUNKS_IN_ORDER;
        const int first = chunk * CHUNK, samples = a.sizes.batch - first < CHUNK ? a.sizes.batch - first : CHUNK;
        I32 lane = lane_id();
        F32 before[CLASSES], all[CLASSES];  // counts are below 2^24
#pragma unroll
        for (int c = 0; c < CLASSES; ++c) before[c] = all[c] = 0.f;
        for (int i = begin; i < end; i += 32) {
            U32 counts[CLASSES];
            load<CLASSES, 4>(counts, reinterpret_cast<const uint32_t*>(a.histograms), (lane + i) * CLASSES, lane + i < end);
#pragma unroll
            for (int c = 0; c < CLASSES; ++c) {
                F32 count = F32(I32(counts[c]));
                all[c] = all[c] + count, before[c] = before[c] + where(lane + i < chunk, count, F32(0.f));
            }
        }
        U32 word[1];
        load<1, 1>(word, reinterpret_cast<const uint32_t*>(a.rows) + first, lane, lane < samples);
        I32 own = class_of(I32(word[0])), place = 0;
        F32 start = 0.f;
#pragma unroll
        for (int c = 0; c < CLASSES; ++c) {
            const uint32_t same = vote(own == c && lane < samples);
            I32 rank = count_bits_lanes(same & ((U32(1u) << U32(lane)) - 1u));
            place = where(own == c, rank + I32(start + warp_sum(before[c])), place);
            start = start + warp_sum(all[c]);
        }
        const U32 sample[1] = {U32(lane + first)};
        store<1, 1>(sample, reinterpret_cast<uint32_t*>(a.order) + begin * CHUNK, place, lane < samples);
    }
};
