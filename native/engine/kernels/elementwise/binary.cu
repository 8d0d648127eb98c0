// Functions of two tensors, broadcast. As in unary.cu the kind is a switch that all threads take
// the same way.
#include "common/walk.cuh"
#include "elementwise/math.cuh"

// "x < 0" is as meant where x has no sign.
#pragma nv_diag_suppress 186

// In the order of the engine's BinaryKind.
enum Kind : u32 {
    ADD, SUBTRACT, MULTIPLY, DIVIDE, QUOTIENT, REMAINDER, MAX, MIN, POW, ATAN2, BITWISE_AND,
    BITWISE_OR, BITWISE_XOR, LEFT_SHIFT, RIGHT_SHIFT, EQUAL, NOT_EQUAL, LESS, LESS_EQUAL, GREATER,
    GREATER_EQUAL, LOGICAL_AND, LOGICAL_OR, LOGICAL_XOR
};

typedef Math<T> C;

template <class I> __device__ __forceinline__ I power(I base, I exponent) {
    typedef Wrap<I> W;
    if (exponent < 0) {
        if (base == 1) return 1;
        if (base == (I)-1) return exponent & 1 ? (I)-1 : 1;
        return 0;
    }
    W result = 1, square = (W)base;
    for (W e = (W)exponent; e; e >>= 1) {
        if (e & 1) result *= square;
        square *= square;
    }
    return (I)result;
}

// Not inlined: one copy of the long functions instead of one for each element of a pack.
template <class N> __device__ __noinline__ N function(u32 kind, N a, N b) {
    if constexpr (IsFloat<N>::value) {
        if (kind == DIVIDE) return a / b;
        if (kind == REMAINDER) return fmod(a, b);
        if (kind == ATAN2) return atan2(a, b);
        return pow(a, b);
    } else {
        if (kind == POW) return power(a, b);
        if (b == 0) return 0;
        // The smallest number by -1 wraps.
        if (IsSigned<N>::value && b == (N)-1) return kind == QUOTIENT ? (N)(0 - (Wrap<N>)a) : 0;
        return kind == QUOTIENT ? a / b : a % b;
    }
}

// A count that is no bit of T shifts everything out: what is left is the sign.
template <class N> __device__ __forceinline__ N shift(u32 kind, N a, N count) {
    constexpr N W = 8 * sizeof(T);
    bool fits = count >= 0 && count < W;
    if (kind == LEFT_SHIFT) return fits ? (N)((Wrap<N>)a << count) : (N)0;
    if (IsSigned<N>::value) return a >> (fits ? count : W - 1);
    return fits ? a >> count : (N)0;
}

template <class N> __device__ __forceinline__ N bitwise(u32 kind, N a, N b) {
    switch (kind) {
        case BITWISE_AND: return a & b;
        case BITWISE_OR: return a | b;
        case BITWISE_XOR: return a ^ b;
        default: return shift(kind, a, b);
    }
}

template <int V, class F>
__device__ __forceinline__ void each(C (&a)[V], const C (&b)[V], F f) {
#pragma unroll
    for (int v = 0; v < V; ++v) a[v] = f(a[v], b[v]);
}

template <int V> __device__ __forceinline__ void apply(u32 kind, C (&a)[V], const C (&b)[V]) {
    typedef Wrap<C> W;
    if constexpr (!IsFloat<C>::value) {
        if (kind >= BITWISE_AND) {
            each<V>(a, b, [kind](C a, C b) { return bitwise<C>(kind, a, b); });
            return;
        }
    }
    switch (kind) {
        case ADD: each<V>(a, b, [](C a, C b) { return (C)((W)a + (W)b); }); return;
        case SUBTRACT: each<V>(a, b, [](C a, C b) { return (C)((W)a - (W)b); }); return;
        case MULTIPLY: each<V>(a, b, [](C a, C b) { return (C)((W)a * (W)b); }); return;
        // A NaN on either side is the result.
        case MAX: each<V>(a, b, [](C a, C b) { return a > b || a != a ? a : b; }); return;
        case MIN: each<V>(a, b, [](C a, C b) { return a < b || a != a ? a : b; }); return;
        default: each<V>(a, b, [kind](C a, C b) { return function<C>(kind, a, b); }); return;
    }
}

__device__ __forceinline__ bool holds(u32 kind, C a, C b) {
    switch (kind) {
        case EQUAL: return a == b;
        case NOT_EQUAL: return a != b;
        case LESS: return a < b;
        case LESS_EQUAL: return a <= b;
        case GREATER: return a > b;
        case GREATER_EQUAL: return a >= b;
        case LOGICAL_AND: return a != 0 && b != 0;
        case LOGICAL_OR: return a != 0 || b != 0;
        default: return (a != 0) != (b != 0);
    }
}

template <int V>
__device__ __forceinline__ void run(const T* a, const T* b, void* y, const Walk& w, u32 kind) {
    u64 i = thread_index();
    u64 at = i * V;
    if (at >= w.n) return;
    s64 from[2];
    locate(w, i, from);
    Pack<T, V> pa = fetch<T, V>(a + from[0], w.spread & 1, w.n - at);
    Pack<T, V> pb = fetch<T, V>(b + from[1], w.spread & 2, w.n - at);
    C ca[V], cb[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
        ca[v] = get(pa.at[v]);
        cb[v] = get(pb.at[v]);
    }
    if (kind >= EQUAL) {
        Pack<u8, V> out;
#pragma unroll
        for (int v = 0; v < V; ++v) out.at[v] = holds(kind, ca[v], cb[v]);
        put<u8, V>((u8*)y + at, out, w.n - at);
    } else {
        apply<V>(kind, ca, cb);
        Pack<T, V> out;
#pragma unroll
        for (int v = 0; v < V; ++v) out.at[v] = round_to<T>(ca[v]);
        put<T, V>((T*)y + at, out, w.n - at);
    }
}

extern "C" __global__ void binary_packs(
    const T* a, const T* b, void* y, const __grid_constant__ Walk w, u32 kind) {
    run<16 / sizeof(T)>(a, b, y, w, kind);
}

extern "C" __global__ void binary_elements(
    const T* a, const T* b, void* y, const __grid_constant__ Walk w, u32 kind) {
    run<1>(a, b, y, w, kind);
}
