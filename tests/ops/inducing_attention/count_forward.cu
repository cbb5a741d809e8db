// One kernel for each number of row blocks of the forward, alone, so that its registers, stack and instructions can be
// read: its longest loop is a layer with the adapters' attention. Compiled by `test_cuda_forward.py`; never run.
#include "forward.cuh"

template <int NB> __global__ void __launch_bounds__(128, Forward::BLOCKS) rows_of(const __grid_constant__ Arguments given) {
    Arguments a = given;
    Sizes& s = a.sizes;
    s.masked = 0, s.residual = INPUT, s.first_residual = QUERY, s.dim = s.width = DIM, s.layers = 4, s.points = 64, s.fields = 8 * FB - 4, s.tasks = 2;
    a.outputs = nullptr;
    const int sample = a.order[blockIdx.x * 4 + threadIdx.x / 32];
    sample_rows<NB>(a, layout(s), sample, selected(a, sample));
}
template __global__ void rows_of<2>(const __grid_constant__ Arguments);
template __global__ void rows_of<3>(const __grid_constant__ Arguments);
template __global__ void rows_of<4>(const __grid_constant__ Arguments);
