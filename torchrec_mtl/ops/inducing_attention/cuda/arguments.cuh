// What the kernels are given, filled by `launch.py`; and where the packed weights lie.
//
// Compiled once for each instance: -DPRECISION (Bf16, Fp16, Tf32x3, Tf32), -DHEADS m (1, 2, 4), -DDB (2 to 4: blocks of 8
// dimensions, D <= DP = 8 DB), -DFB (1 to 8: blocks of 8 fields). Elements are of 16 bits, or float32 for Tf32x3 and Tf32.
// `width` is D where it is a multiple of 2 DB, else DP: a lane reads 2 DB neighbours, which are all there, or none is.
// Elements beyond D are 0.
#pragma once
#include <cstdint>

enum Residual { NONE = 0, QUERY = 1, INPUT = 2 };
enum WeightsType { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };
constexpr int NUM_WEIGHTS = 12;
constexpr float EPS = 1e-5f;
constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;

struct Sizes {
    int batch, fields, points, dim, width, layers, tasks;  // B, F, K, D, -, L, T
    int first_residual, residual;                          // `Residual` of the first layer, and of the others
    int masked;                                            // whether z masks: no row stands for the points at 0
    int weights_type;                                      // `WeightsType` of all of `weights`
    int processors;                                        // of the GPU
};

// R: rows kept of a sample, the selected points' in order, then (unless masked) one for all points at 0; R <= K.
struct Arguments {
    Sizes sizes;
    const uint32_t* inputs;            // elements [B, F, width]
    const float* selection;            // [B, K]
    const void* weights[NUM_WEIGHTS];  // as in `GeneratorWeights`, then `AdapterWeights`
    uint32_t* packed;                  // see `Layout`
    uint32_t* output;                  // elements [B, T, width]
    // Kept for the backward: `outputs` and `adapted` are null where there will be none.
    int* rows;           // R [B]
    uint32_t* outputs;   // Y^1 to Y^L, elements [B, L, K, DP], of which R rows are written
    uint32_t* contexts;  // what the adapters' queries read, before Wv and Wo: elements [B, L, T, m, DP]; 0 where R = 0
    float* adapted;      // T^1 to T^L [B, L, T, DP]
    // The backward's. `upstream` is read, the gradients are written whole; `workspace` comes as it is.
    const uint32_t* upstream;  // elements [B, T, width]
    uint32_t* d_inputs;        // elements [B, F, width]
    float* d_selection;        // [B, K]
    float* d_weights;          // the gradients of `weights`, one after the other, as they are shaped
    float* workspace;          // of `workspace_size(sizes)` numbers
};

// Offsets into `packed`, in words of 32 bits. A lane's share of an 8 x 8 block: row g = lane / 4, columns 2 t, 2 t + 1,
// t = lane % 4. Columns that are dimensions are in the order in which lanes hold them: column 2 t + e of block b is
// dimension 2 DB t + 2 b + e. Value dimensions are in four blocks for any number of heads: block c holds dimensions
// 8 (c % V) to 8 (c % V) + 7 of head c / V, V = 4 / m; 0 beyond d_h.
struct Layout {
    int queries;         // log2(e) / sqrt(d_h) I_j Wk_j, elements [L, m, K, DP]
    int points;          // I, elements [L, K, DP]
    int value;           // Wv, rows are value dimensions: [L, 2, lane, DB, 2] pairs; block c = 2 (second) + (last)
    int output;          // Wo, rows are dimensions, columns value dimensions: [L, DB, lane, 4] pairs
    int indicators;      // log2(e) / sqrt(d_h) a_tj Wk_tj, elements [L, 8 ceil(T m / 8), DP]
    int adapter_value;   // as `value`: [L, T, 2, lane, DB, 2]
    int adapter_output;  // as `output`: [L, T, DB, lane, 4]
    int norm;            // LayerNorm's weight, then its bias, float32 [L, 2, DP]
    int adapter_norm;    // float32 [L, T, 2, DP]
    // For the backward: rows are dimensions of what `value` has as columns, and the other way round for `output`.
    int value_t, adapter_value_t;    // Wv as `output`: [(L,) (L, T,) DB, lane, 4] pairs
    int output_t, adapter_output_t;  // Wo: rows are value dimensions [(L,) (L, T,) 4, lane, DB] pairs
    int total;
};
