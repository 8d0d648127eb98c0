// One entry for all functions of one tensor: the kind is the same for every thread, so the switch
// costs a branch, and there is one module a type instead of one a function.
#include "common/full.cuh"
#include "common/short.cuh"
#include "common/walk.cuh"
#include "elementwise/math.cuh"

// "x < 0" is as meant where x has no sign.
#pragma nv_diag_suppress 186

// In the order of the engine's UnaryKind.
enum Kind : u32 {
    NEGATE, ABS, SIGN, EXP, EXPM1, LOG, LOG1P, SQRT, RSQRT, RECIPROCAL, SIN, COS, TANH, ERF, FLOOR,
    CEIL, ROUND, SIGMOID, RELU, SILU, GELU, GELU_TANH, SOFTPLUS, TAN, ASIN, ACOS, ATAN, SINH, COSH,
    ASINH, ACOSH, ATANH, CBRT, ERFC, ERF_INV, BITWISE_NOT, POPULATION_COUNT, COUNT_LEADING_ZEROS,
    LOGICAL_NOT, IS_NAN, IS_INFINITY
};

typedef Math<T> C;
constexpr int V = 16 / sizeof(T);
#define INFINITE __int_as_float(0x7f800000)

// By the exponential that is at most 1, so that no digit is lost to an overflow.
template <class F> __device__ __forceinline__ F sigmoid(F x) {
    F e = exp(-fabs(x));
    return (x < 0 ? e : (F)1) / ((F)1 + e);
}
// By erfc, which keeps its digits where 1 + erf would lose them.
template <class F> __device__ __forceinline__ F gelu(F x) {
    return (F)0.5 * x * erfc(x * (F)-0.70710678118654752440);
}
// (1 + tanh u) / 2 is the sigmoid of 2u.
template <class F> __device__ __forceinline__ F gelu_tanh_turn(F x) {
    return (F)2 * (F)0.79788456080286535588 * (x + (F)0.044715 * x * x * x);
}

template <class S> struct IsHalf { static const bool value = false; };
template <> struct IsHalf<f16> { static const bool value = true; };

// What networks are made of, inlined into the loop over a pack: a call for each element would take
// longer than the memory does. Types of 16 bits take the fast exponential; it is good to their digits.
template <bool SHORT> struct Hot {
    static __device__ __forceinline__ f32 exponential(f32 x) { return expf(x); }
    static __device__ __forceinline__ f32 tangent(f32 x) { return tanhf(x); }
    static __device__ __forceinline__ f32 logistic(f32 x) { return full_sigmoid(x); }
    static __device__ __forceinline__ f32 normal(f32 x) { return full_gelu(x); }
    static __device__ __forceinline__ f32 sine(f32 x) { return sinf(x); }
    static __device__ __forceinline__ f32 cosine(f32 x) { return cosf(x); }
    static __device__ __forceinline__ bool takes_turns(const f32*) { return true; }
};
template <> struct Hot<true> {
    static __device__ __forceinline__ f32 exponential(f32 x) { return __expf(x); }
    static __device__ __forceinline__ f32 tangent(f32 x) { return short_tanh(x); }
    static __device__ __forceinline__ f32 logistic(f32 x) {
        f32 e = __expf(-fabsf(x));
        return __fdividef(x < 0 ? e : 1.f, 1.f + e);
    }
    static __device__ __forceinline__ f32 normal(f32 x) { return short_gelu(x); }
    static __device__ __forceinline__ f32 sine(f32 x) { return short_sine<false>(x); }
    static __device__ __forceinline__ f32 cosine(f32 x) { return short_sine<true>(x); }
    // Whether they take all numbers of a pack. What f16 has beyond is infinite, which gives NaN.
    static __device__ __forceinline__ bool takes_turns(const f32* x) {
        if (IsHalf<T>::value) return true;
        f32 most = 0.f;
#pragma unroll
        for (int v = 0; v < V; ++v) most = fmaxf(most, fabsf(x[v]));
        return most <= SHORT_TURNS;
    }
};

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
        case GELU: return gelu(x);
        case GELU_TANH: return x * sigmoid(gelu_tanh_turn(x));
        case SOFTPLUS: return (x > 0 ? x : (F)0) + log1p(exp(-fabs(x)));
        case TAN: return tan(x);
        case ASIN: return asin(x);
        case ACOS: return acos(x);
        case ATAN: return atan(x);
        case SINH: return sinh(x);
        case COSH: return cosh(x);
        case ASINH: return asinh(x);
        case ACOSH: return acosh(x);
        case ATANH: return atanh(x);
        case CBRT: return cbrt(x);
        case ERFC: return erfc(x);
        case ERF_INV: return erfinv(x);
    }
    return x;
}

