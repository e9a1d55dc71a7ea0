/* attn_prefill.cu: attention of tiles of rows, each of one sequence and one query head, over its
 * pages, for Hopper (flash attention 3: Shah et al. 2024). Blocks stay and take tile after tile.
 * Two warps copy queries and keys, and values, page by page (TMA) through stages of shared memory;
 * warp groups of 64 rows each multiply (wgmma, f16 with f32 sums). They take turns, so that one's
 * softmax runs beside the other's products, and each has the scores of its next keys computed while
 * the weights of these meet their values. Weights stay in registers. Keys come from the last to the
 * first: those that are masked come first. */
#include "common.cuh"
#include "hopper.cuh"

#include <math.h>

#define K_STAGES 2
#define V_STAGES 2
#define GROUP 128 /* threads of a warp group */

/* HD: head size, rounded up; what is above the model's is zeros. N: keys of a tile. GROUPS: warp
 * groups of 64 rows. Matrices in shared memory are panels of 64 columns, 128 bytes a row. */
template <int HD, int N, int GROUPS> struct shape_t {
    static constexpr uint32_t rows = 64 * GROUPS, panels = HD / 64, kv = N * HD * 2,
                              q_panel = rows * 128, kv_panel = N * 128, k_at = rows * HD * 2,
                              v_at = k_at + K_STAGES * kv, barriers = v_at + V_STAGES * kv,
                              place = barriers + 8 * (2 * K_STAGES + 2 * V_STAGES + 3);
};

/* Barriers by their place: of a stage of keys, of values, of the queries; full ones wait for the
 * copies, free ones for the warp groups. TAIL waits for values that are to be cleared in part. */
enum {
    K_FULL = 0, V_FULL = K_STAGES, K_FREE = K_STAGES + V_STAGES, V_FREE = K_FREE + K_STAGES,
    Q_FULL = V_FREE + V_STAGES, Q_FREE, TAIL
};

struct place_t { /* of a tile; n_tiles 0: there are no more */
    uint32_t row, n_rows, head, pos; /* position of the first row */
    uint32_t start, n_tiles, table;  /* first key of the first tile of keys */
};

/* Heads by `heads_together`, whose keys and values stay in the second-level cache; of those the
 * longest tiles of a sequence first. */
template <int N>
__device__ __forceinline__ place_t find_place(const kri_cu_prefill_t &a, uint32_t item) {
    place_t p = {};
    if (item >= a.n_tiles * a.attn.n_heads) return p;
    const uint32_t head = item / (a.n_tiles * a.heads_together) * a.heads_together;
    const uint32_t n_heads = min(a.heads_together, a.attn.n_heads - head);
    item -= head * a.n_tiles;
    const kri_cu_tile_t tile = a.attn.step.tiles[a.n_tiles - 1 - item / n_heads];
    const kri_cu_seq_t *seq = a.attn.step.seqs + tile.seq;
    p.row = tile.row;
    p.n_rows = tile.n_rows;
    p.head = head + item % n_heads;
    p.pos = seq->pos_begin + tile.row - seq->row_begin;
    p.start = kri_first_key(p.pos, a.attn.kv.window) / 16 * 16; /* no pages are before perhaps */
    p.n_tiles = (p.pos + tile.n_rows - 1 - p.start) / N + 1;
    p.table = seq->table[a.attn.kv.group];
    return p;
}

/* ---- copies: two warps ----------------------------------------------------------------------- */

template <int HD, int N, int GROUPS>
__device__ __forceinline__ void copy_tile(const kri_cu_prefill_t &a, const place_t &p,
                                          uint32_t to, uint32_t barrier, uint32_t block,
                                          uint32_t key) {
    using S = shape_t<HD, N, GROUPS>;
    const uint32_t lane = threadIdx.x % 32, first = key / 16;
    const uint32_t last = p.pos + p.n_rows - 1, pages = min(last / 16 - first + 1, N / 16u);
    const uint32_t *table = a.attn.step.tables + p.table + first;
    if (lane == 0) kri_barrier_expect(barrier, pages * S::panels * 2048);
    __syncwarp();
    for (uint32_t i = lane; i < pages * S::panels; i += 32) {
        const uint32_t page = i / S::panels, panel = i % S::panels;
        kri_copy_box(to + panel * S::kv_panel + page * 2048, a.map, panel * 64, 0, block,
                     table[page], barrier);
    }
}

