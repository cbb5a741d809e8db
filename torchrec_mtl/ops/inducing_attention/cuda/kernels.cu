// The library of one instance (see `arguments.cuh`): for a GPU by nvcc; or by `g++ -x c++`, the same source run on a CPU,
// warp after warp.
#include "adapters.cuh"
#include "backward.cuh"
#include "launch.cuh"

extern "C" int struct_bytes(int which) { return which ? sizeof(Arguments) : sizeof(Sizes); }

extern "C" int packed_words(const Sizes* sizes) { return layout(*sizes).total; }

extern "C" long workspace_size(const Sizes* sizes) { return workspace_floats(*sizes); }

extern "C" int run_forward(const Arguments* a, void* stream) {
    const Sizes& s = a->sizes;
    if (int error = launch_threads<Pack>(*a, layout(s).total, stream)) return error;
    if (int error = launch_warps<Forward>(*a, s.batch, stream)) return error;
    return launch_warps<Adapt>(*a, (s.batch + 15) / 16 * s.tasks, stream);
}

extern "C" int run_backward(const Arguments* a, void* stream) { return launch_backward(*a, stream); }

extern "C" const char* describe(int error) {
#ifdef __CUDACC__
    return cudaGetErrorString(static_cast<cudaError_t>(error));
#else
    return error ? "the emulation failed" : "";
#endif
}
