/* attn_decode.cu: attention of rows one by one over pages of f16, int8 or fp8: decoding. A context
 * is cut into splits that the last block merges. A block takes up to four query heads of one KV
 * head; its warps take pages in turn, each through a ring of its own in shared memory, filled by
 * asynchronous copies. Products are made on the tensor cores with the query heads as columns, two
 * for each: the query's numbers (and the weights of values) are split into a high and a low digit,
 * so that nothing is lost to the f16, the integers or the e4m3 that the keys are. A lane (g, t) =
 * (lane / 4, lane % 4) then has the scores of head t with keys 2 g and 2 g + 1 of the page.
 * Where each sequence of the step has one row, its queries are rotated here, and its key and value
 * go to their page and, past those that were fetched before, into the ring. */
#include "kv8.cuh"
#include "rotate.cuh"

#define HEADS KRI_CU_HEADS
#define WARPS 4
#define LEVELS 32639.0f /* of two digits of 8 bits: KRI_I8_QUERY_LEVELS */

/* The row, in shared memory. */
template <int HD> struct row_t {
    float x[HEADS + 2][HD]; /* query heads (zeros where there are fewer), key, value */
    float most[HEADS];      /* largest of a query */
    int sum[HEADS];         /* int8: of its integers */
    kri_coded_t first, coded[2];
};

/* ---- digits ---------------------------------------------------------------------------------- */

__device__ __forceinline__ float inverse_of(float most, float levels) {
    /* Of a NaN 0 too: it comes back with the product. */
    return most > 1e-30f ? kri_quotient(levels, most) : 0.0f;
}

/* Digit `low` (0, 1) of two numbers of -1..1 as halves. */
__device__ __forceinline__ uint32_t half_digits(float x, float y, bool low) {
    const uint32_t high = kri_pack_half(x, y);
    if (!low) return high;
    return kri_pack_half(x - kri_half((uint16_t)high), y - kri_half((uint16_t)(high >> 16)));
}
__device__ __forceinline__ uint32_t byte_digit(int x, bool low) {
    const int high = (x + 128) >> 8;
    return (uint32_t)(low ? x - high * 256 : high) & 255u;
}

/* The weights of a lane's two keys as halves, to the lanes that multiply: b[0] of keys 4 t and
 * 4 t + 1, b[1] of 4 t + 2 and 4 t + 3, of column g. */
__device__ __forceinline__ void send_halves(const float (&w)[2], uint32_t (&b)[2]) {
    const uint32_t lane = threadIdx.x % 32, from = lane % 4 * 8 + lane / 8;
    const uint32_t high = half_digits(w[0], w[1], false), low = half_digits(w[0], w[1], true);
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        const uint32_t h = __shfl_sync(~0u, high, from + 4 * i);
        const uint32_t l = __shfl_sync(~0u, low, from + 4 * i);
        b[i] = lane / 4 % 2 ? l : h;
    }
}
/* The same as bytes: four keys in one word. */
__device__ __forceinline__ uint32_t send_bytes(const float (&w)[2]) {
    const uint32_t lane = threadIdx.x % 32, from = lane % 4 * 8 + lane / 8;
    const int x = __float2int_rn(w[0]), y = __float2int_rn(w[1]);
    const uint32_t word = byte_digit(x, false) | byte_digit(y, false) << 8 |
                          byte_digit(x, true) << 16 | byte_digit(y, true) << 24;
    const uint32_t low = __shfl_sync(~0u, word, from), high = __shfl_sync(~0u, word, from + 4);
    return lane / 4 % 2 ? __byte_perm(low, high, 0x7632) : __byte_perm(low, high, 0x5410);
}

/* kri_mix with a head in a warp's registers: the same sums. */
template <int HD> __device__ __forceinline__ void mix(float *x) {
    constexpr int n = HD / 32;
    const uint32_t lane = threadIdx.x % 32;
    float v[n];
#pragma unroll
    for (int j = 0; j < n; j++) v[j] = x[lane * n + j];
#pragma unroll
    for (int half = 1; half < n; half *= 2)
#pragma unroll
        for (int j = 0; j < n; j++) {
            if (j & half) continue;
            const float p = v[j], q = v[j + half];
            v[j] = p + q;
            v[j + half] = p - q;
        }
#pragma unroll
    for (uint32_t m = 1; m < 32; m *= 2)
#pragma unroll
        for (int j = 0; j < n; j++) {
            const float other = __shfl_xor_sync(~0u, v[j], m);
            v[j] = lane & m ? other - v[j] : v[j] + other;
        }
    const float scale = 1.0f / sqrtf((float)HD);
#pragma unroll
    for (int j = 0; j < n; j++) x[lane * n + j] = v[j] * scale;
    __syncwarp();
}

/* ---- pages of f16 ---------------------------------------------------------------------------- */

/* Keys [16][HD] and values [16][HD], pieces of 16 bytes swizzled so that what a warp reads at once
 * lies in different banks: rows two apart of keys, rows 0 1 4 5 8 9 12 13 of values. */
