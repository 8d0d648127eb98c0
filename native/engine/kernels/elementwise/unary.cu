// One entry for all functions of one tensor: the kind is the same for every thread, so the switch
// costs a branch, and there is one module a type instead of one a function.
#include "common/walk.cuh"
#include "elementwise/math.cuh"

// "x < 0" is as meant where x has no sign.
#pragma nv_diag_suppress 186

// In the order of the engine's UnaryKind.
enum Kind : u32 {
    NEGATE, ABS, SIGN, EXP, EXPM1, LOG, LOG1P, SQRT, RSQRT, RECIPROCAL, SIN, COS, TANH, ERF, FLOOR,
    CEIL, ROUND, SIGMOID, RELU, SILU, GELU, GELU_TANH, SOFTPLUS, LOGICAL_NOT
};

typedef Math<T> C;
constexpr int V = 16 / sizeof(T);

// By the exponential that is at most 1, so that no digit is lost to an overflow.
template <class F> __device__ __forceinline__ F sigmoid(F x) {
    F e = exp(-fabs(x));
    return (x < 0 ? e : (F)1) / ((F)1 + e);
}

// Not inlined: one copy of the long functions instead of one for each element of a pack.
template <class F> __device__ __noinline__ F function(u32 kind, F x) {
    switch (kind) {
        case EXP: return exp(x);
        case EXPM1: return expm1(x);
        case LOG: return log(x);
        case LOG1P: return log1p(x);
        case SQRT: return sqrt(x);
        case RSQRT: return rsqrt(x);
        case RECIPROCAL: return (F)1 / x;
        case SIN: return sin(x);
        case COS: return cos(x);
        case TANH: return tanh(x);
        case ERF: return erf(x);
        case SIGMOID: return sigmoid(x);
        case SILU: return x * sigmoid(x);
        // By erfc, which keeps its digits where 1 + erf would lose them.
        case GELU: return (F)0.5 * x * erfc(x * (F)-0.70710678118654752440);
        // (1 + tanh u) / 2 is the sigmoid of 2u.
        case GELU_TANH: {
            F u = (F)0.79788456080286535588 * (x + (F)0.044715 * x * x * x);
            return x * sigmoid((F)2 * u);
        }
        case SOFTPLUS: return (x > 0 ? x : (F)0) + log1p(exp(-fabs(x)));
    }
    return x;
}

template <class N, class F> __device__ __forceinline__ void each(N (&x)[V], F f) {
#pragma unroll
    for (int v = 0; v < V; ++v) x[v] = f(x[v]);
}

// N is C; a template, so that no float function is asked for integers.
template <class N> __device__ __forceinline__ void apply(u32 kind, N (&x)[V]) {
    switch (kind) {
        case NEGATE:
            if constexpr (IsFloat<N>::value) each(x, [](N x) { return -x; });
            else each(x, [](N x) { return (N)(0 - (Wrap<N>)x); });
            return;
        case ABS:
            if constexpr (IsFloat<N>::value) each(x, [](N x) { return (N)fabs(x); });
            else each(x, [](N x) { return x < 0 ? (N)(0 - (Wrap<N>)x) : x; });
            return;
        // Zero keeps its sign and NaN stays NaN.
        case SIGN: each(x, [](N x) { return x > 0 ? (N)1 : x < 0 ? (N)-1 : x; }); return;
        case RELU: each(x, [](N x) { return x < 0 ? (N)0 : x; }); return;
    }
    if constexpr (IsFloat<N>::value) {
        switch (kind) {
            case FLOOR: each(x, [](N x) { return floor(x); }); return;
            case CEIL: each(x, [](N x) { return ceil(x); }); return;
            case ROUND: each(x, [](N x) { return round(x); }); return;
            default: each(x, [kind](N x) { return function<N>(kind, x); }); return;
        }
    }
}

extern "C" __global__ void unary(const T* x, void* y, u64 n, u32 kind) {
    u64 at = thread_index() * V;
    if (at >= n) return;
    Pack<T, V> in = fetch<T, V>(x + at, false, n - at);
    if (kind == LOGICAL_NOT) {
        Pack<u8, V> out;
#pragma unroll
        for (int v = 0; v < V; ++v) out.at[v] = get(in.at[v]) == 0;
        put<u8, V>((u8*)y + at, out, n - at);
        return;
    }
    C c[V];
#pragma unroll
    for (int v = 0; v < V; ++v) c[v] = get(in.at[v]);
    apply(kind, c);
    Pack<T, V> out;
#pragma unroll
    for (int v = 0; v < V; ++v) out.at[v] = round_to<T>(c[v]);
    put<T, V>((T*)y + at, out, n - at);
}
