// Holds up what is queued behind it until the host says go: a word of its memory.
#include "common/early.cuh"
#include "common/types.cuh"

// `words` are three of pinned memory, a cache line each: the host writes the first; the second says
// that this gate's time is up, the third what became of it then. `passes` counts the gates.
extern "C" __global__ void gate(volatile u32* words, u32* passes, u64 nanoseconds) {
    constexpr int LINE = 16;
    // What comes first asks for its weights meanwhile.
    let_next_begin();
    const u32 ticket = ++*passes & (~0u >> 2);
    const u32 go = ticket * 2 + 1, closed = ticket * 2;
    u64 start, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
    do {
        const u32 said = words[0];
        if (said == go) {
            // What the host wrote before its word is what the kernels behind read.
            __threadfence_system();
            return;
        }
        if (said == closed) return;
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    } while (now - start < nanoseconds);
    // The host may have said go just now. It looks at the second word after it wrote the first, and
    // here it is the other way round: at least one of the two sees the other's.
    words[LINE] = ticket;
    __threadfence_system();
    const u32 said = words[0];
    __threadfence_system();
    words[2 * LINE] = said == go ? go : closed;
}