template <int HD> struct half_pages_t {
    static constexpr uint32_t dtype = KRI_CU_F16, page_bytes = 64 * HD, n_pages = 1;
    static constexpr uint32_t n_stages = HD == 64 ? 4 : 3;
    static constexpr int n_query = HD / 8, n_acc = HD / 4;
    static constexpr float levels = 1.0f;

    __device__ static uint32_t key_at(uint32_t row, uint32_t piece) {
        return row * (HD * 2) + (piece ^ (row & 2) << 1) * 16;
    }
    __device__ static uint32_t value_at(uint32_t row, uint32_t piece) {
        return 32 * HD + row * (HD * 2) + (piece ^ ((row >> 1 & 6) | (row & 1))) * 16;
    }
    /* Slots outside [first, end) become zeros: a value there may be a NaN, its weight is 0. */
    __device__ static void fetch(uint32_t to, const kri_cu_kv_t &kv, const uint8_t *head,
                                 uint32_t first, uint32_t end) {
        constexpr uint32_t pieces = HD / 8;
        const uint32_t lane = threadIdx.x % 32;
#pragma unroll
        for (uint32_t i = 0; i < 16 * pieces; i += 32) {
            const uint32_t row = (i + lane) / pieces, piece = (i + lane) % pieces;
            const bool valid = row >= first && row < end;
            kri_copy16(to + key_at(row, piece), head + kv.k + (i + lane) * 16, valid);
            kri_copy16(to + value_at(row, piece), head + kv.v + (i + lane) * 16, valid);
        }
    }
    __device__ static void load_first(row_t<HD> &, const kri_cu_kv_t &, const uint8_t *) {}
    __device__ static void code(row_t<HD> &, bool) {}
    __device__ static void store(const row_t<HD> &row, const kri_cu_kv_t &kv, uint8_t *head,
                                 uint32_t slot, bool is_v) {
        uint16_t *to = (uint16_t *)(head + (is_v ? kv.v : kv.k)) + slot * HD;
        for (uint32_t i = threadIdx.x % 32; i < HD; i += 32)
            to[i] = __half_as_ushort(__float2half_rn(row.x[HEADS + is_v][i]));
    }
    __device__ static void patch(uint8_t *page, const row_t<HD> &row, uint32_t slot) {
        for (uint32_t i = threadIdx.x % 32; i < HD; i += 32) {
            const uint32_t in_piece = i % 8 * 2;
            *(uint16_t *)(page + key_at(slot, i / 8) + in_piece) =
                __half_as_ushort(__float2half_rn(row.x[HEADS][i]));
            *(uint16_t *)(page + value_at(slot, i / 8) + in_piece) =
                __half_as_ushort(__float2half_rn(row.x[HEADS + 1][i]));
        }
    }
    __device__ static void load_query(const row_t<HD> &row, uint32_t (&q)[n_query]) {
        const uint32_t lane = threadIdx.x % 32, head = lane / 8;
        const float inverse = inverse_of(row.most[head], 1.0f);
#pragma unroll
        for (int i = 0; i < n_query; i++) {
            const float *x = row.x[head] + i / 4 * 32 + lane % 4 * 8 + i % 4 * 2;
            q[i] = half_digits(x[0] * inverse, x[1] * inverse, lane / 4 % 2);
        }
    }
    __device__ static void scores(const uint8_t *page, const uint32_t (&q)[n_query], float unit,
                                  int, float (&s)[2]) {
        const uint32_t lane = threadIdx.x % 32, row = lane / 4 * 2;
        float c[2][4] = {};
#pragma unroll
        for (int j = 0; j < HD / 32; j++) {
            const uint4 x = *(const uint4 *)(page + key_at(row, j * 4 + lane % 4));
            const uint4 y = *(const uint4 *)(page + key_at(row + 1, j * 4 + lane % 4));
            const uint32_t first[4] = {x.x, y.x, x.y, y.y}, second[4] = {x.z, y.z, x.w, y.w};
            kri_mma_half(c[0], first, q[4 * j], q[4 * j + 1]);
            kri_mma_half(c[1], second, q[4 * j + 2], q[4 * j + 3]);
        }
        s[0] = (c[0][0] + c[1][0] + (c[0][1] + c[1][1])) * unit;
        s[1] = (c[0][2] + c[1][2] + (c[0][3] + c[1][3])) * unit;
    }
    /* acc: of 16 dimensions those of g and g + 8, each as two digits. */
    __device__ static void add(const uint8_t *page, const float (&p)[1][2],
                               const bool (&)[1][2], float old, float (&acc)[n_acc]) {
        const uint32_t lane = threadIdx.x % 32;
        const uint32_t key = lane % 8 / 2 * 4 + lane % 2 + lane / 16 * 2;
        const uint32_t at = kri_shared(page);
        uint32_t b[2];
        send_halves(p[0], b);
        if (__any_sync(~0u, old != 1.0f)) {
#pragma unroll
            for (int i = 0; i < n_acc; i++) acc[i] *= old;
        }
#pragma unroll
        for (int j = 0; j < HD / 16; j++) {
            uint32_t a[4];
            float c[4] = {acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3]};
            kri_ldmatrix4_t(a, at + value_at(key, j * 2 + lane / 8 % 2));
            kri_mma_half(c, a, b[0], b[1]);
#pragma unroll
            for (int e = 0; e < 4; e++) acc[4 * j + e] = c[e];
        }
    }
    __device__ static void put(const float (&acc)[n_acc], float *to) {
        const uint32_t g = threadIdx.x % 32 / 4;
#pragma unroll
        for (int j = 0; j < HD / 16; j++) {
            to[16 * j + g] = acc[4 * j] + acc[4 * j + 1];
            to[16 * j + 8 + g] = acc[4 * j + 2] + acc[4 * j + 3];
        }
    }
};

