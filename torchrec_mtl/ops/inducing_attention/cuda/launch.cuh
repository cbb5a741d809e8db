// Runs `Kernel::run(arguments, i)` for each i < count: a warp each, or a thread each. Returns CUDA's error, or 0.
#pragma once
#include "arguments.cuh"
#include "warp.cuh"

#ifdef __CUDACC__
#include <cuda_runtime.h>

constexpr int WARPS = 4;  // of a block

template <class Kernel> __global__ void __launch_bounds__(32 * WARPS, Kernel::BLOCKS) each_warp(const __grid_constant__ Arguments a, int count) {
    const int i = blockIdx.x * WARPS + threadIdx.x / 32;
    if (i < count) Kernel::run(a, i);
}
template <class Kernel> __global__ void __launch_bounds__(128) each_thread(const __grid_constant__ Arguments a, int count) {
    const int i = blockIdx.x * 128 + threadIdx.x;
    if (i < count) Kernel::run(a, i);
}
template <class Kernel> int launch_warps(const Arguments& a, int count, void* stream) {
    if (count) each_warp<Kernel><<<(count + WARPS - 1) / WARPS, 32 * WARPS, 0, static_cast<cudaStream_t>(stream)>>>(a, count);
    return cudaGetLastError();
}
template <class Kernel> int launch_threads(const Arguments& a, int count, void* stream) {
    if (count) each_thread<Kernel><<<(count + 127) / 128, 128, 0, static_cast<cudaStream_t>(stream)>>>(a, count);
    return cudaGetLastError();
}
#else
template <class Kernel> int launch_warps(const Arguments& a, int count, void*) {
    for (int i = 0; i < count; ++i) Kernel::run(a, i);
    return 0;
}
template <class Kernel> int launch_threads(const Arguments& a, int count, void*) {
    for (int i = 0; i < count; ++i) Kernel::run(a, i);
    return 0;
}
#endif
