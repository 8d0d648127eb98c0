// Sums, products, maxima, minima and predicates. Threads add up short runs first, then the runs, then each
// other, always in the same order.
#include "common/walk.cuh"
#include "reduce/lanes.cuh"

typedef Acc<T> A;

// In the order of the engine's ReduceKind.
enum Kind : u32 { SUM, MEAN, PRODUCT, MAX, MIN, ALL, ANY };

template <class N> struct WrapOf { typedef N type; };
template <> struct WrapOf<s64> { typedef u64 type; };
typedef WrapOf<A>::type W;

constexpr bool FLOATS = (A)0.5 != (A)0;

constexpr bool SIGNED = (A)-1 < (A)0;

__device__ __forceinline__ A highest() {
    return FLOATS ? (A)__int_as_float(0x7f800000) : SIGNED ? (A)0x7fffffffffffffffll : (A)-1;
}
__device__ __forceinline__ A lowest() {
    return FLOATS ? -highest() : SIGNED ? (A)(0 - highest() - 1) : (A)0;
}

// What an element counts as.
struct Plain {
    __device__ __forceinline__ A take(A a) const { return a; }
};
struct Sum : Plain {
    __device__ __forceinline__ A none() const { return 0; }
    __device__ __forceinline__ A join(A a, A b) const { return (A)((W)a + (W)b); }
};
struct Product : Plain {
    __device__ __forceinline__ A none() const { return 1; }
    __device__ __forceinline__ A join(A a, A b) const { return (A)((W)a * (W)b); }
};
// A NaN stays.
struct Max : Plain {
    __device__ __forceinline__ A none() const { return lowest(); }
    __device__ __forceinline__ A join(A a, A b) const { return a > b || a != a ? a : b; }
};
struct Min : Plain {
    __device__ __forceinline__ A none() const { return highest(); }
    __device__ __forceinline__ A join(A a, A b) const { return a < b || a != a ? a : b; }
};
// Whether none is zero, or one is not.
struct Truths {
    bool all;
    __device__ __forceinline__ A none() const { return all; }
    __device__ __forceinline__ A take(A a) const { return a != 0; }
    __device__ __forceinline__ A join(A a, A b) const { return (a < b) == all ? a : b; }
};
// Any of them, chosen as it runs: for the kernels in which arithmetic is not what takes the time.
struct Any {
    u32 kind;
    __device__ __forceinline__ A none() const {
        switch (kind) {
            case PRODUCT: return Product().none();
            case MAX: return Max().none();
            case MIN: return Min().none();
            case ALL: return 1;
            default: return Sum().none();
        }
    }
    __device__ __forceinline__ A take(A a) const { return kind >= ALL ? (A)(a != 0) : a; }
    __device__ __forceinline__ A join(A a, A b) const {
        switch (kind) {
            case PRODUCT: return Product().join(a, b);
            case MAX: return Max().join(a, b);
            case MIN: return Min().join(a, b);
            case ALL: case ANY: return Truths{kind == ALL}.join(a, b);
            default: return Sum().join(a, b);
        }
    }
};

template <class Op> struct Joined {
    Op op;
    __device__ __forceinline__ Number<A> operator()(Number<A> a, Number<A> b) const {
        return {op.join(a.at, b.at)};
    }
};

// A value of the whole reduction goes out as T, of a part of it as A.
struct Target {
    void* y;
    u64 count;    // elements behind one result, for the mean
    u32 kind;
    u32 partial;
};

__device__ __forceinline__ void write(const Target& t, u64 at, A value) {
    if (t.partial) {
        ((A*)t.y)[at] = value;
    } else if (t.kind >= ALL) {
        ((u8*)t.y)[at] = (u8)value;
    } else {
        if (FLOATS && t.kind == MEAN) value = value / (A)t.count;
        ((T*)t.y)[at] = store<T>(value);
    }
}

// x[0, n) of a row, one lane's share.
template <class Op, class S> __device__ __forceinline__ A fold(Op op, const S* x, u64 n, Lanes l) {
    constexpr int V = 16 / sizeof(S);
    A total = op.none();
    auto packs = [&](auto& p, u64, u32) {
        constexpr int K = sizeof(p) / 16;
        A part[K];
#pragma unroll
        for (int k = 0; k < K; ++k) {
            A v[V];
#pragma unroll
            for (int i = 0; i < V; ++i) v[i] = op.take(load(p[k].at[i]));
#pragma unroll
            for (int d = 1; d < V; d *= 2)
#pragma unroll
                for (int i = 0; i + d < V; i += 2 * d) v[i] = op.join(v[i], v[i + d]);
            part[k] = v[0];
        }
#pragma unroll
        for (int k = 1; k < K; ++k) part[0] = op.join(part[0], part[k]);
        total = op.join(total, part[0]);
    };
    auto one = [&](u64 i) { total = op.join(total, op.take(load(x[i]))); };
    sweep(x, n, l.lane, l.lanes, packs, one);
    return total;
}

// Rows that lie in one piece, cut into `parts` of `chunk` elements; a group of lanes takes a part.
struct Rows {
    u64 rows, n, chunk;
    Divisor parts;
    u32 lanes;
};

