// Holds up what is queued behind it until the host says go: a word of its memory.
//
// Small inputs come with the word. Each 4 bytes of them lie beside a copy of it in one 8-byte word, so that
// whoever sees that it is this gate's has the bytes as well: one trip over the bus, where a kernel that
// read them after the word would need a second one, and every block of it its own. The first warp sees to
// the word, the others to the inputs.
#include "common/early.cuh"
#include "common/warp.cuh"

// `words` are three of pinned memory, a cache line each: the host writes the first; the second says
// that this gate's time is up, the third what became of it then. `passes` counts the gates, and says which
// was the last that closed. `count` words of `mail` go `to` the inputs' place.
extern "C" __global__ void gate(volatile u32* words, volatile u32* passes, u64 nanoseconds,
                                const volatile u64* mail, u32* to, int count) {
    constexpr int LINE = 16;
    __shared__ u32 number;
    // What comes first asks for its weights meanwhile.
    let_next_begin();
    if (threadIdx.x == 0) {
        const u32 pass = passes[0] + 1;
        passes[0] = pass;
        number = pass & (~0u >> 2);
    }
    __syncthreads();
    const u32 ticket = number, go = ticket * 2 + 1, closed = ticket * 2;
    if (threadIdx.x >= WARP) {
        for (int i = threadIdx.x - WARP; i < count; i += blockDim.x - WARP) {
            u64 found;
            do found = mail[i];
            while ((u32)(found >> 32) != go && passes[1] != ticket);
            if ((u32)(found >> 32) == go) to[i] = (u32)found;
        }
        return;
    }
    if (threadIdx.x > 0) return;
    u64 start, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
    do {
        const u32 said = words[0];
        if (said == go) {
            // What the host wrote before its word is what the kernels behind read.
            __threadfence_system();
            return;
        }
        if (said == closed) {
            passes[1] = ticket;
            return;
        }
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    } while (now - start < nanoseconds);
    // The host may have said go just now. It looks at the second word after it wrote the first, and
    // here it is the other way round: at least one of the two sees the other's.
    words[LINE] = ticket;
    __threadfence_system();
    const u32 said = words[0];
    __threadfence_system();
    if (said != go) passes[1] = ticket;
    words[2 * LINE] = said == go ? go : closed;
}