/* ---- pages of 8 bits ------------------------------------------------------------------------- */

/* As in memory, but for values: there the pieces of one four of keys are swizzled. */
template <int HD, uint32_t DTYPE> struct byte_pages_t {
    static constexpr uint32_t dtype = DTYPE, page_bytes = 32 * HD + 64, n_pages = 2;
    static constexpr uint32_t n_stages = 3;
    static constexpr int n_acc = HD / 8;
    static constexpr bool is_int = DTYPE == KRI_CU_I8;
    static constexpr int n_query = is_int ? HD / 16 : HD / 8;
    static constexpr float levels = is_int ? LEVELS : 1.0f;

    __device__ static uint32_t value_at(uint32_t four, uint32_t dim) {
        return 16 * HD + four * (4 * HD) + (dim / 4 ^ four * 2) * 16 + dim % 4 * 4;
    }
    __device__ static void fetch(uint32_t to, const kri_cu_kv_t &kv, const uint8_t *head,
                                 uint32_t, uint32_t) {
        const uint32_t lane = threadIdx.x % 32;
#pragma unroll
        for (uint32_t i = 0; i < HD; i += 32) {
            const uint32_t at = i + lane;
            kri_copy16(to + at * 16, head + kv.k + at * 16, true);
            kri_copy16(to + value_at(at / (HD / 4), at % (HD / 4) * 4), head + kv.v + at * 16,
                       true);
        }
        if (lane < 4) kri_copy16(to + 32 * HD + lane * 16, head + kv.scales + lane * 16, true);
    }
    /* head: of the page that the row's key goes to, where there are keys already */
    __device__ static void load_first(row_t<HD> &row, const kri_cu_kv_t &kv, const uint8_t *head) {
        if (is_int && threadIdx.x / 32 == 0) kri_first_of_page(kv, head, HD, &row.first);
    }
    __device__ static void code(row_t<HD> &row, bool has_first) {
        const uint32_t warp = threadIdx.x / 32;
        if (warp > 1) return;
        if (is_int && warp == 0) mix<HD>(row.x[HEADS]);
        kri_code(DTYPE, row.x[HEADS + warp], HD,
                 is_int && warp == 0 && has_first ? &row.first : nullptr, &row.coded[warp]);
    }
    __device__ static void store(const row_t<HD> &row, const kri_cu_kv_t &kv, uint8_t *head,
                                 uint32_t slot, bool is_v) {
        kri_store_coded(kv, head, HD, slot, is_v, &row.coded[is_v]);
    }
    __device__ static void patch(uint8_t *page, const row_t<HD> &row, uint32_t slot) {
        for (uint32_t i = threadIdx.x % 32; i < HD; i += 32) {
            page[kri_key8_at(slot, i)] = row.coded[0].bytes[i] ^ (is_int ? KRI_KEY_BIAS : 0);
            page[value_at(slot / 4, i) + slot % 4] = row.coded[1].bytes[i];
        }
        uint16_t *scales = (uint16_t *)(page + 32 * HD);
        if (threadIdx.x % 32 < 2)
            scales[threadIdx.x % 32 * 16 + slot] = row.coded[threadIdx.x % 32].scale;
    }
    __device__ static void load_query(const row_t<HD> &row, uint32_t (&q)[n_query]) {
        const uint32_t lane = threadIdx.x % 32, head = lane / 8;
        const float inverse = inverse_of(row.most[head], levels);
        const bool low = lane / 4 % 2;
#pragma unroll
        for (int i = 0; i < HD / 16; i++) { /* four dimensions of a key's word */
            const float4 x = *(const float4 *)(row.x[head] + (lane % 4 + 4 * i) * 4);
            if constexpr (is_int) {
                q[i] = byte_digit(__float2int_rn(x.x * inverse), low) |
                       byte_digit(__float2int_rn(x.y * inverse), low) << 8 |
                       byte_digit(__float2int_rn(x.z * inverse), low) << 16 |
                       byte_digit(__float2int_rn(x.w * inverse), low) << 24;
            } else {
                q[2 * i] = half_digits(x.x * inverse, x.y * inverse, low);
                q[2 * i + 1] = half_digits(x.z * inverse, x.w * inverse, low);
            }
        }
    }
    __device__ static void scores(const uint8_t *page, const uint32_t (&q)[n_query], float unit,
                                  int sum, float (&s)[2]) {
        const uint32_t lane = threadIdx.x % 32;
        const uint8_t *k = page + lane % 4 * 64 + lane / 4 * 8;
        const uint32_t both = *(const uint32_t *)(page + 32 * HD + lane / 4 * 4);
        const float scales[2] = {kri_half((uint16_t)both), kri_half((uint16_t)(both >> 16))};
        if constexpr (is_int) {
            int c[4] = {};
#pragma unroll
            for (int j = 0; j < HD / 32; j++) {
                const uint2 x = *(const uint2 *)(k + j * 512);
                const uint2 y = *(const uint2 *)(k + j * 512 + 256);
                const uint32_t a[4] = {x.x, x.y, y.x, y.y};
                kri_mma_u8s8(c, a, q[2 * j], q[2 * j + 1]);
            }
            /* Keys are kept with a bias: unsigned sums may wrap, what is left does not. */
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int dot = (int)(256u * (uint32_t)c[2 * e] + (uint32_t)c[2 * e + 1] -
                                      KRI_KEY_BIAS * (uint32_t)sum);
                s[e] = (float)dot * (unit / LEVELS) * fabsf(scales[e]);
            }
            const float first = __shfl_sync(~0u, s[0], lane % 4);
#pragma unroll
            for (int e = 0; e < 2; e++) s[e] += scales[e] < 0.0f ? first : 0.0f;
        } else {
            float c[2][4] = {};
#pragma unroll
            for (int j = 0; j < HD / 16; j++) {
                const uint2 words = *(const uint2 *)(k + j * 256);
                const uint2 x = kri_halves_of_e4m3(words.x), y = kri_halves_of_e4m3(words.y);
                const uint32_t a[4] = {x.x, y.x, x.y, y.y};
                kri_mma_half(c[j % 2], a, q[2 * j], q[2 * j + 1]);
            }
#pragma unroll
            for (int e = 0; e < 2; e++)
                s[e] = (c[0][2 * e] + c[1][2 * e] + (c[0][2 * e + 1] + c[1][2 * e + 1])) *
                       (unit * KRI_E4M3_UNIT) * scales[e];
        }
    }
    /* Sums of two dimensions, of four keys of each page in a lane. */
    __device__ static void two_values(const uint32_t (&v)[2], const uint32_t (&w)[2],
                                      const uint32_t (&b)[2][2], float *sums) {
        if constexpr (is_int) {
            const uint32_t a[4] = {v[0], v[1], w[0], w[1]};
            int c[4] = {};
            kri_mma_s8(c, a, b[0][0], b[1][0]);
            sums[0] = (float)(256 * c[0] + c[1]), sums[1] = (float)(256 * c[2] + c[3]);
        } else {
            float c[4] = {};
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const uint2 x = kri_halves_of_e4m3(i ? w[0] : v[0]);
                const uint2 y = kri_halves_of_e4m3(i ? w[1] : v[1]);
                const uint32_t a[4] = {x.x, y.x, x.y, y.y};
                kri_mma_half(c, a, b[i][0], b[i][1]);
            }
            sums[0] = c[0] + c[1], sums[1] = c[2] + c[3];
        }
    }
    /* The scales of values go to the weights, which become integers or halves of the largest. acc:
     * of 32 dimensions those of 4 g, ... + 3. */
    __device__ static void add(const uint8_t *pages, const float (&p)[2][2],
                               const bool (&is_seen)[2][2], float old, float (&acc)[n_acc]) {
        const uint32_t lane = threadIdx.x % 32;
        float w[2][2];
        uint32_t top = 0, b[2][2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint32_t both =
                *(const uint32_t *)(pages + i * page_bytes + 32 * HD + 32 + lane / 4 * 4);
            w[i][0] = is_seen[i][0] ? p[i][0] * kri_half((uint16_t)both) : 0.0f;
            w[i][1] = is_seen[i][1] ? p[i][1] * kri_half((uint16_t)(both >> 16)) : 0.0f;
            top = max(top, max(kri_magnitude(w[i][0]), kri_magnitude(w[i][1])));
        }
#pragma unroll
        for (int x = 4; x < 32; x *= 2) top = max(top, __shfl_xor_sync(~0u, top, x));
        const float most = __uint_as_float(top); /* a NaN's is the largest */
        const float inverse = inverse_of(most, levels);
        const float unit = most * (is_int ? 1.0f / LEVELS : KRI_E4M3_UNIT);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            w[i][0] *= inverse, w[i][1] *= inverse;
            if constexpr (is_int) b[i][0] = send_bytes(w[i]);
            else send_halves(w[i], b[i]);
        }
