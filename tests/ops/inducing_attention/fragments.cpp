// The emulated warp's products and transposition on given registers, [register, lane]. Compiled by `test_cuda_forward.py`.
#include "warp.cuh"

extern "C" void multiply(int kind, const uint32_t* a, const uint32_t* b, float* d) {
    U32 ra[4], rb[2];
    F32 rd[4];
    for (int i = 0; i < 4; ++i) memcpy(&ra[i], a + 32 * i, 128), memcpy(&rd[i], d + 32 * i, 128);
    for (int i = 0; i < 2; ++i) memcpy(&rb[i], b + 32 * i, 128);
    if (kind == 0) mma_bf16_k16(rd, ra[0], ra[1], ra[2], ra[3], rb[0], rb[1]);
    if (kind == 1) mma_f16_k16(rd, ra[0], ra[1], ra[2], ra[3], rb[0], rb[1]);
    if (kind == 2) mma_bf16_k8(rd, ra[0], ra[1], rb[0]);
    if (kind == 3) mma_f16_k8(rd, ra[0], ra[1], rb[0]);
    if (kind == 4) mma_tf32_k8(rd, ra[0], ra[1], ra[2], ra[3], rb[0], rb[1]);
    for (int i = 0; i < 4; ++i) memcpy(d + 32 * i, &rd[i], 128);
}
extern "C" void transpose(const uint32_t* in, uint32_t* out) {
    U32 x;
    memcpy(&x, in, 128);
    x = transpose_8x8(x);
    memcpy(out, &x, 128);
}
extern "C" void nth(uint32_t low, uint32_t high, const int* ranks, int* out) {
    I32 x;
    memcpy(&x, ranks, 128);
    x = nth_bit(low, high, x);
    memcpy(out, &x, 128);
}
