// The backward in three launches: everything that a sample's own gradients need, layers outermost and a block's samples
// within; the sums of all blocks; the weights' gradients.
#pragma once
#include <vector>

#include "backward_adapters.cuh"
#include "backward_layer.cuh"
#include "backward_unfold.cuh"
#include "launch.cuh"

namespace gradients {

constexpr int MAX_WARPS = 8;

// Lists a sample's kept rows, and clears the gradient of its selection.
DEVICE void list_rows(const Arguments& a, const Workspace& w, int sample) {
    const Sizes& s = a.sizes;
    const Selected found = selected(a, sample);
    const int zeros = s.points - found.active;
    const float log_zeros = log2f(float(zeros > 0 ? zeros : 1));
    const long first = (long)sample * MAX_ROWS;
#pragma unroll
    for (int i = 0; i < MAX_ROWS; i += 32) {
        I32 row = lane_id() + i;
        Pred is_point = row < found.active;
        const U32 point[1] = {U32(where(is_point, nth_bit(found.low, found.high, row), I32(0)))};
        F32 z[1], bias[1];
        const F32 nothing[1] = {0.f};
        read_floats<1>(z, a.selection + (long)sample * s.points, I32(point[0]), is_point);
        F32 of_point = 0.f;
        if (s.masked) of_point = log2_(where(is_point, z[0], F32(1.f)));
        bias[0] = where(is_point, of_point, where(row < found.rows, F32(log_zeros), F32(NEVER)));
        store<1, 1>(point, reinterpret_cast<uint32_t*>(a.workspace + w.point) + first, row, all_lanes());
        write_floats<1>(z, a.workspace + w.z + first, row, all_lanes());
        write_floats<1>(bias, a.workspace + w.bias + first, row, all_lanes());
        write_floats<1>(nothing, a.d_selection + (long)sample * s.points, row, row < s.points);
    }
}

DEVICE void sample_backward(const Arguments& a, const Workspace& w, const Layout& at, int index, int l, float* sums, float* bias_sums) {
    const long first = (long)index * MAX_ROWS;
    const Sample sample{index,
                        uniform(a.rows[index]),
                        a.workspace + w.z + first,
                        a.workspace + w.bias + first,
                        reinterpret_cast<const int*>(a.workspace + w.point) + first,
                        reinterpret_cast<uint32_t*>(a.workspace + w.d_outputs) + (long)index * a.sizes.points * ROW,
                        a.d_selection + (long)index * a.sizes.points};
    if (l == 0) return keys_backward<FB, true>(a, w, at, sample, l, sums, bias_sums);
    if (sample.rows == 0) return;
    if (sample.rows <= 8) return keys_backward<1, false>(a, w, at, sample, l, sums, bias_sums);
    if (sample.rows <= 16) return keys_backward<2, false>(a, w, at, sample, l, sums, bias_sums);
    if (sample.rows <= 24) return keys_backward<3, false>(a, w, at, sample, l, sums, bias_sums);
    if (sample.rows <= 32) return keys_backward<4, false>(a, w, at, sample, l, sums, bias_sums);
    if (sample.rows <= 48) return keys_backward<6, false>(a, w, at, sample, l, sums, bias_sums);
    return keys_backward<8, false>(a, w, at, sample, l, sums, bias_sums);
}

// Sorts the samples of a block, up to SORTED at a time, by their blocks of rows, the most first: its warps then run the
// same instructions and finish together. Samples as far apart as there are blocks are a block's.
DEVICE void sort_samples(const Arguments& a, const Workspace& w, int block) {
    constexpr int SORTED = 512;
    const int count = (a.sizes.batch - block + w.blocks - 1) / w.blocks;
    int* order = reinterpret_cast<int*>(a.workspace + w.order);
    for (int i = thread(); i < count; i += num_threads()) {
        const int first = i / SORTED * SORTED, last = first + SORTED < count ? first + SORTED : count, own = (a.rows[block + i * w.blocks] + 7) / 8;
        int rank = first;
#pragma unroll 8
        for (int j = first; j < last; ++j) {
            const int other = (a.rows[block + j * w.blocks] + 7) / 8;
            rank += other > own || (other == own && j < i);
        }
        order[block + rank * w.blocks] = block + i * w.blocks;
    }
}

// Of the samples block, block + blocks, ...; `shared` has room for `size` numbers.
DEVICE void block_backward(const Arguments& a, int block, int warps, float* shared, int size) {
    const Sizes& s = a.sizes;
    const Workspace w = plan_workspace(s);
    const Layout at = layout(s);
    float* partial = a.workspace + w.partial + (long)block * w.all_sums;
    const int* order = reinterpret_cast<const int*>(a.workspace + w.order);
    for (int i = 4 * thread(); i < size; i += 4 * num_threads()) *reinterpret_cast<Four*>(shared + i) = {{0.f, 0.f, 0.f, 0.f}};
    sort_samples(a, w, block);
    barrier();
    EACH_WARP(warp, warps)
        for (int i = block + w.blocks * warp; i < s.batch; i += w.blocks * warps) list_rows(a, w, i);
    barrier();
#pragma unroll 1
    for (int l = s.layers - 1; l >= 0; --l)
#pragma unroll 1
        for (int start = 0; start < s.tasks; start += warps) {
            const int tasks = s.tasks - start < warps ? s.tasks - start : warps, of_task = warps / tasks;
            EACH_WARP(warp, tasks * of_task)
#pragma unroll 1
                for (int first = block + w.blocks * 16 * (warp / tasks); first < s.batch; first += w.blocks * 16 * of_task)
                    projections_backward(a, w, at, first, w.blocks, l, start + warp % tasks, shared + warp * PROJECTION_SUMS);
            barrier();
            for (int task = 0; task < tasks; ++task)
                add_warps(shared, PROJECTION_SUMS, task, tasks, tasks * of_task, PROJECTION_SUMS, partial + adapter_sums(s, w, l, start + task));
            barrier();
        }
#pragma unroll 1
    for (int l = s.layers; l >= 0; --l) {
        const bool of_points = l < s.layers && (l ? s.residual : s.first_residual) == QUERY;
        const int stride = warp_sums(w, of_points), workers = size / stride < warps ? size / stride : warps;
        EACH_WARP(warp, workers)
#pragma unroll 1
            for (int i = block + w.blocks * warp; i < s.batch; i += w.blocks * workers) sample_backward(a, w, at, uniform(order[i]), l, shared + warp * stride, shared + (warp + 1) * stride - MAX_ROWS);
        barrier();
        float* to = partial + (long)l * w.layer_sums;
        if (l < s.layers) add_warps(shared, stride, 0, 1, workers, w.indicator_sums, to);
        if (l > 0) add_warps(shared + w.indicator_sums, stride, 0, 1, workers, w.point_sums - w.indicator_sums, to - w.layer_sums + w.indicator_sums);
        if (of_points) add_warps(shared + w.point_sums, stride, 0, 1, workers, w.layer_sums - w.point_sums, to + w.point_sums);
        barrier();
    }
}

// Warps that a block can have, by the memory of their sums.
inline int fitting_warps(const Sizes& s, int size) {
    const int warps = size / warp_sums(plan_workspace(s), false);
    return warps < MAX_WARPS ? warps : MAX_WARPS;
}

#ifdef __CUDACC__
__global__ void __launch_bounds__(32 * MAX_WARPS, 1) blocks_backward(const __grid_constant__ Arguments a, int size) {
    extern __shared__ __align__(16) float shared[];
    block_backward(a, blockIdx.x, blockDim.x / 32, shared, size);
}

inline int launch_blocks(const Arguments& a, void* stream) {
    int device, bytes;
    if (cudaError_t error = cudaGetDevice(&device)) return error;
    if (cudaError_t error = cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device)) return error;
    if (cudaError_t error = cudaFuncSetAttribute(blocks_backward, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)) return error;
    const int size = bytes / 16 * 4, warps = fitting_warps(a.sizes, size);
    blocks_backward<<<plan_workspace(a.sizes).blocks, 32 * warps, size * 4, static_cast<cudaStream_t>(stream)>>>(a, size);
    return cudaGetLastError();
}
#else
inline int launch_blocks(const Arguments& a, void*) {
    constexpr int SIZE = 227 * 1024 / 4;  // an H100's
    std::vector<float> shared(SIZE, NAN);
    for (int block = 0; block < plan_workspace(a.sizes).blocks; ++block) block_backward(a, block, fitting_warps(a.sizes, SIZE), shared.data(), SIZE);
    return 0;
}
#endif

}  // namespace gradients

// Numbers that `Arguments::workspace` must have.
inline long workspace_floats(const Sizes& s) { return gradients::plan_workspace(s).size; }

inline int launch_backward(const Arguments& a, void* stream) {
    if (int error = gradients::launch_blocks(a, stream)) return error;
    if (int error = launch_warps<gradients::Reduce>(a, (gradients::plan_workspace(a.sizes).all_sums + 31) / 32, stream)) return error;
    return launch_threads<gradients::Unfold>(a, gradients::num_weights(a.sizes), stream);
}