/* Values behind the last key are not numbers perhaps: their weights of 0 need zeros. */
template <int HD, int N, int GROUPS>
__device__ __forceinline__ void clear_tail(uint8_t *values, uint32_t n_keys) {
    using S = shape_t<HD, N, GROUPS>;
    for (uint32_t i = n_keys * 8 + threadIdx.x % 32; i < N * 8; i += 32)
        for (uint32_t panel = 0; panel < S::panels; panel++)
            *(uint4 *)(values + panel * S::kv_panel + i * 16) = make_uint4(0, 0, 0, 0);
}

template <int HD, int N, int GROUPS>
__device__ __forceinline__ void copy_queries(const kri_cu_prefill_t &a, const place_t &p,
                                             uint32_t memory, uint32_t barrier) {
    using S = shape_t<HD, N, GROUPS>;
    if (threadIdx.x % 32 == 0) kri_barrier_expect(barrier, S::rows * HD * 2);
    __syncwarp();
    for (uint32_t i = threadIdx.x % 32; i < S::rows / 16 * S::panels; i += 32) {
        const uint32_t at = i / S::panels, panel = i % S::panels;
        kri_copy_box(memory + panel * S::q_panel + at * 2048, a.queries, panel * 64,
                     p.row + at * 16, p.head, 0, barrier);
    }
}

/* Tells the groups their tile when they are done with the queries before. */
template <int HD, int N, int GROUPS>
__device__ __forceinline__ void announce(const place_t &p, uint32_t round, uint8_t *memory) {
    using S = shape_t<HD, N, GROUPS>;
    const uint32_t barrier = kri_shared(memory) + S::barriers + 8 * Q_FREE;
    if (round > 0) kri_barrier_wait(barrier, (round + 1) % 2);
    if (threadIdx.x % 32 == 0) *(place_t *)(memory + S::place) = p;
}

/* The next item that no block has taken. Each block takes one that there is not: then the counter
 * is 0 again. */
__device__ __forceinline__ uint32_t take_item(const kri_cu_prefill_t &a) {
    uint32_t item = 0;
    if (threadIdx.x % 32 == 0)
        item = atomicInc(a.attn.counters, a.n_tiles * a.attn.n_heads + gridDim.x - 1);
    return __shfl_sync(~0u, item, 0);
}

/* Keys and queries, by one warp, which also hands out the tiles. */
template <int HD, int N, int GROUPS>
__device__ __forceinline__ void produce_keys(const kri_cu_prefill_t &a, uint8_t *memory) {
    using S = shape_t<HD, N, GROUPS>;
    const uint32_t shared = kri_shared(memory), barriers = shared + S::barriers;
    const uint32_t block = (uint32_t)(a.attn.kv.k / a.attn.kv.block_bytes);
    const uint32_t heads_each = a.attn.n_heads / a.attn.n_kv_heads;
    uint32_t next = take_item(a), n = 0; /* tiles of keys so far */
    for (uint32_t round = 0;; round++) {
        const place_t p = find_place<N>(a, next);
        if (p.n_tiles == 0) {
            announce<HD, N, GROUPS>(p, round, memory);
            if (threadIdx.x % 32 == 0) kri_barrier_arrive(barriers + 8 * Q_FULL);
            return;
        }
        for (uint32_t i = 0; i < p.n_tiles; i++, n++) {
            if (i + 1 == p.n_tiles) next = take_item(a); /* not sooner: others are done first */
            const uint32_t stage = n % K_STAGES, key = p.start + (p.n_tiles - 1 - i) * N;
            if (n >= K_STAGES)
                kri_barrier_wait(barriers + 8 * (K_FREE + stage), (n / K_STAGES + 1) % 2);
            copy_tile<HD, N, GROUPS>(a, p, shared + S::k_at + stage * S::kv,
                                     barriers + 8 * (K_FULL + stage), block + p.head / heads_each,
                                     key);
            if (i > 0) continue;
            announce<HD, N, GROUPS>(p, round, memory);
            copy_queries<HD, N, GROUPS>(a, p, shared, barriers + 8 * Q_FULL);
        }
    }
}

