/* weights.c: fills a model's packed weights: from the image of an earlier run where there is one,
 * else by packing all matrices in parallel, whose file pages are released slice by slice, so that
 * weights are in memory once. The image of what was packed is written in the background. */
#include "base/checked.h"
#include "base/error.h"
#include "model/model.h"
#include "model/packed_image.h"
#include "ops/pack.h"

/* Slices bound the file pages that are in memory together with their packed copy. */
#define SLICE_BYTES ((size_t)8 << 20)

/* Groups [begin, end) of one matrix, split over the threads. */
typedef struct pack_run_s {
    const kri_packed_tensor_t *tensor;
    uint8_t *dst;
    size_t begin, end;
} pack_run_t;

static size_t row_bytes(const kri_tensor_t *x) { return (size_t)(x->n_bytes / x->shape[0]); }

static void pack_thread(void *ctx, uint32_t thread_index, uint32_t n_threads) {
    const pack_run_t *run = ctx;
    const kri_tensor_t *x = &run->tensor->source->tensor;
    uint64_t begin, end;
    kri_split(run->end - run->begin, 1, thread_index, n_threads, &begin, &end);
    kri_pack_rows(x->dtype, x->data, row_bytes(x), (size_t)x->shape[0], run->tensor->n_in,
                  run->begin + (size_t)begin, run->begin + (size_t)end, run->dst);
}

kr_status_t kri_weights_pack(struct kr_model_s *m, const kri_packed_tensor_t *tensor,
                             kri_pool_t *pool, uint32_t n_threads,
                             const kr_model_params_t *params, kr_error_t *error) {
    const kri_tensor_t *x = &tensor->source->tensor;
    const size_t n_groups = kri_ceil_div((size_t)x->shape[0], KRI_GROUP_ROWS);
    const size_t group_file_bytes = row_bytes(x) * KRI_GROUP_ROWS;
    const size_t step = kri_ceil_div(SLICE_BYTES, group_file_bytes);
    pack_run_t run = {.tensor = tensor, .dst = m->packed + tensor->offset};
    for (size_t at = 0; at < n_groups; at += step) {
        const size_t done = tensor->offset + at * tensor->part->group_bytes;
        if (params && params->progress &&
            params->progress("pack", done, m->packed_bytes, params->progress_user)) {
            return KRI_FAIL(error, KR_E_CANCELLED, NULL, "loading was cancelled");
        }
        run.begin = at;
        run.end = at + step < n_groups ? at + step : n_groups;
        kri_pool_run(pool, n_threads, pack_thread, &run);
        kri_gguf_release(m->gguf, tensor->source, at * group_file_bytes,
                         run.end * group_file_bytes);
    }
    tensor->part->packed = run.dst;
    return KR_OK;
}

kr_status_t kri_weights_load(struct kr_model_s *m, const kr_model_params_t *params,
                             kr_error_t *error) {
    /* Taken also when the image is mapped (it then costs no memory): what the first use finds
     * damaged is packed into it, at a time when nothing may be allocated. */
    m->packed = kri_pages_alloc(m->packed_bytes);
    if (!m->packed) {
        return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for %zu bytes of packed weights",
                        m->packed_bytes);
    }
    /* All threads read all weights over time; on several memory nodes no single one should have
     * to deliver them. */
    if (params->n_threads != 1) (void)kri_pages_interleave(m->packed, m->packed_bytes);
    const uint32_t n_threads = params->n_threads ? params->n_threads : kri_cpu_count();
    kri_pool_t *pool = NULL;
    kr_status_t status = kri_pool_shared(n_threads, &pool);
    if (status != KR_OK) {
        return KRI_FAIL(error, status, "n_threads", "cannot %s %u threads%s",
                        status == KR_E_UNSUPPORTED ? "pin" : "start", n_threads,
                        status == KR_E_UNSUPPORTED ? ": there are fewer cores" : "");
    }
    KR_TRY(kri_image_map(m, error));
    if (!kri_image_is_mapped(m)) {
        for (uint32_t i = 0; i < m->n_packed_tensors; i++) {
            KR_TRY(kri_weights_pack(m, &m->packed_tensors[i], pool, n_threads, params, error));
        }
        if (params->progress) {
            params->progress("pack", m->packed_bytes, m->packed_bytes, params->progress_user);
        }
    }
    kri_image_write(m, params);
    return KR_OK;
}
