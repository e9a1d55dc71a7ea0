/* bench_cuda.c: attention of prompts on the CUDA device (`bench_cuda`): one JSON object a line with
 * the shape and the best of several rounds. Keys, values and queries are random; queries are put
 * back before each call, because the result takes their place, and that copy is timed apart.
 * bench/cuda_attention.py puts it beside PyTorch.
 * Usage: bench_cuda HEAD_DIM N_HEADS N_KV_HEADS N_SEQS N_TOKENS [N_BEFORE [WINDOW [SOFTCAP]]] */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "cuda/exec_cuda.h"

#define N_ROUNDS 7
#define N_CALLS 20

typedef struct shape_s {
    uint32_t head_dim, n_heads, n_kv_heads, n_seqs, n_tokens, n_before, window;
    float softcap;
} shape_t;

typedef struct bench_s {
    shape_t shape;
    kri_cuda_t *cuda;
    kri_cuda_stream_t stream;
    kri_cuda_exec_t ops;
    kri_exec_t exec;
    kri_step_t step;
    kri_step_seq_t *seqs;
    kri_kv_group_t group;
    kri_attn_desc_t desc;
    uint8_t *queries; /* a copy of ops.bf16 */
    size_t query_bytes;
    float *qkv, *out, *cos_sin;
} bench_t;

static void check(bool is_right, const char *what) {
    if (is_right) return;
    fprintf(stderr, "bench_cuda: %s\n", what);
    exit(1);
}

static void *take(bench_t *b, size_t n_bytes) {
    kr_error_t error;
    void *ptr = NULL;
    kr_error_init(&error);
    check(kri_cuda_alloc(b->cuda, "bench", n_bytes, &ptr, &error) == KR_OK, error.message);
    return ptr;
}

static void *put(bench_t *b, const void *from, size_t n_bytes) {
    void *to = take(b, n_bytes);
    kri_cuda_copy_in(&b->stream, to, from, n_bytes);
    check(kri_cuda_wait(&b->stream, NULL) == KR_OK, "a copy failed");
    return to;
}

static void *host(size_t n, size_t item) {
    void *ptr = calloc(n, item);
    check(ptr != NULL, "no memory");
    return ptr;
}

/* About normal: the sum of four uniform numbers. */
static float random_float(uint64_t *state) {
    float sum = 0;
    for (int i = 0; i < 4; i++) {
        *state = *state * 6364136223846793005u + 1442695040888963407u;
        sum += (float)(*state >> 40) / 16777216.0f - 0.5f;
    }
    return sum * 1.732f;
}

static float *random_floats(bench_t *b, size_t n) {
    uint64_t state = 1;
    float *x = host(n, sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = random_float(&state);
    float *to = put(b, x, n * sizeof *x);
    free(x);
    return to;
}

/* Tables of a step whose sequences all have n_rows rows behind `pos`. */
static void make_step(bench_t *b, uint32_t pos, uint32_t n_rows) {
    const shape_t *s = &b->shape;
    const uint32_t n = s->n_seqs * n_rows;
    const uint32_t tile_rows = kri_cuda_tile_rows(KR_DTYPE_F16, s->head_dim);
    const uint32_t n_pages = (s->n_before + s->n_tokens + 15) / 16;
    int32_t *positions = host(n, sizeof *positions);
    uint32_t *row_seq = host(n, sizeof *row_seq), *table = host(s->n_seqs * n_pages, 4);
    kri_cu_tile_t *tiles = host(n / tile_rows + s->n_seqs, sizeof *tiles);
    kri_cu_seq_t *seqs = host(s->n_seqs, sizeof *seqs);
    b->ops.n_tiles = 0;
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        seqs[i] = (kri_cu_seq_t){.pos_begin = pos, .row_begin = i * n_rows, .table = {i * n_pages}};
        b->seqs[i] = (kri_step_seq_t){.seq = i, .row_begin = i * n_rows, .n_rows = n_rows,
                                      .pos_begin = pos};
        for (uint32_t r = 0; r < n_rows; r++) {
            positions[i * n_rows + r] = (int32_t)(pos + r);
            row_seq[i * n_rows + r] = i;
            if (r % tile_rows > 0) continue;
            tiles[b->ops.n_tiles++] = (kri_cu_tile_t){
                i, i * n_rows + r, n_rows - r < tile_rows ? n_rows - r : tile_rows, 0};
        }
        for (uint32_t p = 0; p < n_pages; p++) /* pages of the sequences in turns */
            table[i * n_pages + p] = p * s->n_seqs + i;
    }
    b->ops.step = (kri_cu_step_t){
        .positions = put(b, positions, n * sizeof *positions),
        .row_seq = put(b, row_seq, n * sizeof *row_seq),
        .tiles = put(b, tiles, b->ops.n_tiles * sizeof *tiles),
        .seqs = put(b, seqs, s->n_seqs * sizeof *seqs),
        .tables = put(b, table, (size_t)s->n_seqs * n_pages * 4)};
    b->step = (kri_step_t){.seqs = b->seqs, .n_seqs = s->n_seqs, .n_rows = n, .n_groups = 1,
                           .groups = &b->group};
    free(positions);
    free(row_seq);
    free(table);
    free(tiles);
    free(seqs);
}