#pragma unroll
        for (int i = 0; i < HD / 32; i++) {
            const uint8_t *at = pages + value_at(lane % 4, i * 32 + lane / 4 * 4);
            const uint4 v = *(const uint4 *)at, w4 = *(const uint4 *)(at + page_bytes);
            const uint32_t first[2][2] = {{v.x, v.y}, {w4.x, w4.y}};
            const uint32_t second[2][2] = {{v.z, v.w}, {w4.z, w4.w}};
            float sums[4];
            two_values(first[0], first[1], b, sums);
            two_values(second[0], second[1], b, sums + 2);
#pragma unroll
            for (int e = 0; e < 4; e++)
                acc[4 * i + e] = fmaf(sums[e], unit, acc[4 * i + e] * old);
        }
    }
    __device__ static void put(const float (&acc)[n_acc], float *to) {
        const uint32_t g = threadIdx.x % 32 / 4;
#pragma unroll
        for (int i = 0; i < n_acc; i++) to[i / 4 * 32 + g * 4 + i % 4] = acc[i];
    }
};

/* ---- the row --------------------------------------------------------------------------------- */

/* The same as kri_rotate without norms: all pairs at once, each by one thread. */
template <int HD>
__device__ __forceinline__ void rotate_pairs(row_t<HD> &own, const kri_cu_attn_t &a,
                                             uint32_t row, const float *x, uint32_t head_begin,
                                             uint32_t n_heads, uint32_t kv_head, bool with_key) {
    const uint32_t n_pairs = a.rotate.n_rot / 2;
    const float2 *turns = (const float2 *)a.rotate.cos_sin + (uint64_t)row * n_pairs;
#pragma unroll
    for (uint32_t j = 0; j < ((HEADS + 2) * (HD / 2) + 127) / 128; j++) {
        const uint32_t at = j * 128 + threadIdx.x, h = at / (HD / 2), i = at % (HD / 2);
        const bool is_v = h == HEADS + 1, turned = !is_v && i < n_pairs;
        if (h < HEADS ? h >= n_heads : !with_key || h > HEADS + 1) continue;
        /* Pairs that are not turned: those past n_rot, in order, and all of a value. */
        const bool apart = turned && !a.rotate.is_pair;
        const uint32_t low = apart ? i : 2 * i, high = apart ? i + n_pairs : 2 * i + 1;
        const uint32_t head = h < HEADS ? head_begin + h
                                        : a.n_heads + is_v * a.n_kv_heads + kv_head;
        const float p = x[head * HD + low], q = x[head * HD + high];
        const float2 turn = turned ? turns[i] : make_float2(1.0f, 0.0f);
        own.x[h][low] = turned ? p * turn.x - q * turn.y : p;
        own.x[h][high] = turned ? p * turn.y + q * turn.x : q;
    }
}