/* Values, by another warp, which learns of its tiles as the groups do. */
template <int HD, int N, int GROUPS>
__device__ __forceinline__ void produce_values(const kri_cu_prefill_t &a, uint8_t *memory) {
    using S = shape_t<HD, N, GROUPS>;
    const uint32_t shared = kri_shared(memory), barriers = shared + S::barriers;
    const uint32_t block = (uint32_t)(a.attn.kv.v / a.attn.kv.block_bytes);
    const uint32_t heads_each = a.attn.n_heads / a.attn.n_kv_heads;
    uint32_t n = 0, n_tails = 0;
    for (uint32_t round = 0;; round++) {
        kri_barrier_wait(barriers + 8 * Q_FULL, round % 2);
        const place_t p = *(const place_t *)(memory + S::place);
        const uint32_t last = p.pos + p.n_rows - 1;
        __syncwarp();
        if (p.n_tiles == 0) return;
        if (threadIdx.x % 32 == 0) kri_barrier_arrive(barriers + 8 * Q_FREE);
        for (uint32_t i = 0; i < p.n_tiles; i++, n++) {
            const uint32_t stage = n % V_STAGES, key = p.start + (p.n_tiles - 1 - i) * N;
            const uint32_t full = barriers + 8 * (V_FULL + stage), v = S::v_at + stage * S::kv;
            const bool is_whole = last - key + 1 >= N;
            if (n >= V_STAGES)
                kri_barrier_wait(barriers + 8 * (V_FREE + stage), (n / V_STAGES + 1) % 2);
            copy_tile<HD, N, GROUPS>(a, p, shared + v, is_whole ? full : barriers + 8 * TAIL,
                                     block + p.head / heads_each, key);
            if (is_whole) continue;
            kri_barrier_wait(barriers + 8 * TAIL, n_tails++ % 2);
            clear_tail<HD, N, GROUPS>(memory + v, last - key + 1);
            kri_fence_shared();
            __syncwarp();
            if (threadIdx.x % 32 == 0) kri_barrier_arrive(full);
        }
    }
}

/* ---- rows: a warp group each ----------------------------------------------------------------- */

/* A thread's two rows: sums so far. */
template <int HD, int N> struct rows_t {
    float acc[HD / 2], most[2], sum[2];
    uint32_t weights[N / 4];
};

template <int HD, int N, int GROUPS>
__device__ __forceinline__ void scores(float (&s)[N / 2], uint32_t q, uint32_t k) {
    using S = shape_t<HD, N, GROUPS>;
    kri_product_begin();
#pragma unroll
    for (int i = 0; i < HD / 16; i++) {
        kri_product_shared<N>(s, kri_matrix(q + i / 4 * S::q_panel + i % 4 * 32, 1024, 16),
                              kri_matrix(k + i / 4 * S::kv_panel + i % 4 * 32, 1024, 16), i > 0);
    }
    kri_product_commit();
}

template <int HD, int N, int GROUPS>
__device__ __forceinline__ void add_values(rows_t<HD, N> &rows, uint32_t v) {
    using S = shape_t<HD, N, GROUPS>;
    kri_product_begin();
#pragma unroll
    for (int i = 0; i < N / 16; i++) {
        kri_product_rows<HD>(rows.acc, rows.weights + 4 * i,
                             kri_matrix(v + i * 2048, 1024, S::kv_panel));
    }
    kri_product_commit();
}

template <int N>
__device__ __forceinline__ void mask(float (&s)[N / 2], uint32_t key, uint32_t pos,
                                     uint32_t window) {
#pragma unroll
    for (int i = 0; i < N / 8; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const uint32_t at = key + i * 8 + threadIdx.x % 4 * 2 + e % 2, row = pos + e / 2 * 8;
            if (at > row || at < kri_first_key(row, window)) s[i * 4 + e] = -INFINITY;
        }
}

/* Scores to weights, in units of log2. Returns in `old` what earlier sums are to be scaled by. */
template <int HD, int N>
__device__ __forceinline__ void weigh(float (&s)[N / 2], rows_t<HD, N> &rows, float scale,
                                      float (&old)[2]) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float most = rows.most[r], sum = 0.0f;
