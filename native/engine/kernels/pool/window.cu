// A window that goes over x: what its elements come to, and which of them is the greatest.
#include "common/walk.cuh"
#include "order/fold.cuh"

typedef Acc<T> A;

// One axis. Elements from `begin` to `end` take part.
struct Along {
    Divisor length;   // of x
    Divisor places;   // of the window
    Divisor window;
    s64 stride, dilation, low, begin, end;
    s64 pitch;        // of x, in elements
};

struct Frame {
    u64 n;      // places
    u64 steps;  // elements of the window
    u64 size;   // elements of x
    u32 rank;
    Along axis[8];
};

// Where the window stands on each axis; R axes at most.
template <int R> struct Stand {
    s64 at[R];
    __device__ __forceinline__ Stand(const Frame& f, u64 place) {
#pragma unroll
        for (int a = R - 1; a >= 0; --a) {
            if (a >= f.rank) continue;
            u64 q = divide(place, f.axis[a].places);
            at[a] = (s64)(place - q * f.axis[a].places.by) * f.axis[a].stride - f.axis[a].low;
            place = q;
        }
    }
    // Where element `step` of the window lies in x; -1 where it takes no part.
    __device__ __forceinline__ s64 element(const Frame& f, u64 step) const {
        s64 to = 0;
        bool inside = true;
#pragma unroll
        for (int a = R - 1; a >= 0; --a) {
            if (a >= f.rank) continue;
            const Along& axis = f.axis[a];
            u64 q = divide(step, axis.window);
            s64 i = at[a] + (s64)(step - q * axis.window.by) * axis.dilation;
            step = q;
            inside &= axis.begin <= i && i < axis.end;
            to += i * axis.pitch;
        }
        return inside ? to : -1;
    }
};

template <int R> __device__ __forceinline__ void fold(const T* x, T* y, const Frame& f, u32 kind) {
    u64 place = thread_index();
    if (place >= f.n) return;
    Folding<A> op{kind};
    Stand<R> stand(f, place);
    A total = op.none();
    for (u64 step = 0; step < f.steps; ++step) {
        s64 at = stand.element(f, step);
        if (at >= 0) total = op.join(total, load(x[at]));
    }
    y[place] = store<T>(total);
}

extern "C" __global__ void window_reduce(
    const T* x, T* y, const __grid_constant__ Frame f, u32 kind) {
    if (f.rank <= 4) fold<4>(x, y, f, kind);
    else fold<8>(x, y, f, kind);
}

// The last of the greatest elements of the window, or of the least; what is around x is `init`.
template <int R>
__device__ __forceinline__ void choose(
    const T* x, const T* init, s64* chosen, const Frame& f, u32 min) {
    u64 place = thread_index();
    if (place >= f.n) return;
    Stand<R> stand(f, place);
    A around = load(*init), best = around;
    s64 winner = -1;
    for (u64 step = 0; step < f.steps; ++step) {
        s64 at = stand.element(f, step);
        A value = at >= 0 ? load(x[at]) : around;
        if (step == 0 || (min ? value <= best : value >= best)) best = value, winner = at;
    }
    chosen[place] = winner;
}

extern "C" __global__ void window_choose(
    const T* x, const T* init, s64* chosen, const __grid_constant__ Frame f, u32 min) {
    if (f.rank <= 4) choose<4>(x, init, chosen, f, min);
    else choose<8>(x, init, chosen, f, min);
}

// Each element of x looks at the windows that cover it, in their order.
extern "C" __global__ void window_scatter(
    const T* source, const T* init, const s64* chosen, T* y, const __grid_constant__ Frame f) {
    u64 i = thread_index();
    if (i >= f.size) return;
    u32 count[8];
    u64 covering = 1, rest = i;
    // The first of the windows, and how many along each axis.
#pragma unroll 1
    for (int a = (int)f.rank - 1; a >= 0; --a) {
        const Along& axis = f.axis[a];
        u64 q = divide(rest, axis.length);
        s64 end = (s64)(rest - q * axis.length.by) + axis.low;
        rest = q;
        s64 start = end - (s64)axis.window.by + 1;
        s64 low = start <= 0 ? 0 : (start + axis.stride - 1) / axis.stride;
        s64 high = end < 0 ? -1 : end / axis.stride;
        if (high >= (s64)axis.places.by) high = (s64)axis.places.by - 1;
        count[a] = high < low ? 0 : (u32)(high - low + 1);
        covering *= count[a];
    }
    rest = i;
    u64 pitch = 1;
    s64 corner = 0;
#pragma unroll 1
    for (int a = (int)f.rank - 1; a >= 0; --a) {
        const Along& axis = f.axis[a];
        u64 q = divide(rest, axis.length);
        s64 start = (s64)(rest - q * axis.length.by) + axis.low - (s64)axis.window.by + 1;
        rest = q;
        corner += (start <= 0 ? 0 : (start + axis.stride - 1) / axis.stride) * (s64)pitch;
        pitch *= axis.places.by;
    }
    Folding<A> op{SUM};
    A total = load(*init);
    for (u64 k = 0; k < covering; ++k) {
        u64 left = k, step = 1;
        s64 place = corner;
#pragma unroll 1
        for (int a = (int)f.rank - 1; a >= 0; --a) {
            place += (s64)(left % count[a] * step);
            left /= count[a];
            step *= f.axis[a].places.by;
        }
        if (chosen[place] == (s64)i) total = op.join(total, load(source[place]));
    }
    y[i] = store<T>(total);
}
