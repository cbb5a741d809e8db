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
    float* table = a.workspace + w.row_tables + (long)sample * BIAS_SUMS;
#pragma unroll
    for (int i = 0; i < MAX_ROWS; i += 32) {
        I32 row = lane_id() + i;
        Pred is_point = row < found.active;
        I32 point = where(is_point, nth_bit(found.low, found.high, row), I32(0));
        F32 z[1];
        read_floats<1>(z, a.selection + (long)sample * s.points, point, is_point);
        F32 of_point = 0.f;
        if (s.masked) of_point = log2_(where(is_point, z[0], F32(1.f)));
        const F32 bias[1] = {where(is_point, of_point, where(row < found.rows, F32(log_zeros), F32(NEVER)))}, of_row[2] = {number(U32(point)), z[0]}, nothing[1] = {0.f};
        write_floats<2>(of_row, table + POINT_AND_Z, row * 2, all_lanes());
        write_floats<1>(bias, table + BIAS, row, all_lanes());
        write_floats<1>(nothing, a.d_selection + (long)sample * s.points, row, row < s.points);
    }
}

// Brings the list into shared memory.
DEVICE void fetch_rows(const Arguments& a, const Workspace& w, const Sample& sample) {
    const float* table = a.workspace + w.row_tables + (long)sample.index * BIAS_SUMS;
    I32 lane = lane_id();
    Pred there = lane * 2 < sample.rows;
    F32 of_rows[4], bias[2];
    const F32 nothing[2] = {0.f, 0.f};
    read_floats<4>(of_rows, table + POINT_AND_Z, lane * 4, there);
    read_floats<2>(bias, table + BIAS, lane * 2, there);
    bias[0] = where(there, bias[0], F32(NEVER)), bias[1] = where(there, bias[1], F32(NEVER));
    sync_warp();  // of the sample before, other lanes may still read; and they may have added to what this one's add to
    write_floats<4>(of_rows, sample.row_table + POINT_AND_Z, lane * 4, all_lanes());
    write_floats<2>(bias, sample.row_table + BIAS, lane * 2, all_lanes());
    write_floats<2>(nothing, sample.row_table + BIAS_SUMS, lane * 2, all_lanes());
    sync_warp();
}

DEVICE void sample_backward(const Arguments& a, const Workspace& w, const Layout& at, int index, int l, float* sums, float* row_table) {
    const Sample sample{index, uniform(a.rows[index]), reinterpret_cast<uint32_t*>(a.workspace + w.d_outputs) + (long)index * a.sizes.points * ROW,
                        a.d_selection + (long)index * a.sizes.points, row_table};
    fetch_rows(a, w, sample);
    if (l == 0) return keys_backward<FB, true>(a, w, at, sample, l, sums);
    if (sample.rows == 0) return;
    if (sample.rows <= 8) return keys_backward<1, false>(a, w, at, sample, l, sums);
    if (sample.rows <= 16) return keys_backward<2, false>(a, w, at, sample, l, sums);
    if (sample.rows <= 24) return keys_backward<3, false>(a, w, at, sample, l, sums);
    if (sample.rows <= 32) return keys_backward<4, false>(a, w, at, sample, l, sums);
    if (sample.rows <= 48) return keys_backward<6, false>(a, w, at, sample, l, sums);
    return keys_backward<8, false>(a, w, at, sample, l, sums);
}

// Of the samples block, block + blocks, ... in the order of `a.order`; `shared` has room for `size` numbers.
DEVICE void block_backward(const Arguments& a, int block, int warps, float* shared, int size) {
    const Sizes& s = a.sizes;
    const Workspace w = plan_workspace(s);
    const Layout at = layout(s);
    float* partial = a.workspace + w.partial + (long)block * w.all_sums;
    const int sums_size = size - warps * ROW_TABLE;
    float* row_tables = shared + sums_size;
    for (int i = 4 * thread(); i < sums_size; i += 4 * num_threads()) *reinterpret_cast<Four*>(shared + i) = {{0.f, 0.f, 0.f, 0.f}};
    barrier();
    EACH_WARP(warp, warps)
        for (int i = block + w.blocks * warp; i < s.batch; i += w.blocks * warps) list_rows(a, w, a.order[i]);
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
        const int stride = warp_sums(w, of_points), workers = sums_size / stride < warps ? sums_size / stride : warps;
        EACH_WARP(warp, workers)
#pragma unroll 1
            for (int i = block + w.blocks * warp; i < s.batch; i += w.blocks * workers) sample_backward(a, w, at, uniform(a.order[i]), l, shared + warp * stride, row_tables + warp * ROW_TABLE);
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
    const int warps = size / (warp_sums(plan_workspace(s), false) + ROW_TABLE);
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
    const Sizes& s = a.sizes;
    if ((long)s.batch * s.layers * s.tasks * HEADS * ROW > INT32_MAX) return 1;  // offsets are of 32 bits
    if (int error = gradients::launch_blocks(a, stream)) return error;
    if (int error = launch_warps<gradients::Reduce>(a, (gradients::plan_workspace(a.sizes).all_sums + 31) / 32, stream)) return error;
    return launch_threads<gradients::Unfold>(a, gradients::num_weights(a.sizes), stream);
}