template <class Op, class S>
__device__ __forceinline__ void rows(
    Op op, const S* x, const Rows& r, const Target& t, Number<A>* shared) {
    Lanes l(r.lanes);
    u64 at = (u64)blockIdx.x * l.groups + l.group;
    u64 row = divide(at, r.parts);
    A value = op.none();
    if (row < r.rows) {
        u64 from = (at - row * r.parts.by) * r.chunk;
        u64 n = from >= r.n ? 0 : r.n - from < r.chunk ? r.n - from : r.chunk;
        value = fold(op, x + row * r.n + from, n, l);
    }
    value = join_lanes(l, Number<A>{value}, shared, Joined<Op>{op}).at;
    if (row < r.rows && l.lane == 0) write(t, at, value);
}

// Reduced axes outside of kept ones.
template <class Op, class S>
__device__ __forceinline__ void columns(
    Op op, const S* x, const Columns& c, const Target& t, A* shared) {
    Column l(c);
    u64 from = l.part * c.chunk, to = from + c.chunk < c.n ? from + c.chunk : c.n;
    A total = op.none();
    if (l.column < c.inner) {
        const S* p = x + l.outer * c.n * c.inner + l.column;
        u64 k = from + l.ty;
        for (; 7 * (u64)l.down + k < to; k += 8 * (u64)l.down) {
            A v[8];
#pragma unroll
            for (int u = 0; u < 8; ++u) v[u] = op.take(load(p[(k + u * l.down) * c.inner]));
#pragma unroll
            for (int d = 1; d < 8; d *= 2)
#pragma unroll
                for (int u = 0; u < 8; u += 2 * d) v[u] = op.join(v[u], v[u + d]);
            total = op.join(total, v[0]);
        }
        for (; k < to; k += l.down) total = op.join(total, op.take(load(p[k * c.inner])));
    }
    total = join_column(l, total, shared, [op](A a, A b) { return op.join(a, b); });
    if (l.ty == 0 && l.column < c.inner)
        write(t, (l.outer * c.parts.by + l.part) * c.inner + l.column, total);
}

// Any other mix of axes: a block an output, walking the reduced axes.
__device__ __forceinline__ void strided(
    Any op, const T* x, const Walk& kept, const Walk& reduced, const Target& t) {
    __shared__ Number<A> shared[MAX_THREADS / 32];
    Lanes l(blockDim.x);
    s64 base[1];
    locate(kept, blockIdx.x, base);
    A total = op.none();
    u64 i = l.lane;
    while (i < reduced.n) {
        A part = op.none();
        for (u32 u = 0; u < 16 && i < reduced.n; ++u, i += l.lanes) {
            s64 at[1];
            locate(reduced, i, at);
            part = op.join(part, op.take(load(x[base[0] + at[0]])));
        }
        total = op.join(total, part);
    }
    total = join_lanes(l, Number<A>{total}, shared, Joined<Any>{op}).at;
    if (l.lane == 0) write(t, blockIdx.x, total);
}

extern "C" __global__ void __launch_bounds__(512, 2) reduce_rows(
    const T* x, const __grid_constant__ Rows r, const __grid_constant__ Target t) {
    __shared__ Number<A> shared[MAX_THREADS / 32];
    switch (t.kind) {
        case MAX: rows(Max(), x, r, t, shared); break;
        case MIN: rows(Min(), x, r, t, shared); break;
        case PRODUCT: rows(Product(), x, r, t, shared); break;
        case ALL: case ANY: rows(Truths{t.kind == ALL}, x, r, t, shared); break;
        default: rows(Sum(), x, r, t, shared); break;
    }
}

extern "C" __global__ void reduce_columns(
    const T* x, const __grid_constant__ Columns c, const __grid_constant__ Target t) {
    __shared__ A shared[MAX_THREADS];
    switch (t.kind) {
        case MAX: columns(Max(), x, c, t, shared); break;
        case MIN: columns(Min(), x, c, t, shared); break;
        case PRODUCT: columns(Product(), x, c, t, shared); break;
        case ALL: case ANY: columns(Truths{t.kind == ALL}, x, c, t, shared); break;
        default: columns(Sum(), x, c, t, shared); break;
    }
}

// The second passes: what the first left of each row or column.
extern "C" __global__ void __launch_bounds__(512, 2) join_rows(
    const A* x, const __grid_constant__ Rows r, const __grid_constant__ Target t) {
    __shared__ Number<A> shared[MAX_THREADS / 32];
    rows(Any{t.kind}, x, r, t, shared);
}

extern "C" __global__ void join_columns(
    const A* x, const __grid_constant__ Columns c, const __grid_constant__ Target t) {
    __shared__ A shared[MAX_THREADS];
    columns(Any{t.kind}, x, c, t, shared);
}

extern "C" __global__ void reduce_strided(
    const T* x, const __grid_constant__ Walk kept, const __grid_constant__ Walk reduced,
    const __grid_constant__ Target t) {
    strided(Any{t.kind}, x, kept, reduced, t);
}