#pragma unroll
        for (int i = 0; i < N / 8; i++)
            most = fmaxf(most, fmaxf(s[i * 4 + 2 * r], s[i * 4 + 2 * r + 1]));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
        const float base = most == -INFINITY ? 0.0f : most * scale;
        old[r] = kri_exp2(rows.most[r] * scale - base);
        rows.most[r] = most;
#pragma unroll
        for (int i = 0; i < N / 8; i++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float &x = s[i * 4 + 2 * r + e];
                x = kri_exp2(fmaf(x, scale, -base));
                sum += x;
            }
        rows.sum[r] = rows.sum[r] * old[r] + sum;
    }
}

/* When the products that read the weights before and add to acc are over. */
template <int HD, int N>
__device__ __forceinline__ void take_weights(const float (&s)[N / 2], rows_t<HD, N> &rows,
                                             const float (&old)[2]) {
#pragma unroll
    for (int i = 0; i < N / 4; i++)
        rows.weights[i] = kri_pack_half(s[2 * i], s[2 * i + 1]);
#pragma unroll
    for (int i = 0; i < HD / 2; i++) rows.acc[i] *= old[i % 4 / 2];
}

template <int HD, int N>
__device__ __forceinline__ void store_rows(rows_t<HD, N> &rows, const kri_cu_prefill_t &a,
                                           const place_t &p) {
    const uint32_t lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
    const uint32_t head_dim = a.attn.head_dim;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float sum = rows.sum[r];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const float inverse = 1.0f / sum;
        if (row + r * 8 >= p.n_rows) continue;
        const uint64_t at = ((uint64_t)(p.row + row + r * 8) * a.attn.n_heads + p.head) * head_dim +
                            lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < HD / 8; i++) {
            if (i * 8 >= head_dim) break;
            const float x = rows.acc[i * 4 + 2 * r] * inverse;
            const float y = rows.acc[i * 4 + 2 * r + 1] * inverse;
            if (a.rounded) *(uint32_t *)(a.rounded + at + i * 8) = kri_pack_bf16(x, y);
            else *(float2 *)(a.attn.out + at + i * 8) = make_float2(x, y);
        }
    }
}

/* Scores of keys from `key` on to weights. */
template <int HD, int N>
__device__ __forceinline__ void soften(float (&s)[N / 2], rows_t<HD, N> &rows,
                                       const kri_cu_attn_t &a, uint32_t key, uint32_t pos,
                                       float (&old)[2]) {
    const uint32_t row = pos + threadIdx.x % GROUP / 32 * 16 + threadIdx.x % 32 / 4;
    float scale = a.scale;
    if (a.softcap > 0.0f) {
        const float inner = a.scale / a.softcap;
#pragma unroll
        for (int j = 0; j < N / 2; j++) s[j] = kri_tanh(s[j] * inner);
        scale = a.softcap;
    }
    if (key + N - 1 > pos || (a.kv.window && key < kri_first_key(pos + 63, a.kv.window)))
        mask<N>(s, key, row, a.kv.window);
    weigh<HD, N>(s, rows, scale * KRI_LOG2E, old);
}

