/* hopper.cpp: see emulated_hopper.h. */
#include "emulated_hopper.h"

#include <stdio.h>
#include <stdlib.h>
#include <vector>

#include "fibers.h"

#define NAMED 16u
#define TURNS_MAX (1u << 24) /* of a wait that never ends */

struct barrier_t { /* in shared memory */
    uint8_t n_arrivals, n_left, phase, reserved;
    int32_t n_bytes; /* to come */
};
static_assert(sizeof(barrier_t) == 8, "as the device's");

struct box_t {
    uint32_t to, barrier, at[4];
    emu_map_t map;
};

static std::vector<box_t> boxes;
static struct { uint32_t n_here, turn; } named[NAMED];

void emu_block_begins() {
    boxes.clear();
    memset(named, 0, sizeof named);
}

static void wait_a_turn(uint32_t *n_turns) {
    if (++*n_turns == TURNS_MAX) {
        fprintf(stderr, "emulator: a thread waits for ever\n");
        abort();
    }
    emu_yield();
}

/* ---- barriers and copies --------------------------------------------------------------------- */

static barrier_t *barrier_at(uint32_t at) { return (barrier_t *)(emu_shared + at); }

static void end_phase_if_over(barrier_t *b) {
    if (b->n_left > 0 || b->n_bytes != 0) return;
    b->phase ^= 1;
    b->n_left = b->n_arrivals;
}

void kri_barrier_init(uint32_t at, uint32_t n_arrivals) {
    *barrier_at(at) = {(uint8_t)n_arrivals, (uint8_t)n_arrivals, 0, 0, 0};
}

void kri_barrier_expect(uint32_t at, uint32_t n_bytes) {
    barrier_t *b = barrier_at(at);
    b->n_bytes += (int32_t)n_bytes;
    b->n_left--;
    end_phase_if_over(b);
}

static uint32_t swizzled(uint32_t at) { return at ^ (at >> 7 & 7) << 4; }

static void copy(const box_t &box) {
    const emu_map_t *m = &box.map;
    for (uint32_t row = 0; row < 16; row++)
        for (uint32_t i = 0; i < 64; i++) {
            const uint64_t at[4] = {box.at[0] + i, box.at[1] + row, box.at[2], box.at[3]};
            const uint8_t *from = m->address + at[0] * 2;
            bool is_inside = at[0] < m->dims[0];
            for (int d = 1; d < 4; d++) {
                is_inside &= at[d] < m->dims[d];
                from += at[d] * m->strides[d - 1];
            }
            uint16_t value = 0;
            if (is_inside) memcpy(&value, from, 2);
            memcpy(emu_shared + swizzled(box.to + row * 128 + i * 2), &value, 2);
        }
}

void kri_copy_box(uint32_t to, const void *map, uint32_t x, uint32_t y, uint32_t z, uint32_t w,
                  uint32_t barrier) {
    boxes.push_back({to, barrier, {x, y, z, w}, *(const emu_map_t *)map});
}

static void copy_all_of(uint32_t barrier) {
    for (size_t i = 0; i < boxes.size();) {
        if (boxes[i].barrier != barrier) {
            i++;
            continue;
        }
        copy(boxes[i]);
        boxes[i] = boxes.back();
        boxes.pop_back();
        barrier_at(barrier)->n_bytes -= 2048;
        end_phase_if_over(barrier_at(barrier));
    }
}

void kri_barrier_wait(uint32_t at, uint32_t parity) {
    uint32_t n_turns = 0;
    for (;;) {
        copy_all_of(at);
        if (barrier_at(at)->phase != parity) return;
        wait_a_turn(&n_turns);
    }
}

/* ---- named barriers -------------------------------------------------------------------------- */

void kri_named_arrive(uint32_t id, uint32_t n_threads) {
    if (++named[id].n_here < n_threads) return;
    named[id].n_here = 0;
    named[id].turn++;
}

void kri_named_wait(uint32_t id, uint32_t n_threads) {
    const uint32_t turn = named[id].turn;
    uint32_t n_turns = 0;
    kri_named_arrive(id, n_threads);
    while (named[id].turn == turn) wait_a_turn(&n_turns);
}

/* ---- products -------------------------------------------------------------------------------- */

typedef std::vector<std::vector<emu_product_t>> groups_t;

static groups_t &own_groups() { /* committed ones, then the open one */
    static groups_t groups[EMU_THREADS_MAX];
    groups_t &own = groups[threadIdx.x];
    if (own.empty()) own.emplace_back();
    return own;
}

static float half_at(uint32_t at) {
    uint16_t bits;
    memcpy(&bits, emu_shared + swizzled(at), 2);
    return emu_half(bits);
}

struct matrix_t { uint32_t at, columns, rows; };
static matrix_t matrix_of(uint64_t d) {
    return {(uint32_t)(d & 0xffff) << 4, (uint32_t)(d >> 16 & 0xffff) << 4,
            (uint32_t)(d >> 32 & 0xffff) << 4};
}
/* Of a matrix in rows, and of one that is used transposed. */
static float item(const matrix_t &m, uint32_t row, uint32_t k) {
    return half_at(m.at + row / 8 * m.rows + row % 8 * 128 + k * 2);
}
static float item_transposed(const matrix_t &m, uint32_t column, uint32_t k) {
    return half_at(m.at + column / 64 * m.columns + k / 8 * m.rows + k % 8 * 128 +
                   column % 64 * 2);
}

/* This thread's two rows of a. */
static void own_rows(const emu_product_t &p, float (&a)[2][16]) {
    const uint32_t lane = emu_lane(), row = threadIdx.x % 128 / 32 * 16 + lane / 4;
    if (!p.rows) {
        for (uint32_t k = 0; k < 16; k++)
            for (uint32_t r = 0; r < 2; r++) a[r][k] = item(matrix_of(p.a), row + r * 8, k);
        return;
    }
    const uint32_t(*all)[6] = emu_meet(p.rows, 4);
    for (uint32_t k = 0; k < 16; k++)
        for (uint32_t r = 0; r < 2; r++) {
            const uint32_t word = all[lane / 4 * 4 + k % 8 / 2][r + k / 8 * 2];
            a[r][k] = emu_half((uint16_t)(word >> k % 2 * 16));
        }
}

static void compute(const emu_product_t &p) {
    const matrix_t b = matrix_of(p.b);
    float a[2][16];
    own_rows(p, a);
    for (uint32_t i = 0; i < (uint32_t)p.n / 8; i++)
        for (uint32_t e = 0; e < 2; e++) {
            const uint32_t column = i * 8 + emu_lane() % 4 * 2 + e;
            float sums[2] = {0, 0};
            for (uint32_t k = 0; k < 16; k++) {
                const float x = p.rows ? item_transposed(b, column, k) : item(b, column, k);
                sums[0] += a[0][k] * x;
                sums[1] += a[1][k] * x;
            }
            for (uint32_t r = 0; r < 2; r++) {
                float *c = p.c + i * 4 + r * 2 + e;
                *c = sums[r] + (p.add ? *c : 0.0f);
            }
        }
}

void emu_product(const emu_product_t &product) { own_groups().back().push_back(product); }

void kri_product_commit() { own_groups().emplace_back(); }

void emu_product_wait(uint32_t n_left) {
    groups_t &groups = own_groups();
    while (groups.size() > n_left + 1u) {
        for (const emu_product_t &p : groups.front()) compute(p);
        groups.erase(groups.begin());
    }
}
