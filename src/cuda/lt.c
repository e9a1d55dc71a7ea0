/* lt.c: see lt.h. Types and numbers are those of cublasLt.h, by their sizes. Row-major c = a b^T is
 * column-major c^T = b a^T: b is cuBLAS' first operand, transposed. */
#include "cuda/lt.h"

#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "base/os.h"

#define COMPUTE_F32 68 /* CUBLAS_COMPUTE_32F */
#define REAL_F32 0     /* CUDA_R_32F */
#define REAL_BF16 14   /* CUDA_R_16BF */
#define OPERATION_T 1  /* CUBLAS_OP_T */
#define DESC_TRANS_A 3 /* CUBLASLT_MATMUL_DESC_TRANSA */
#define PREFERENCE_WORKSPACE 1
#define N_PLANS 128u

/* cublasLtMatmulHeuristicResult_t */
typedef struct heuristic_s {
    uint64_t algorithm[8];
    size_t workspace_bytes;
    int state;
    float waves;
    int reserved[4];
} heuristic_t;

typedef struct library_s {
    int (*create)(void **handle);
    int (*destroy)(void *handle);
    int (*desc_create)(void **desc, int compute, int scale);
    int (*desc_destroy)(void *desc);
    int (*desc_set)(void *desc, int attribute, const void *value, size_t n_bytes);
    int (*layout_create)(void **layout, int type, uint64_t n_rows, uint64_t n_columns, int64_t ld);
    int (*layout_destroy)(void *layout);
    int (*preference_create)(void **preference);
    int (*preference_destroy)(void *preference);
    int (*preference_set)(void *preference, int attribute, const void *value, size_t n_bytes);
    int (*heuristic)(void *handle, void *desc, void *a, void *b, void *c, void *d,
                     void *preference, int n_wanted, heuristic_t *results, int *n_found);
    int (*matmul)(void *handle, void *desc, const void *alpha, const void *a, void *layout_a,
                  const void *b, void *layout_b, const void *beta, const void *c, void *layout_c,
                  void *d, void *layout_d, const void *algorithm, void *workspace,
                  size_t workspace_bytes, void *stream);
} library_t;

static const struct { const char *name; size_t offset; } symbols[] = {
    {"cublasLtCreate", offsetof(library_t, create)},
    {"cublasLtDestroy", offsetof(library_t, destroy)},
    {"cublasLtMatmulDescCreate", offsetof(library_t, desc_create)},
    {"cublasLtMatmulDescDestroy", offsetof(library_t, desc_destroy)},
    {"cublasLtMatmulDescSetAttribute", offsetof(library_t, desc_set)},
    {"cublasLtMatrixLayoutCreate", offsetof(library_t, layout_create)},
    {"cublasLtMatrixLayoutDestroy", offsetof(library_t, layout_destroy)},
    {"cublasLtMatmulPreferenceCreate", offsetof(library_t, preference_create)},
    {"cublasLtMatmulPreferenceDestroy", offsetof(library_t, preference_destroy)},
    {"cublasLtMatmulPreferenceSetAttribute", offsetof(library_t, preference_set)},
    {"cublasLtMatmulAlgoGetHeuristic", offsetof(library_t, heuristic)},
    {"cublasLtMatmul", offsetof(library_t, matmul)},
};

/* How one shape is computed. */
typedef struct plan_s {
    uint32_t m, n, k;
    bool is_rounded;
    uint64_t ldc;
    void *a, *b, *c; /* layouts; NULL a: there is no algorithm */
    heuristic_t found;
} plan_t;

struct kri_cuda_lt_s {
    library_t library;
    kri_cuda_t *cuda;
    void *handle, *desc, *preference, *workspace;
    plan_t plans[N_PLANS];
    uint32_t n_plans, next_plan;
};

static bool find_library(library_t *library) {
    static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12"};
    void *handle = NULL;
    for (size_t i = 0; !handle && i < sizeof names / sizeof *names; i++) {
        handle = kri_library_open(names[i]);
    }
    for (size_t i = 0; handle && i < sizeof symbols / sizeof *symbols; i++) {
        void *symbol = kri_library_symbol(handle, symbols[i].name);
        if (!symbol) return false;
        memcpy((char *)library + symbols[i].offset, &symbol, sizeof symbol);
    }
    return handle != NULL;
}

