/* fibers.cpp: the threads of a block as fibers (x86-64). The order of warps differs from block to
 * block, so that a missing barrier does not always go well. */
#include "emulated.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <vector>

#include "emulator.h"
#include "fibers.h"

#define STACK_BYTES (256u << 10)
#define SHARED_MAX (256u << 10)

struct copy_t { uint32_t to; const void *from; bool valid; };

struct warp_t {
    uint32_t words[2][32][6];
    uint32_t n_here, turn;
};

struct fiber_t {
    void *stack;
    uint8_t *memory;
    uint3 index;
    warp_t *warp;
    uint32_t n_meetings;
    bool is_over;
    std::vector<std::vector<copy_t>> groups; /* committed ones, then the open one */
};

uint8_t *emu_shared;
uint3 blockIdx, gridDim, blockDim;
uint3 *emu_thread_index;

static fiber_t fibers[EMU_THREADS_MAX];
static warp_t warps[EMU_THREADS_MAX / 32];
static fiber_t *self;
static void *scheduler;
static uint32_t n_alive, n_waiting, block_turn;
static const emu_kernel_t *kernel_now;
static const void *args_now;
static float halves[65536];

extern "C" void emu_switch(void **from, void *to);
__asm__(".text\n.globl emu_switch\nemu_switch:\n"
        "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
        "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
        "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");

void emu_yield() { emu_switch(&self->stack, scheduler); }

static void block_arrives_if_all() {
    if (n_alive == 0 || n_waiting < n_alive) return;
    n_waiting = 0;
    block_turn++;
}

static void fiber_main() {
    kernel_now->call(args_now);
    self->is_over = true;
    n_alive--;
    block_arrives_if_all(); /* threads that are over count as waiting */
    for (;;) emu_yield();
}

void __syncthreads() {
    const uint32_t turn = block_turn;
    n_waiting++;
    block_arrives_if_all();
    while (turn == block_turn) emu_yield();
}

uint32_t emu_lane() { return self->index.x % 32; }

const uint32_t (*emu_meet(const uint32_t *words, int n))[6] {
    warp_t *w = self->warp;
    const uint32_t side = self->n_meetings++ % 2, turn = w->turn;
    memcpy(w->words[side][emu_lane()], words, (size_t)n * 4);
    if (++w->n_here == 32) {
        w->n_here = 0;
        w->turn++;
    }
    while (turn == w->turn) emu_yield();
    return w->words[side];
}

void __syncwarp() {
    const uint32_t nothing = 0;
    (void)emu_meet(&nothing, 1);
}

void kri_copy16(uint32_t to, const void *from, bool valid) {
    self->groups.back().push_back({to, from, valid});
}
void kri_copy_commit() { self->groups.emplace_back(); }
void emu_copy_wait(uint32_t n_left) {
    while (self->groups.size() > n_left + 1u) {
        for (const copy_t &c : self->groups.front()) {
            if (c.valid) memcpy(emu_shared + c.to, c.from, 16);
            else memset(emu_shared + c.to, 0, 16);
        }
        self->groups.erase(self->groups.begin());
    }
}

float emu_half(uint16_t bits) { return halves[bits]; }

static void start_fiber(fiber_t *f, uint32_t i) {
    if (!f->memory) {
        f->memory = (uint8_t *)mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (f->memory == MAP_FAILED) abort();
    }
    void **top = (void **)(f->memory + STACK_BYTES) - 2; /* aligned as after a call */
    *top = (void *)fiber_main;
    f->stack = top - 6;
    f->index = {i, 0, 0};
    f->warp = &warps[i / 32];
    f->n_meetings = 0;
    f->is_over = false;
    f->groups.assign(1, {});
}

static void run_block(uint32_t n_threads, uint32_t first_warp) {
    emu_block_begins();
    n_alive = n_threads;
    n_waiting = 0;
    for (uint32_t i = 0; i < n_threads; i++) start_fiber(&fibers[i], i);
    for (uint32_t w = 0; w < n_threads / 32; w++) warps[w].n_here = 0;
    while (n_alive > 0) {
        for (uint32_t i = 0; i < n_threads; i++) {
            fiber_t *f = &fibers[(i + first_warp * 32) % n_threads];
            if (f->is_over) continue;
            self = f;
            emu_thread_index = &f->index;
            emu_switch(&scheduler, f->stack);
        }
    }
}

void emu_run(const emu_kernel_t *kernel, const unsigned grid[3], unsigned n_threads,
             unsigned shared_bytes, const void *args) {
    static uint8_t *shared;
    static uint32_t n_blocks;
    if (!shared) {
        shared = (uint8_t *)aligned_alloc(128, SHARED_MAX);
        for (uint32_t i = 0; i < 65536; i++) halves[i] = kri_f16_to_f32((uint16_t)i);
    }
    if (n_threads == 0 || n_threads > EMU_THREADS_MAX || n_threads % 32 ||
        shared_bytes > SHARED_MAX) {
        fprintf(stderr, "emulator: %s with %u threads\n", kernel->name, n_threads);
        abort();
    }
    emu_shared = shared;
    kernel_now = kernel;
    args_now = args;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {n_threads, 1, 1};
    for (uint32_t z = 0; z < grid[2]; z++)
        for (uint32_t y = 0; y < grid[1]; y++)
            for (uint32_t x = 0; x < grid[0]; x++) {
                blockIdx = {x, y, z};
                memset(shared, 0xff, shared_bytes); /* NaN */
                run_block(n_threads, n_blocks++ * 7u % (n_threads / 32));
            }
}
