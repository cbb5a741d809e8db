// Where the packed weights lie, and packing: the scores are folded (queries with keys), the types are changed.
#pragma once
#include "rows.cuh"

BOTH Layout layout(const Sizes& s) {
    constexpr int W = P::WORDS, SQUARE = 32 * 4 * DB * W;  // words of a square's blocks
    const int points = s.layers * s.points * ROW, adapters = s.layers * s.tasks;
    Layout at;
    at.queries = 0;
    at.points = at.queries + HEADS * points;
    at.value = at.points + points;
    at.output = at.value + s.layers * SQUARE;
    at.indicators = at.output + s.layers * SQUARE;
    at.adapter_value = at.indicators + s.layers * indicator_rows(s) * ROW;
    at.adapter_output = at.adapter_value + adapters * SQUARE;
    at.norm = at.adapter_output + adapters * SQUARE;
    at.adapter_norm = at.norm + s.layers * 2 * DP;
    at.value_t = at.adapter_norm + adapters * 2 * DP;
    at.adapter_value_t = at.value_t + s.layers * SQUARE;
    at.output_t = at.adapter_value_t + adapters * SQUARE;
    at.adapter_output_t = at.output_t + s.layers * SQUARE;
    at.total = at.adapter_output_t + adapters * SQUARE;
    return at;
}

// Places of `weights`, as in `GeneratorWeights`; `AdapterWeights` follow in the same order.
enum { POINTS, KEY, VALUE, OUTPUT, NORM_WEIGHT, NORM_BIAS, ADAPTERS };

DEVICE float weight(const Arguments& a, int place, int i) {
    if (a.sizes.weights_type == FLOAT32) return static_cast<const float*>(a.weights[place])[i];
    uint16_t half = static_cast<const uint16_t*>(a.weights[place])[i];
    return a.sizes.weights_type == BFLOAT16 ? bf16_scalar(half) : f16_scalar(half);
}

// log2(e) / sqrt(d_h) q_h Wk_h at dimension d: row `row` of the queries at `place`, matrix `matrix` of the keys after it.
DEVICE float folded(const Arguments& a, int place, int row, int matrix, int head, int d) {
    const int dim = a.sizes.dim, columns = dim / HEADS, first = head * columns;
    float sum = 0;
    for (int i = first; i < first + columns; ++i) sum += weight(a, place + POINTS, row * dim + i) * weight(a, place + KEY, (matrix * dim + i) * dim + d);
    return sum * (LOG2E / sqrtf(float(columns)));
}

// In which order a square's blocks lie. Of VALUES and OUTPUTS_T rows g are value dimensions; of OUTPUTS they are columns.
enum Order { VALUES, OUTPUTS, OUTPUTS_T };  // [2, lane, DB, 2], [DB, lane, 4], [4, lane, DB]

// Element i of a square's blocks in an order; `of_outputs` where its rows are dimensions, as Wo's are.
DEVICE float square(const Arguments& a, int place, Order order, bool of_outputs, int i) {
    const int dim = a.sizes.dim, columns = dim / HEADS, e = i & 1, matrix = i / (256 * DB);
    int block, lane, b;  // block of value dimensions, block of dimensions
    if (order == VALUES)
        block = i / 2 % 2 + 2 * (i / (128 * DB) % 2), b = i / 4 % DB, lane = i / (4 * DB) % 32;
    else if (order == OUTPUTS)
        block = i / 2 % 4, lane = i / 8 % 32, b = i / 256 % DB;
    else
        b = i / 2 % DB, lane = i / (2 * DB) % 32, block = i / (64 * DB) % 4;
    const int g = lane / 4, t = lane % 4;
    const int of_head = 8 * (block % V) + (order == OUTPUTS ? 2 * t + e : g);
    const int d = 2 * DB * (order == OUTPUTS ? g / 2 : t) + 2 * b + (order == OUTPUTS ? g & 1 : e);
    if (of_head >= columns || d >= dim) return 0;
    const int v = block / V * columns + of_head;
    return weight(a, place, matrix * dim * dim + (of_outputs ? d * dim + v : v * dim + d));
}

// Element e of a word of what is packed.
DEVICE float packed_element(const Arguments& a, const Layout& at, int word, int e) {
    const Sizes& s = a.sizes;
    const auto from = [&](int start) { return (word - start) * (2 / P::WORDS) + e; };
    if (word < at.value) {
        const bool is_query = word < at.points;
        const int i = from(is_query ? at.queries : at.points), d = i % DP, k = i / DP % s.points, rest = i / DP / s.points;
        if (d >= s.dim) return 0;
        if (!is_query) return weight(a, POINTS, (rest * s.points + k) * s.dim + d);
        const int l = rest / HEADS;
        return folded(a, 0, l * s.points + k, l, rest % HEADS, d);
    }
    if (word < at.output) return square(a, VALUE, VALUES, false, from(at.value));
    if (word < at.indicators) return square(a, OUTPUT, OUTPUTS, true, from(at.output));
    if (word < at.adapter_value) {
        const int i = from(at.indicators), d = i % DP, row = i / DP % indicator_rows(s), l = i / DP / indicator_rows(s);
        if (d >= s.dim || row >= s.tasks * HEADS) return 0;
        const int task = l * s.tasks + row / HEADS;
        return folded(a, ADAPTERS, task, task, row % HEADS, d);
    }
    if (word < at.adapter_output) return square(a, ADAPTERS + VALUE, VALUES, false, from(at.adapter_value));
    if (word < at.norm) return square(a, ADAPTERS + OUTPUT, OUTPUTS, true, from(at.adapter_output));
    if (word < at.adapter_value_t) return square(a, VALUE, OUTPUTS, false, from(at.value_t));
    if (word < at.output_t) return square(a, ADAPTERS + VALUE, OUTPUTS, false, from(at.adapter_value_t));
    if (word < at.adapter_output_t) return square(a, OUTPUT, OUTPUTS_T, true, from(at.output_t));
    return square(a, ADAPTERS + OUTPUT, OUTPUTS_T, true, from(at.adapter_output_t));
}

DEVICE float packed_norm(const Arguments& a, const Layout& at, int word) {
    const bool of_layers = word < at.adapter_norm;
    const int i = word - (of_layers ? at.norm : at.adapter_norm), d = i % DP, second = i / DP % 2, row = i / DP / 2;
    return d < a.sizes.dim ? weight(a, (of_layers ? 0 : ADAPTERS) + NORM_WEIGHT + second, row * a.sizes.dim + d) : 0.f;
}

struct Pack {
    static DEVICE void run(const Arguments& a, int word) {
        const Layout at = layout(a.sizes);
        if (word >= at.norm && word < at.value_t)
            a.packed[word] = one_lane(bits(F32(packed_norm(a, at, word))));
        else if constexpr (P::WORDS == 2)
            a.packed[word] = one_lane(bits(F32(packed_element(a, at, word, 0))));
        else {
            U32 pair[1];
            P::write(P::make(F32(packed_element(a, at, word, 0)), F32(packed_element(a, at, word, 1))), pair);
            a.packed[word] = one_lane(pair[0]);
        }
    }
};