/* The block's queries and, if `with_key`, the row's key and value. */
template <int HD>
__device__ __forceinline__ void rotate_row(row_t<HD> &own, const kri_cu_attn_t &a, uint32_t row,
                                           uint32_t head_begin, uint32_t n_heads,
                                           uint32_t kv_head, bool with_key) {
    const float *x = a.qkv + (uint64_t)row * (a.n_heads + 2 * a.n_kv_heads) * HD;
    const uint32_t n_pairs = a.rotate.n_rot / 2;
    if (!a.rotate.q_norm && !a.rotate.k_norm) {
        rotate_pairs<HD>(own, a, row, x, head_begin, n_heads, kv_head, with_key);
        return;
    }
    for (uint32_t i = threadIdx.x / 32; i < n_heads + (with_key ? 2 : 0); i += WARPS) {
        const uint32_t v = i - n_heads; /* of a key 0, of a value 1 */
        if (i < n_heads) {
            kri_rotate(a.rotate, x + (head_begin + i) * HD, a.rotate.q_norm, HD, n_pairs, row,
                       own.x[i]);
        } else {
            kri_rotate(a.rotate, x + (a.n_heads + v * a.n_kv_heads + kv_head) * HD,
                       v ? nullptr : a.rotate.k_norm, HD, v ? 0 : n_pairs, row, own.x[HEADS + v]);
        }
    }
}

/* A query head by each warp: transformed where pages are of int8, its largest, its sum. */
template <class PAGES, int HD>
__device__ __forceinline__ void finish_query(row_t<HD> &own, bool is_mixed, uint32_t n_heads) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float *x = own.x[warp];
    uint32_t most = 0;
    int sum = 0;
    if (warp >= n_heads) {
        for (uint32_t i = lane; i < HD; i += 32) x[i] = 0.0f;
    } else if (is_mixed) {
        mix<HD>(x);
    }
    for (uint32_t i = lane; i < HD; i += 32) most = max(most, kri_magnitude(x[i]));
    most = kri_warp_max(most);
    if (PAGES::dtype == KRI_CU_I8) {
        const float inverse = inverse_of(__uint_as_float(most), LEVELS);
        for (uint32_t i = lane; i < HD; i += 32) sum += __float2int_rn(x[i] * inverse);
        for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(~0u, sum, i);
    }
    if (lane == 0) own.most[warp] = __uint_as_float(most), own.sum[warp] = sum;
}

