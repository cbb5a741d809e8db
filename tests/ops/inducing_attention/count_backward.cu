// One kernel for each number of row blocks of the backward of a layer, alone and with its sizes known, so that its
// registers, stack and instructions can be read. Compiled by `test_cuda_backward.py`; never run.
#include "backward.cuh"

template <int NK, bool FIRST> __global__ void __launch_bounds__(256, 1) layer_of(const __grid_constant__ Arguments given, const __grid_constant__ gradients::Workspace w, const __grid_constant__ Layout at) {
    extern __shared__ __align__(16) float shared[];
    Arguments a = given;
    Sizes& s = a.sizes;
    s.masked = 0, s.residual = INPUT, s.first_residual = QUERY, s.dim = s.width = DIM, s.layers = 4, s.points = 64, s.fields = 8 * FB - 4;
    s.tasks = 0;  // the adapters' attention is left out
    const int index = blockIdx.x * 8 + threadIdx.x / 32, rows = NK <= 2 && !FIRST ? 8 * NK : gradients::uniform(a.rows[index]);
    float* sums = shared + threadIdx.x / 32 * 5000;
    uint32_t* d_outputs = reinterpret_cast<uint32_t*>(a.workspace + w.d_outputs) + (long)index * s.points * ROW;
    const gradients::Sample sample{index, rows, d_outputs, a.d_selection + (long)index * s.points, sums + 4500};
    gradients::keys_backward<NK, FIRST>(a, w, at, sample, FIRST ? 0 : 2, sums);
}
#define LAYER(NK, FIRST) template __global__ void layer_of<NK, FIRST>(const __grid_constant__ Arguments, const __grid_constant__ gradients::Workspace, const __grid_constant__ Layout);
LAYER(2, false)
LAYER(3, false)
LAYER(4, false)
LAYER(FB, true)