/* Pages with keys and values of all positions, and queries of the last n_tokens. */
static void prepare(bench_t *b) {
    const shape_t *s = &b->shape;
    const uint32_t n_all = s->n_before + s->n_tokens, width = s->n_heads + 2 * s->n_kv_heads;
    const size_t n_rows = (size_t)s->n_seqs * n_all;
    b->seqs = host(s->n_seqs, sizeof *b->seqs);
    b->desc = (kri_attn_desc_t){.n_heads = s->n_heads, .n_kv_heads = s->n_kv_heads,
                                .head_dim = s->head_dim, .n_rot = s->head_dim,
                                .scale = 1.0f / sqrtf((float)s->head_dim), .softcap = s->softcap};
    b->group = (kri_kv_group_t){.dtype = KR_DTYPE_F16, .n_layers = 1, .head_dim = s->head_dim,
                                .n_kv_heads = s->n_kv_heads, .window = s->window};
    check(kri_kv_page_bytes(KR_DTYPE_F16, 1, s->n_kv_heads, s->head_dim, &b->group.page_bytes),
          "pages are too large");
    b->group.pool = take(b, (size_t)s->n_seqs * ((n_all + 15) / 16) * b->group.page_bytes);
    b->query_bytes = (size_t)s->n_seqs * s->n_tokens * s->n_heads * s->head_dim * 2;
    b->ops = (kri_cuda_exec_t){.stream = &b->stream,
                               .bf16 = take(b, n_rows * s->n_heads * s->head_dim * 2),
                               .counters = take(b, KRI_CUDA_COUNTERS(160) * sizeof(uint32_t))};
    kri_cuda_fill(&b->stream, b->ops.counters, 0, KRI_CUDA_COUNTERS(160) * sizeof(uint32_t));
    b->exec = (kri_exec_t){.ops = &kri_cuda_ops, .device = &b->ops, .n_threads = 1,
                           .step = &b->step};
    b->qkv = random_floats(b, n_rows * width * s->head_dim);
    b->out = take(b, 16); /* never written: the result is in bf16 */
    b->cos_sin = take(b, n_rows * s->head_dim * sizeof(float));
    b->queries = take(b, b->query_bytes);
    for (int last = 0; last < 2; last++) {
        make_step(b, last ? s->n_before : 0, last ? s->n_tokens : n_all);
        kri_op_rope_table(&b->exec, 10000.0f, 1.0f, NULL, s->head_dim, b->cos_sin);
        kri_op_rope_append(&b->exec, &b->desc, b->cos_sin, b->qkv);
    }
    kri_cuda_copy_within(&b->stream, b->queries, b->ops.bf16, b->query_bytes);
}

/* Milliseconds of a call with queries put back before, or of putting them back alone. */
static double round_ms(bench_t *b, bool attends) {
    check(kri_cuda_wait(&b->stream, NULL) == KR_OK, "the device failed");
    const uint64_t begin = kri_clock_ns();
    for (int i = 0; i < N_CALLS; i++) {
        kri_cuda_copy_within(&b->stream, b->ops.bf16, b->queries, b->query_bytes);
        if (attends) kri_op_attention(&b->exec, &b->desc, b->qkv, b->out);
    }
    check(kri_cuda_wait(&b->stream, NULL) == KR_OK, "the device failed");
    return (double)(kri_clock_ns() - begin) / N_CALLS / 1e6;
}

static double best_ms(bench_t *b, bool attends) {
    double best = HUGE_VAL;
    for (int i = 0; i < N_ROUNDS; i++) best = fmin(best, round_ms(b, attends));
    return best;
}

static uint32_t number(int argc, char **argv, int i) {
    return i < argc ? (uint32_t)strtoul(argv[i], NULL, 10) : 0;
}

int main(int argc, char **argv) {
    static bench_t b;
    kr_error_t error;
    kr_error_init(&error);
    const shape_t s = {number(argc, argv, 1), number(argc, argv, 2), number(argc, argv, 3),
                       number(argc, argv, 4), number(argc, argv, 5), number(argc, argv, 6),
                       number(argc, argv, 7), (float)number(argc, argv, 8)};
    check(argc >= 6 && argc <= 9 && s.head_dim > 0 &&
              kri_cuda_tile_rows(KR_DTYPE_F16, s.head_dim) > 0 &&
              s.n_heads <= 256 && s.n_kv_heads > 0 && s.n_heads % s.n_kv_heads == 0 &&
              s.n_seqs > 0 && s.n_seqs <= 64 && s.n_tokens > 0 && s.n_tokens <= 1u << 17 &&
              s.n_before <= 1u << 17,
          "usage: bench_cuda HEAD_DIM N_HEADS N_KV_HEADS N_SEQS N_TOKENS [N_BEFORE [WINDOW "
          "[SOFTCAP]]]");
    b.shape = s;
    check(kri_cuda_open(&b.cuda, &error) == KR_OK, error.message);
    check(kri_cuda_stream_open(b.cuda, &b.stream, &error) == KR_OK, error.message);
    prepare(&b);
    const double ms = best_ms(&b, true) - best_ms(&b, false);
    const double n = s.n_tokens, flops = 4.0 * s.n_seqs * s.n_heads * s.head_dim *
                                         (n * s.n_before + n * n / 2);
    printf("{\"op\": \"attention\", \"head_dim\": %u, \"n_heads\": %u, \"n_kv_heads\": %u, "
           "\"n_seqs\": %u, \"n_tokens\": %u, \"n_before\": %u, \"window\": %u, \"softcap\": %g, "
           "\"ms\": %.4f, \"tflops\": %.1f}\n", s.head_dim, s.n_heads, s.n_kv_heads, s.n_seqs,
           s.n_tokens, s.n_before, s.window, (double)s.softcap, ms, flops / ms / 1e9);
    return 0; /* the device's memory goes with the process */
}