/* ---- keys ------------------------------------------------------------------------------------ */

template <int N> struct seen_t { /* by a warp, of head t */
    float acc[N], most, sum; /* sum: of this lane's keys */
};

/* Pages side by side, of each of which a lane's two keys count or not. */
template <class PAGES>
__device__ __forceinline__ void see(seen_t<PAGES::n_acc> &seen, const uint8_t *pages,
                                    const uint32_t (&q)[PAGES::n_query], float unit, int sum,
                                    const kri_cu_attn_t &a,
                                    const bool (&is_seen)[PAGES::n_pages][2]) {
    float s[PAGES::n_pages][2], p[PAGES::n_pages][2], top = seen.most;
#pragma unroll
    for (uint32_t i = 0; i < PAGES::n_pages; i++) {
        PAGES::scores(pages + i * PAGES::page_bytes, q, unit, sum, s[i]);
#pragma unroll
        for (int e = 0; e < 2; e++) {
            s[i][e] = is_seen[i][e] ? kri_score(s[i][e], a.scale, a.softcap) : -INFINITY;
            top = fmaxf(top, s[i][e]);
        }
    }
#pragma unroll
    for (int x = 4; x < 32; x *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, x));
    const float base = top == -INFINITY ? 0.0f : top; /* nothing seen yet: all weights 0 */
    const float old = exp2f(seen.most - base);
    seen.most = top;
    seen.sum *= old;
#pragma unroll
    for (uint32_t i = 0; i < PAGES::n_pages; i++) {
        p[i][0] = exp2f(s[i][0] - base), p[i][1] = exp2f(s[i][1] - base);
        seen.sum += p[i][0] + p[i][1];
    }
    PAGES::add(pages, p, is_seen, old, seen.acc);
}

/* ---- splits ---------------------------------------------------------------------------------- */

/* The block's warps together: to `out` whole, or to `partials`. */
template <class PAGES, int HD>
__device__ __forceinline__ void meet(const seen_t<PAGES::n_acc> &seen, uint8_t *memory,
                                     const kri_cu_attn_t &a, uint32_t row, uint32_t head_begin,
                                     uint32_t n_heads) {
    __shared__ float mosts[WARPS][HEADS], sums[WARPS][HEADS];
    /* [WARPS], where the rings were; padded against conflicts of banks */
    float(*all)[HEADS][HD + 8] = (float(*)[HEADS][HD + 8])memory;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float sum = seen.sum;
#pragma unroll
    for (int x = 4; x < 32; x *= 2) sum += __shfl_xor_sync(~0u, sum, x);
    __syncthreads();
    PAGES::put(seen.acc, all[warp][lane % 4]);
    if (lane < 4) mosts[warp][lane] = seen.most, sums[warp][lane] = sum;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n_heads * (HD / 4); i += 32 * WARPS) {
        const uint32_t g = i / (HD / 4), d = i % (HD / 4) * 4, head = head_begin + g;
        float top = -INFINITY, total = 0.0f;
        float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        for (int w = 0; w < WARPS; w++) top = fmaxf(top, mosts[w][g]);
        for (int w = 0; w < WARPS; w++) {
            const float part = top == -INFINITY ? 0.0f : exp2f(mosts[w][g] - top);
            const float4 x = *(const float4 *)(all[w][g] + d);
            value.x += part * x.x, value.y += part * x.y;
            value.z += part * x.z, value.w += part * x.w;
            total += part * sums[w][g];
        }
        if (a.n_splits == 1) {
            *(float4 *)(a.out + ((uint64_t)row * a.n_heads + head) * HD + d) = make_float4(
                value.x / total, value.y / total, value.z / total, value.w / total);
            continue;
        }
        float *partial = a.partials + (((uint64_t)blockIdx.z * a.n_heads + head) * a.n_splits +
                                       blockIdx.x) * (HD + KRI_CU_PARTIAL);
        *(float4 *)(partial + d) = value;
        if (d == 0) *(float2 *)(partial + HD) = make_float2(top, total);
    }
}

/* What the last block of a row's heads does: its splits together, a warp for each head. Loads of
 * many splits are on their way at once: one after the other they would be most of a short step. */