// The bits of T alone: arithmetic is in a longer type for the short ones.
template <class N> __device__ __forceinline__ N bits(u32 kind, N x) {
    constexpr int W = 8 * sizeof(T);
    if (kind == BITWISE_NOT) return ~x;
    u64 pattern = W == 64 ? (u64)x : (u64)x & ((1ull << (W % 64)) - 1);
    return (N)(kind == POPULATION_COUNT ? __popcll(pattern) : __clzll((s64)pattern) - (64 - W));
}

template <class N> __device__ __forceinline__ bool test(u32 kind, N x) {
    if (kind == LOGICAL_NOT) return x == 0;
    if constexpr (IsFloat<N>::value) return kind == IS_NAN ? x != x : fabs(x) == (N)INFINITE;
    return false;
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
    if constexpr (sizeof(N) == 4 && IsFloat<N>::value) {
        typedef Hot<sizeof(T) == 2> H;
        switch (kind) {
            case EXP: each(x, [](N x) { return H::exponential(x); }); return;
            case TANH: each(x, [](N x) { return H::tangent(x); }); return;
            case SIGMOID: each(x, [](N x) { return H::logistic(x); }); return;
            case SILU: each(x, [](N x) { return x * H::logistic(x); }); return;
            case GELU: each(x, [](N x) { return H::normal(x); }); return;
            case GELU_TANH:
                each(x, [](N x) { return x * H::logistic(gelu_tanh_turn(x)); });
                return;
            case SQRT: each(x, [](N x) { return sqrtf(x); }); return;
            case RSQRT: each(x, [](N x) { return rsqrtf(x); }); return;
            case RECIPROCAL: each(x, [](N x) { return 1.f / x; }); return;
            case LOG: each(x, [](N x) { return logf(x); }); return;
            case SIN:
                if (!H::takes_turns(x)) break;
                each(x, [](N x) { return H::sine(x); });
                return;
            case COS:
                if (!H::takes_turns(x)) break;
                each(x, [](N x) { return H::cosine(x); });
                return;
            case ERF: each(x, [](N x) { return erff(x); }); return;
        }
    }
    if constexpr (IsFloat<N>::value) {
        switch (kind) {
            case FLOOR: each(x, [](N x) { return floor(x); }); return;
            case CEIL: each(x, [](N x) { return ceil(x); }); return;
            case ROUND: each(x, [](N x) { return round(x); }); return;
            default: each(x, [kind](N x) { return function<N>(kind, x); }); return;
        }
    } else {
        each(x, [kind](N x) { return bits<N>(kind, x); });
    }
}

extern "C" __global__ void unary(const T* x, void* y, u64 n, u32 kind) {
    u64 at = thread_index() * V;
    if (at >= n) return;
    Pack<T, V> in = fetch<T, V>(x + at, false, n - at);
    if (kind >= LOGICAL_NOT) {
        Pack<u8, V> out;
#pragma unroll
        for (int v = 0; v < V; ++v) out.at[v] = test<C>(kind, get(in.at[v]));
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
