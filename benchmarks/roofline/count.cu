// Parts of the kernels in CUDA C++, each a kernel with its sizes known, so that what a warp issues there can be counted.
// Never run. The kernels that run learn their sizes when they are launched, and issue somewhat more; so does a forward
// that keeps what a backward needs.
#include "adapters.cuh"
#include "backward_adapters.cuh"
#include "backward_layer.cuh"

DEVICE void know(Sizes& s) {
    s.dim = s.width = NUM_DIMS, s.fields = NUM_FIELDS, s.points = NUM_POINTS, s.layers = NUM_LAYERS, s.tasks = NUM_TASKS;
    s.masked = 0, s.residual = INPUT, s.first_residual = QUERY;
}

template <int NB> __global__ void __launch_bounds__(128, Forward::BLOCKS) forward(const __grid_constant__ Arguments given) {
    Arguments a = given;
    know(a.sizes);
    a.outputs = nullptr;
    const int sample = a.order[blockIdx.x * 4 + threadIdx.x / 32];
    sample_rows<NB>(a, layout(a.sizes), sample, selected(a, sample));
}

template <int LAYERS_> __global__ void __launch_bounds__(128, Adapt::BLOCKS) adapt(const __grid_constant__ Arguments given) {
    Arguments a = given;
    know(a.sizes);
    a.adapted = nullptr;
    Adapt::run(a, blockIdx.x * 4 + threadIdx.x / 32);
}

namespace gradients {

// Of the keys that layer L_ reads: fields, or NK blocks of rows. ROWS of the sample are in blocks of eight.
template <int NK, int ROWS, int L_> __global__ void __launch_bounds__(256, 1) backward(const __grid_constant__ Arguments given) {
    extern __shared__ __align__(16) float shared[];
    Arguments a = given;
    know(a.sizes);
    const Workspace w = plan_workspace(a.sizes);
    const int index = a.order[blockIdx.x * 8 + threadIdx.x / 32], stride = warp_sums(w, L_ == 0);
    float* sums = shared + threadIdx.x / 32 * stride;
    const Sample sample{index, 8 * ROWS, reinterpret_cast<uint32_t*>(a.workspace + w.d_outputs) + (long)index * a.sizes.points * ROW,
                        a.d_selection + (long)index * a.sizes.points, shared + 8 * stride + threadIdx.x / 32 * ROW_TABLE};
    keys_backward<NK, L_ == 0>(a, w, layout(a.sizes), sample, L_, sums);
}

template <int L_> __global__ void __launch_bounds__(256, 1) projections(const __grid_constant__ Arguments given) {
    extern __shared__ __align__(16) float shared[];
    Arguments a = given;
    know(a.sizes);
    const int warp = threadIdx.x / 32;
    projections_backward(a, plan_workspace(a.sizes), layout(a.sizes), blockIdx.x, gridDim.x, L_, warp % NUM_TASKS, shared + warp * PROJECTION_SUMS);
}

}  // namespace gradients

// Either of ROW_BLOCKS blocks of rows, or what does not depend on them.
#if ROW_BLOCKS
template __global__ void forward<ROW_BLOCKS>(const __grid_constant__ Arguments);
template __global__ void gradients::backward<ROW_BLOCKS, ROW_BLOCKS, 1>(const __grid_constant__ Arguments);
template __global__ void gradients::backward<ROW_BLOCKS, ROW_BLOCKS, NUM_LAYERS>(const __grid_constant__ Arguments);
#else
template __global__ void adapt<NUM_LAYERS>(const __grid_constant__ Arguments);
template __global__ void gradients::backward<FB, 7, 0>(const __grid_constant__ Arguments);
template __global__ void gradients::backward<FB, 8, 0>(const __grid_constant__ Arguments);
template __global__ void gradients::projections<1>(const __grid_constant__ Arguments);
template __global__ void gradients::projections<NUM_LAYERS - 1>(const __grid_constant__ Arguments);
#endif