template <int HD>
__device__ __forceinline__ void merge_splits(const kri_cu_attn_t &a, uint32_t row, uint32_t head) {
    constexpr uint32_t n = HD + KRI_CU_PARTIAL, pairs = HD / 64, bundle = HD == 256 ? 16 : 32;
    const uint32_t lane = threadIdx.x % 32;
    const float *from = a.partials + ((uint64_t)blockIdx.z * a.n_heads + head) * a.n_splits * n;
    float2 *out = (float2 *)(a.out + ((uint64_t)row * a.n_heads + head) * HD);
    float most = -INFINITY, total = 0.0f;
    float2 values[pairs] = {};
    for (uint32_t begin = 0; begin < a.n_splits; begin += bundle) {
        float2 loaded[bundle][pairs], own = make_float2(-INFINITY, 0.0f); /* a lane's split's */
        if (lane < bundle && begin + lane < a.n_splits)
            own = __ldcg((const float2 *)(from + (begin + lane) * n + HD));
        /* Past the last split the last again, with weight 0. */
#pragma unroll
        for (uint32_t u = 0; u < bundle; u++)
#pragma unroll
            for (uint32_t i = 0; i < pairs; i++) {
                const uint32_t split = min(begin + u, a.n_splits - 1);
                loaded[u][i] = __ldcg((const float2 *)(from + split * n) + lane + 32 * i);
            }
        float top = fmaxf(most, own.x);
        for (int i = 16; i > 0; i /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, i));
        const float base = top == -INFINITY ? 0.0f : top, old = exp2f(most - base);
        const float weight = exp2f(own.x - base);
        most = top;
        total = total * old + kri_warp_sum(weight * own.y);
#pragma unroll
        for (uint32_t i = 0; i < pairs; i++) values[i].x *= old, values[i].y *= old;
#pragma unroll
        for (uint32_t u = 0; u < bundle; u++) {
            const float part = __shfl_sync(~0u, weight, u);
#pragma unroll
            for (uint32_t i = 0; i < pairs; i++) {
                values[i].x += part * loaded[u][i].x;
                values[i].y += part * loaded[u][i].y;
            }
        }
    }
#pragma unroll
    for (uint32_t i = 0; i < pairs; i++)
        out[lane + 32 * i] = make_float2(values[i].x / total, values[i].y / total);
}

/* Whether this block is the last of its row and heads; what the others wrote is visible then: one
 * thread's fences stand for those that it meets at the barriers. */
__device__ __forceinline__ bool is_last_split(const kri_cu_attn_t &a) {
    __shared__ uint32_t is_last;
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t *counter = a.counters + blockIdx.z * gridDim.y + blockIdx.y;
        __threadfence();
        is_last = atomicInc(counter, a.n_splits - 1) == a.n_splits - 1; /* it is 0 again then */
        __threadfence();
    }
    __syncthreads();
    return is_last;
}

/* ---- decode ---------------------------------------------------------------------------------- */

/* A warp's pages, n_pages side by side as one stage, through its ring. */
template <class PAGES> struct ring_t {
    static constexpr uint32_t stage = PAGES::n_pages * PAGES::page_bytes;
    const kri_cu_attn_t &a;
    const uint32_t *table;
    uint64_t head;           /* where the KV head lies in a page */
    uint32_t at;             /* of the ring in shared memory */
    uint32_t begin, pages_end; /* the warp's first page, where the block's end */
    uint32_t first, end;     /* keys that count, and are in pages already */
    uint32_t ids;            /* of this lane's page of 32 */

    __device__ uint32_t page_of(uint32_t i) const { /* the warp's page i */
        return begin + i / PAGES::n_pages * (WARPS * PAGES::n_pages) + i % PAGES::n_pages;
    }
    /* Stage i; in order, once each. */
    __device__ void fetch(uint32_t i) {
#pragma unroll
        for (uint32_t j = 0; j < PAGES::n_pages; j++) {
            const uint32_t k = i * PAGES::n_pages + j, page = page_of(k), key = page * 16;
            if (page >= pages_end) break;
            const uint32_t ahead = page_of(k + threadIdx.x % 32);
            if (k % 32 == 0 && ahead < pages_end) ids = table[ahead];
            const uint32_t id = __shfl_sync(~0u, ids, k % 32);
            PAGES::fetch(at + i % PAGES::n_stages * stage + j * PAGES::page_bytes, a.kv,
                         a.kv.pool + id * a.kv.page_bytes + head, first > key ? first - key : 0,
                         end > key ? end - key : 0);
        }
        kri_copy_commit();
    }
};