static bool prepare(kri_cuda_lt_t *lt) {
    const int operation = OPERATION_T;
    const uint64_t workspace_bytes = KRI_CUDA_LT_BYTES;
    return kri_cuda_alloc(lt->cuda, "products", KRI_CUDA_LT_BYTES, &lt->workspace, NULL) == KR_OK &&
           lt->library.create(&lt->handle) == 0 &&
           lt->library.desc_create(&lt->desc, COMPUTE_F32, REAL_F32) == 0 &&
           lt->library.desc_set(lt->desc, DESC_TRANS_A, &operation, sizeof operation) == 0 &&
           lt->library.preference_create(&lt->preference) == 0 &&
           lt->library.preference_set(lt->preference, PREFERENCE_WORKSPACE, &workspace_bytes,
                                      sizeof workspace_bytes) == 0;
}

kri_cuda_lt_t *kri_cuda_lt_open(kri_cuda_t *cuda) {
    kri_cuda_lt_t *lt = kri_calloc(1, sizeof *lt, "cublaslt");
    if (!lt) return NULL;
    lt->cuda = cuda;
    if (find_library(&lt->library) && prepare(lt)) return lt;
    kri_log(KR_LOG_INFO, "cuBLASLt is not here: prompts are computed by kr's own kernels");
    kri_cuda_lt_close(lt);
    return NULL;
}

static void forget(kri_cuda_lt_t *lt, plan_t *plan) {
    if (plan->a) (void)lt->library.layout_destroy(plan->a);
    if (plan->b) (void)lt->library.layout_destroy(plan->b);
    if (plan->c) (void)lt->library.layout_destroy(plan->c);
    *plan = (plan_t){0};
}

void kri_cuda_lt_close(kri_cuda_lt_t *lt) {
    if (!lt) return;
    for (uint32_t i = 0; i < lt->n_plans; i++) forget(lt, &lt->plans[i]);
    if (lt->preference) (void)lt->library.preference_destroy(lt->preference);
    if (lt->desc) (void)lt->library.desc_destroy(lt->desc);
    if (lt->handle) (void)lt->library.destroy(lt->handle);
    kri_cuda_free(lt->cuda, lt->workspace, KRI_CUDA_LT_BYTES);
    kri_free(lt);
}

static plan_t plan_of(const kri_cu_gemm_t *g) {
    return (plan_t){.m = g->m, .n = g->n, .k = g->k, .is_rounded = g->rounded != NULL,
                    .ldc = g->ldc};
}

static bool make_plan(kri_cuda_lt_t *lt, const kri_cu_gemm_t *g, plan_t *plan) {
    int n_found = 0;
    *plan = plan_of(g);
    return lt->library.layout_create(&plan->a, REAL_BF16, g->k, g->n, g->k) == 0 &&
           lt->library.layout_create(&plan->b, REAL_BF16, g->k, g->m, g->k) == 0 &&
           lt->library.layout_create(&plan->c, g->rounded ? REAL_BF16 : REAL_F32, g->n, g->m,
                                     (int64_t)g->ldc) == 0 &&
           lt->library.heuristic(lt->handle, lt->desc, plan->a, plan->b, plan->c, plan->c,
                                 lt->preference, 1, &plan->found, &n_found) == 0 &&
           n_found == 1 && plan->found.state == 0;
}

static plan_t *find_plan(kri_cuda_lt_t *lt, const kri_cu_gemm_t *g) {
    for (uint32_t i = 0; i < lt->n_plans; i++) {
        plan_t *p = &lt->plans[i];
        if (p->m == g->m && p->n == g->n && p->k == g->k && p->ldc == g->ldc &&
            p->is_rounded == (g->rounded != NULL)) {
            return p;
        }
    }
    plan_t *plan = &lt->plans[lt->n_plans < N_PLANS ? lt->n_plans++ : lt->next_plan++ % N_PLANS];
    forget(lt, plan);
    if (!make_plan(lt, g, plan)) {
        forget(lt, plan);
        *plan = plan_of(g); /* remembered as none */
    }
    return plan;
}

bool kri_cuda_lt_gemm(kri_cuda_lt_t *lt, kri_cuda_stream_t *stream, const kri_cu_gemm_t *g) {
    const float alpha = 1.0f, beta = g->accumulate ? 1.0f : 0.0f;
    if (stream->error) return true; /* nothing is done after an error */
    const plan_t *plan = find_plan(lt, g);
    void *c = g->rounded ? (void *)g->rounded : g->c;
    if (!plan->a) return false;
    return lt->library.matmul(lt->handle, lt->desc, &alpha, g->b, plan->a, g->a, plan->b, &beta,
                              c, plan->c, c, plan->c, plan->found.algorithm, lt->workspace,
                              KRI_CUDA_LT_BYTES, stream->handle) == 0;
}