/* One tile; n tiles of keys were before it. */
template <int HD, int N, int GROUPS>
__device__ __forceinline__ void attend(const kri_cu_prefill_t &a, const place_t &p, uint32_t n,
                                       uint32_t shared) {
    using S = shape_t<HD, N, GROUPS>;
    const uint32_t group = threadIdx.x / GROUP, barriers = shared + S::barriers;
    const uint32_t q = shared + group * 64 * 128, pos = p.pos + group * 64, end = n + p.n_tiles - 1;
    const uint32_t turn = 1 + group, next_turn = group + 1 == GROUPS ? 1 : 2 + group;
    const bool leads = threadIdx.x % 32 == 0;
    uint32_t key = p.start + (p.n_tiles - 1) * N, stage = n % K_STAGES;
    rows_t<HD, N> rows = {};
    float s[N / 2], old[2];
    rows.most[0] = rows.most[1] = -INFINITY;
    kri_barrier_wait(barriers + 8 * (K_FULL + stage), n / K_STAGES % 2);
    scores<HD, N, GROUPS>(s, q, shared + S::k_at + stage * S::kv);
    kri_product_wait<0>(s);
    if (leads) kri_barrier_arrive(barriers + 8 * (K_FREE + stage));
    if (leads && n == end) kri_barrier_arrive(barriers + 8 * Q_FREE);
    soften<HD, N>(s, rows, a.attn, key, pos, old);
    take_weights<HD, N>(s, rows, old);
    for (; n < end; n++) {
        const uint32_t before = n % V_STAGES, v_parity = n / V_STAGES % 2;
        key -= N;
        stage = (n + 1) % K_STAGES;
        kri_barrier_wait(barriers + 8 * (K_FULL + stage), (n + 1) / K_STAGES % 2);
        kri_named_wait(turn, 2 * GROUP);
        scores<HD, N, GROUPS>(s, q, shared + S::k_at + stage * S::kv);
        kri_barrier_wait(barriers + 8 * (V_FULL + before), v_parity);
        add_values<HD, N, GROUPS>(rows, shared + S::v_at + before * S::kv);
        kri_named_arrive(next_turn, 2 * GROUP);
        kri_product_wait<1>(s);
        if (leads) kri_barrier_arrive(barriers + 8 * (K_FREE + stage));
        if (leads && n + 1 == end) kri_barrier_arrive(barriers + 8 * Q_FREE);
        soften<HD, N>(s, rows, a.attn, key, pos, old);
        kri_product_wait<0>(rows.acc);
        if (leads) kri_barrier_arrive(barriers + 8 * (V_FREE + before));
        take_weights<HD, N>(s, rows, old);
    }
    stage = end % V_STAGES;
    kri_barrier_wait(barriers + 8 * (V_FULL + stage), end / V_STAGES % 2);
    add_values<HD, N, GROUPS>(rows, shared + S::v_at + stage * S::kv);
    kri_product_wait<0>(rows.acc);
    if (leads) kri_barrier_arrive(barriers + 8 * (V_FREE + stage));
    store_rows<HD, N>(rows, a, p);
}

/* grid (blocks), 128 * (GROUPS + 1) threads */
template <int HD, int N, int GROUPS, int MORE, int LESS>
__device__ __forceinline__ void prefill(const kri_cu_prefill_t &a) {
    using S = shape_t<HD, N, GROUPS>;
    KRI_SHARED_ATOMS(memory);
    const uint32_t shared = kri_shared(memory), group = threadIdx.x / GROUP;
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i <= TAIL; i++) {
            const bool is_free = (i >= K_FREE && i < Q_FULL) || i == Q_FREE;
            const uint32_t n_warps = GROUPS * GROUP / 32 + (i == Q_FREE); /* and that of values */
            kri_barrier_init(shared + S::barriers + 8 * i, is_free ? n_warps : 1);
        }
        kri_barrier_init_done();
    }
    __syncthreads();
    if (group == GROUPS) {
        kri_registers_less<LESS>();
        const uint32_t warp = threadIdx.x % GROUP / 32;
        if (warp == 0) produce_keys<HD, N, GROUPS>(a, memory);
        if (warp == 1) produce_values<HD, N, GROUPS>(a, memory);
    } else {
        kri_registers_more<MORE>();
        const place_t &p = *(const place_t *)(memory + S::place);
        if (group == GROUPS - 1) kri_named_arrive(1, 2 * GROUP); /* the first group begins */
        for (uint32_t n = 0, round = 0;; round++) {
            kri_barrier_wait(shared + S::barriers + 8 * Q_FULL, round % 2);
            const place_t own = p; /* the next one comes early */
            if (own.n_tiles == 0) break;
            attend<HD, N, GROUPS>(a, own, n, shared);
            n += own.n_tiles;
        }
        if (group == 0) kri_named_wait(1, 2 * GROUP); /* the turn that nobody takes */
    }
}

#define PREFILL(hd, n, groups, more, less)                                                       \
    KERNEL __launch_bounds__(128 * (groups + 1), 1) kri_attn_prefill_##hd(                       \
        const __grid_constant__ kri_cu_prefill_t a) {                                            \
        kri_begin();                                                                             \
        prefill<hd, n, groups, more, less>(a);                                                   \
    }
PREFILL(64, 128, 3, 160, 32)
PREFILL(128, 128, 2, 232, 40)
PREFILL(256, 80, 2, 232, 40)