/* grid (splits, KV heads * chunks of query heads, rows), 128 threads, rings of WARPS warps */
template <class PAGES, int HD> __device__ __forceinline__ void decode(const kri_cu_attn_t &a) {
    KRI_SHARED_MEMORY(memory);
    __shared__ __align__(16) row_t<HD> own;
    const uint32_t share = a.n_heads / a.n_kv_heads, n_chunks = (share + HEADS - 1) / HEADS;
    const uint32_t kv_head = blockIdx.y / n_chunks, chunk = blockIdx.y % n_chunks;
    const uint32_t head_begin = kv_head * share + chunk * HEADS;
    const uint32_t n_heads = min(HEADS, share - chunk * HEADS);
    const uint32_t row = a.step.decode_rows[blockIdx.z];
    const uint32_t last = (uint32_t)a.step.positions[row], first = kri_first_key(last, a.kv.window);
    const uint32_t *table =
        a.step.tables + a.step.seqs[a.step.row_seq[row]].table[a.kv.group];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t each = (last / 16 - first / 16 + a.n_splits) / a.n_splits;
    const uint32_t begin = first / 16 + blockIdx.x * each;
    const uint32_t end = min(begin + each, last / 16 + 1);
    const uint64_t block = (uint64_t)kv_head * a.kv.block_bytes;
    const bool is_fresh = a.rotate.cos_sin, has_last = begin <= last / 16 && last / 16 < end;
    constexpr uint32_t stage = ring_t<PAGES>::stage;
    const uint32_t mine = warp * PAGES::n_stages * stage;
    ring_t<PAGES> ring = {a, table, block, kri_shared(memory) + mine,
                          begin + warp * PAGES::n_pages, end, first, is_fresh ? last : last + 1,
                          0};
    if (!is_fresh) kri_begin(); /* pages may be of this step */
    for (uint32_t i = 0; i < PAGES::n_stages - 1; i++) ring.fetch(i);
    if (is_fresh) {
        if (has_last && last % 16 != 0)
            PAGES::load_first(own, a.kv, a.kv.pool + table[last / 16] * a.kv.page_bytes + block);
        kri_begin();
        rotate_row<HD>(own, a, row, head_begin, n_heads, kv_head, has_last);
    } else if (warp < n_heads) {
        const float *x = a.qkv + (uint64_t)row * (a.n_heads + 2 * a.n_kv_heads) * HD;
        for (uint32_t i = lane; i < HD; i += 32) own.x[warp][i] = x[(head_begin + warp) * HD + i];
    }
    __syncthreads();
    finish_query<PAGES, HD>(own, is_fresh && PAGES::dtype == KRI_CU_I8, n_heads);
    if (is_fresh && has_last) {
        uint8_t *page = a.kv.pool + table[last / 16] * a.kv.page_bytes + block;
        PAGES::code(own, last % 16 != 0);
        if (chunk == 0 && warp < 2) PAGES::store(own, a.kv, page, last % 16, warp);
    }
    __syncthreads();
    uint32_t q[PAGES::n_query];
    seen_t<PAGES::n_acc> seen = {{}, -INFINITY, 0.0f};
    PAGES::load_query(own, q);
    for (uint32_t i = 0; ring.page_of(i * PAGES::n_pages) < end; i++) {
        uint8_t *pages = memory + mine + i % PAGES::n_stages * stage;
        const uint32_t page = ring.page_of(i * PAGES::n_pages);
        kri_copy_wait<PAGES::n_stages - 2>();
        __syncwarp(); /* what others copied; and they are done with the stage before */
        ring.fetch(i + PAGES::n_stages - 1);
        if (is_fresh && has_last && last / 16 - page < PAGES::n_pages) {
            PAGES::patch(pages + (last / 16 - page) * PAGES::page_bytes, own, last % 16);
            __syncwarp();
        }
        bool is_seen[PAGES::n_pages][2];
#pragma unroll
        for (uint32_t j = 0; j < 2 * PAGES::n_pages; j++) {
            const uint32_t key = (page + j / 2) * 16 + lane / 4 * 2 + j % 2;
            is_seen[j / 2][j % 2] = key >= first && key <= last && page + j / 2 < end;
        }
        see<PAGES>(seen, pages, q, own.most[lane % 4], own.sum[lane % 4], a, is_seen);
    }
    kri_copy_wait<0>();
    meet<PAGES, HD>(seen, memory, a, row, head_begin, n_heads);
    if (a.n_splits > 1 && is_last_split(a) && warp < n_heads)
        merge_splits<HD>(a, row, head_begin + warp);
}

template <class PAGES> constexpr uint32_t rings = WARPS * PAGES::n_stages * ring_t<PAGES>::stage;
template <int HD> using int_pages_t = byte_pages_t<HD, KRI_CU_I8>;
static_assert(rings<half_pages_t<64>> == KRI_CU_DECODE_F16_64 &&
              rings<half_pages_t<128>> == KRI_CU_DECODE_F16_128 &&
              rings<half_pages_t<256>> == KRI_CU_DECODE_F16_256, "kernels.def has these sizes");
static_assert(rings<int_pages_t<64>> == KRI_CU_DECODE_8_64 &&
              rings<int_pages_t<128>> == KRI_CU_DECODE_8_128 &&
              rings<int_pages_t<256>> == KRI_CU_DECODE_8_256, "and these, for fp8 too");

#define DECODES(hd)                                                                              \
    KERNEL __launch_bounds__(128) kri_attn_decode_f16_##hd(const kri_cu_attn_t a) {              \
        decode<half_pages_t<hd>, hd>(a);                                                         \
    }                                                                                            \
    KERNEL __launch_bounds__(128) kri_attn_decode_i8_##hd(const kri_cu_attn_t a) {               \
        decode<byte_pages_t<hd, KRI_CU_I8>, hd>(a);                                              \
    }                                                                                            \
    KERNEL __launch_bounds__(128) kri_attn_decode_f8_##hd(const kri_cu_attn_t a) {               \
        decode<byte_pages_t<hd, KRI_CU_F8>, hd>(a);                                              \
    }
DECODES(64)
DECODES(128)
DECODES(256)
