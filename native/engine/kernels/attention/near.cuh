// What one query of a head sees of keys that lie in shared memory, where a cluster's blocks share the work:
// for attention/block.cu, which says what the constants are.
#pragma once

// −∞ of no keys gives weights of 0, and not of NaN.
__device__ __forceinline__ f32 finite(f32 top) { return top == NOTHING ? 0.f : top; }

// The highest of a value over the groups of SHARE lanes of a warp.
__device__ __forceinline__ f32 highest_of(f32 x) {
#pragma unroll
    for (int m = SHARE; m < WARP; m *= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, m));
    return x;
}

// A key's score, in the SHARE lanes that have it.
__device__ __forceinline__ f32 scored(const f32* q, const Wide<T, VEC> (&k)[EACH], f32 scale) {
    const u32 lane = threadIdx.x % SHARE;
    f32 score = 0.f;
#pragma unroll
    for (int n = 0; n < EACH; n++)
#pragma unroll
        for (int v = 0; v < VEC; v++)
            score = fmaf(q[(lane + n * SHARE) * VEC + v], k[n].at(v), score);
#pragma unroll
    for (int m = 1; m < SHARE; m *= 2) score += __shfl_xor_sync(~0u, score, m);
    return score * scale;
}

// Each block of the head has every MEMBERS-th key. A warp takes AT_ONCE of them at a time, under the top
// score that it has seen; what a block finds are values, their weight and its top score, for all blocks.
__device__ __forceinline__ void attend(const f32* q, const T* keys, const T* values, f32* part,
                                              u32 count, f32 scale, f32* to, Meeting meeting) {
    const u32 tid = threadIdx.x, warp = tid / WARP, lane = tid % SHARE;
    // Warps that have keys.
    const u32 active = min((count + AT_ONCE - 1) / AT_ONCE, (u32)WARPS);
    if (warp < active) {
        f32 sum[EACH * VEC] = {}, weight = 0.f, top = NOTHING;
#pragma unroll 1
        for (u32 base = warp * AT_ONCE; base < count; base += GROUPS) {
            const u32 key = base + tid % WARP / SHARE;
            const bool there = key < count;
            Wide<T, VEC> k[EACH], value[EACH];
#pragma unroll
            for (int n = 0; n < EACH; n++) {
                const u32 i = (there ? key : 0) * SIZE + (lane + n * SHARE) * VEC;
                k[n].load(keys + i);
                value[n].load(values + i);
            }
            f32 score = scored(q, k, scale);
            if (!there) score = NOTHING;
            const f32 highest = highest_of(fmaxf(top, score));
            const f32 before = expf(top - finite(highest)), e = expf(score - finite(highest));
            top = highest;
            weight = fmaf(weight, before, e);
#pragma unroll
            for (int n = 0; n < EACH; n++)
#pragma unroll
                for (int v = 0; v < VEC; v++)
                    sum[n * VEC + v] =
                        fmaf(sum[n * VEC + v], before, there ? e * value[n].at(v) : 0.f);
        }
#pragma unroll
        for (int m = SHARE; m < WARP; m *= 2) weight += __shfl_xor_sync(~0u, weight, m);
        const int first = fold<AT_ONCE, SHARE>(sum);
        f32* const mine = part + warp * FOUND;
#pragma unroll
        for (int k = 0; k < kept<EACH * VEC, AT_ONCE>(); k++) {
            const u32 i = first + k;
            mine[(i / VEC * SHARE + lane) * VEC + i % VEC] = sum[k];
        }
        if (tid % WARP == 0) {
            mine[SIZE] = weight;
            mine[SIZE + 1] = top;
        }
    }
    __syncthreads();

    // Four warps' at a time, so that nothing waits for each by itself; what is not there counts for nothing.
    constexpr u32 FEW = 4, QUADS = FOUND / 4;
    auto top_of = [&](u32 w) { return w < active ? part[w * FOUND + SIZE + 1] : NOTHING; };
    f32 top = NOTHING;
#pragma unroll 1
    for (u32 w0 = 0; w0 < active; w0 += FEW)
#pragma unroll
        for (u32 w = 0; w < FEW; w++) top = fmaxf(top, top_of(w0 + w));
#pragma unroll 1
    for (u32 i = tid; i < QUADS * CLUSTER; i += THREADS) {
        const u32 quad = i % QUADS;
        f32 sum[4] = {};
#pragma unroll 1
        for (u32 w0 = 0; w0 < active; w0 += FEW) {
            f32 e[FEW];
#pragma unroll
            for (u32 w = 0; w < FEW; w++) e[w] = top_of(w0 + w);
#pragma unroll
            for (u32 w = 0; w < FEW; w++) e[w] = expf(e[w] - finite(top));
#pragma unroll
            for (u32 w = 0; w < FEW; w++)
                if (w0 + w < active) {
                    const float4 v = *(const float4*)(part + (w0 + w) * FOUND + quad * 4);
                    sum[0] = fmaf(v.x, e[w], sum[0]);
                    sum[1] = fmaf(v.y, e[w], sum[1]);
                    sum[2] = fmaf(v.z, e[w], sum[2]);
                    sum[3] = fmaf(v.w, e[w], sum[3]);
                }
        }
        if (quad == QUADS - 1) {
            sum[1] = top;
            sum[2] = sum[3] = 0.f;
        }
        meeting.give(true, i / QUADS, to + quad * 4, sum);
    }
    meeting.wait();
}

// What all heads see, of what the blocks have found.
__device__ __forceinline__ void put_together(const f32* found, f32* seen) {
#pragma unroll
    for (u32 i = threadIdx.x; i < WIDTH; i += THREADS) {
        const f32* const from = found + i / SIZE * MEMBERS * FOUND;
        f32 top = NOTHING, sum = 0.f, weight = 0.f;
#pragma unroll
        for (int m = 0; m < MEMBERS; m++) top = fmaxf(top, from[m * FOUND + SIZE + 1]);
#pragma unroll
        for (int m = 0; m < MEMBERS; m++) {
            const f32* const its = from + m * FOUND;
            const f32 e = expf(its[SIZE + 1] - finite(top));
            sum = fmaf(its[i % SIZE], e, sum);
            weight = fmaf(its[SIZE], e, weight);
        }
        seen[i] = weight == 0.f ? 0.f : sum / weight;
    }
}
