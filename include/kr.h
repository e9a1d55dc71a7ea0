/* kr.h: the public interface of libkr. What is not in this file is not API.
 *
 * Nouns, their lifetimes and threads:
 *   kr_arena_t      bump allocator; one thread at a time.
 *   kr_telemetry_t  counters, histograms, gauges; any thread, no lock on the recording path.
 *   kr_model_t      an opened model (mapped weights, tokenizer, chat template); immutable and
 *                   reference-counted, any thread.
 *   kr_tensor_t     typed memory from a pool; reference-counted, any thread.
 *   kr_session_t    N sequences over one model with a private paged KV pool; the caller drives
 *                   it; one thread at a time (kr_session_cancel: any thread).
 *   kr_engine_t     many requests at once over one or more models, on a thread of its own; any
 *                   thread.
 *   kr_request_t    one generation of an engine; any thread.
 *   kr_sampler_t    picks a token from a row of logits; one thread at a time.
 *   kr_detokenizer_t  tokens to UTF-8 text with stop strings; one thread at a time.
 *
 * Rules. A handle is an opaque pointer passed by value; destroying NULL is a no-op. Every
 * fallible function returns kr_status_t and leaves its outputs untouched unless it returns
 * KR_OK (exceptions are stated). `kr_error_t *error` is optional everywhere: NULL, or a
 * caller-owned struct prepared by kr_error_init. Structs that callers fill begin with
 * struct_bytes and come from their init function; a smaller struct means defaults for the
 * missing fields, a larger one with a non-zero tail is KR_E_UNSUPPORTED. Text is a pointer plus
 * a length in bytes, UTF-8, and need not end in NUL unless it is called a C string. Shapes are
 * written outermost first. The library writes to no stdio, installs no signal handler and never
 * ends the process. */
#ifndef KR_H
#define KR_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define KR_API
#else
#define KR_API __attribute__((visibility("default")))
#endif

/* ---- version ------------------------------------------------------------------------------ */

#define KR_VERSION_MAJOR 0
#define KR_VERSION_MINOR 1
#define KR_VERSION_PATCH 0
#define KR_ABI_VERSION 1

/* kr_abi_version: KR_ABI_VERSION of the library that was loaded. Any thread. Since 0.1 */
KR_API uint32_t kr_abi_version(void);
/* kr_version: C string "0.1.0 (<commit>)"; static storage. Any thread. Since 0.1 */
KR_API const char *kr_version(void);
/* kr_commit: C string, short commit id of the build or "unknown"; static. Since 0.1 */
KR_API const char *kr_commit(void);

/* ---- status and errors -------------------------------------------------------------------- */

/* Append-only; numbers are never reused. X(NAME, number, text) */
#define KR_STATUS_LIST(X)                                                                        \
    X(OK, 0, "ok")                                                                               \
    X(E_INVALID_ARG, 1, "invalid argument")                                                      \
    X(E_NOT_FOUND, 2, "not found")                                                               \
    X(E_EXISTS, 3, "already exists")                                                             \
    X(E_UNSUPPORTED, 4, "not supported")                                                         \
    X(E_BAD_FORMAT, 5, "malformed data")                                                         \
    X(E_TRUNCATED, 6, "data ends too early")                                                     \
    X(E_CORRUPT, 7, "checksum or digest differs")                                                \
    X(E_LIMIT, 8, "over a limit")                                                                \
    X(E_NOMEM, 9, "out of memory")                                                               \
    X(E_DEVICE_NOMEM, 10, "out of device memory")                                                \
    X(E_DEVICE_LOST, 11, "device lost")                                                          \
    X(E_IO, 12, "input/output error")                                                            \
    X(E_NOSPC, 13, "no space left")                                                              \
    X(E_BUSY, 14, "busy")                                                                        \
    X(E_TIMEOUT, 15, "timed out")                                                                \
    X(E_CANCELLED, 16, "cancelled")                                                              \
    X(E_SHUTTING_DOWN, 17, "shutting down")                                                      \
    X(E_CONTEXT_LENGTH, 18, "context length exceeded")                                           \
    X(E_NUMERIC, 19, "non-finite value computed")                                                \
    X(E_BAD_SCHEMA, 20, "bad schema")                                                            \
    X(E_BAD_TEMPLATE, 21, "bad chat template")                                                   \
    X(E_BAD_IMAGE, 22, "bad image")                                                              \
    X(E_PROTOCOL, 23, "protocol violation")                                                      \
    X(E_PERMISSION, 24, "permission denied")                                                     \
    X(E_CHANGED, 25, "file changed while in use")                                                \
    X(E_CHILD_DIED, 26, "child process died")                                                    \
    X(E_INTERNAL, 27, "internal error")

typedef int32_t kr_status_t;
#define KR_STATUS_ENUM(name, number, text) KR_##name = number,
enum { KR_STATUS_LIST(KR_STATUS_ENUM) };
#undef KR_STATUS_ENUM

/* kr_status_name: C string "KR_E_LIMIT"; "KR_?" for unknown numbers. Static. Since 0.1 */
KR_API const char *kr_status_name(kr_status_t status);
/* kr_status_text: C string "over a limit"; static. Since 0.1 */
KR_API const char *kr_status_text(kr_status_t status);

typedef struct kr_error_s {
    uint32_t struct_bytes;
    kr_status_t code;
    uint64_t offset;   /* byte offset in the input where known, else UINT64_MAX; of a prompt that is
                          too long (kr_engine_submit) the number of its tokens, at the least */
    char param[64];    /* name of the offending field or parameter, or "" */
    char message[512]; /* one line of valid UTF-8, NUL-terminated */
} kr_error_t;

/* kr_error_init: an empty error (code KR_OK). Since 0.1 */
KR_API void kr_error_init(kr_error_t *error);

/* ---- log and allocator -------------------------------------------------------------------- */

typedef int32_t kr_log_level_t;
enum { KR_LOG_ERROR = 0, KR_LOG_WARN = 1, KR_LOG_INFO = 2, KR_LOG_DEBUG = 3 };
/* `text` is one line without newline, a C string borrowed until return. May be called from any
 * thread, also from several at once. */
typedef void (*kr_log_fn)(kr_log_level_t level, const char *text, void *user);
/* kr_log_set: where log lines go; NULL (the start value) discards them. `level_max` is the most
 * detailed level wanted. Call before other threads use the library. Since 0.1 */
KR_API void kr_log_set(kr_log_fn fn, kr_log_level_t level_max, void *user);

/* Host allocator. All three see the size and a purpose tag (a static C string such as "arena").
 * `alloc` returns NULL on failure or memory aligned to at least 64 bytes. Called from every thread
 * that uses the library, also from several at once. */
typedef struct kr_allocator_s {
    uint32_t struct_bytes;
    uint32_t reserved;
    void *(*alloc)(size_t size, const char *purpose, void *user);
    void (*free)(void *ptr, size_t size, const char *purpose, void *user);
    void *user;
} kr_allocator_t;
/* kr_allocator_set: replaces the heap used by the C side of the library; NULL restores malloc.
 * Mapped files, KV pools, packed weights and the text library (Rust) do not use it.
 * Errors   KR_E_BUSY while anything is allocated (idle tensors of the pool are freed first),
 *          KR_E_INVALID_ARG.
 * Threads  before any other call. Since 0.1 */
KR_API kr_status_t kr_allocator_set(const kr_allocator_t *allocator);

typedef struct kr_memory_usage_s {
    uint32_t struct_bytes;
    uint32_t reserved;
    uint64_t bytes_now;   /* live heap bytes of the C side */
    uint64_t bytes_peak;
    uint64_t n_allocs;    /* calls since start */
} kr_memory_usage_t;
KR_API void kr_memory_usage_init(kr_memory_usage_t *usage);
/* kr_memory_usage: heap use of the C side. Any thread. KR_E_INVALID_ARG. Since 0.1 */
KR_API kr_status_t kr_memory_usage(kr_memory_usage_t *usage);

/* ---- arena -------------------------------------------------------------------------------- */

typedef struct kr_arena_s *kr_arena_t;
/* kr_arena_create: a bump allocator that grows in chunks of at least initial_size bytes.
 * Errors KR_E_INVALID_ARG (NULL out, size 0), KR_E_NOMEM. Since 0.1 */
KR_API kr_status_t kr_arena_create(size_t initial_size, kr_arena_t *arena);
/* kr_arena_alloc: `size` bytes aligned to 64, uninitialised, valid until reset or destroy.
 * Errors KR_E_INVALID_ARG, KR_E_LIMIT (size arithmetic), KR_E_NOMEM. Since 0.1 */
KR_API kr_status_t kr_arena_alloc(kr_arena_t arena, size_t size, void **ptr);
/* kr_arena_reset: forgets every allocation and keeps the memory for the next phase. Since 0.1 */
KR_API kr_status_t kr_arena_reset(kr_arena_t arena);
KR_API void kr_arena_destroy(kr_arena_t arena);

/* ---- telemetry ---------------------------------------------------------------------------- */

typedef struct kr_telemetry_s *kr_telemetry_t;
typedef struct kr_telemetry_report_s {
    uint32_t struct_bytes;
    uint32_t reserved;
    uint64_t count;            /* durations recorded, or the counter's value; gauge: 0 */
    double sum_ms, min_ms, max_ms;
    double p50_ms, p95_ms, p99_ms; /* from a log-linear histogram, relative error <= 1/32 */
    double throughput_per_s;   /* count / time since create or reset */
    double value;              /* what the gauge says now; others: 0 */
} kr_telemetry_report_t;
/* kr_telemetry_create: takes all memory that recording will need. Errors KR_E_INVALID_ARG,
 * KR_E_NOMEM, KR_E_UNSUPPORTED (library built with KR_TELEMETRY=OFF). */
KR_API kr_status_t kr_telemetry_create(kr_telemetry_t *telemetry);
/* kr_telemetry_destroy: ends the caller's reference; the memory goes with the last engine or
 * session that records into it. May follow kr_engine_destroy inside a callback at once. NULL =
 * nothing. */
KR_API void kr_telemetry_destroy(kr_telemetry_t telemetry);
/* kr_telemetry_record: one duration of a stage ("generate", "prefill", ...: metrics.def).
 * Errors KR_E_INVALID_ARG (NULL, negative, not finite), KR_E_NOT_FOUND (name). Since 0.1 */
KR_API kr_status_t kr_telemetry_record(kr_telemetry_t telemetry, const char *name,
                                       double duration_ms);
/* kr_telemetry_count: adds n to a counter ("tokens_generated", ...), which stays at 2^64 - 1 when
 * it would be more. Errors as above. */
KR_API kr_status_t kr_telemetry_count(kr_telemetry_t telemetry, const char *name, uint64_t n);
KR_API void kr_telemetry_report_init(kr_telemetry_report_t *report);
/* kr_telemetry_report: sums all threads' records of one metric. Since 0.1 */
KR_API kr_status_t kr_telemetry_report(kr_telemetry_t telemetry, const char *name,
                                       kr_telemetry_report_t *report);
/* kr_telemetry_histogram: one histogram as cumulative counts, for Prometheus and the like.
 * bounds_ms  [n_bounds] finite, not negative, each greater than the one before; NULL with 0.
 * counts     [n_bounds] receives how many records are known to be at most bounds_ms[i]: a record of
 *            d ms never counts under a bound below d, and always under one of d * 33/32 or more (in
 *            between it may do either, the same way in every call). Records over 39 hours count
 *            under none.
 * count, sum_ms  of all records. Counts ascend, and *count is at least the last of them, also while
 *            others record; then *sum_ms may hold records that *count does not hold yet, never the
 *            reverse. Between resets nothing falls from one call to the next.
 * Errors     KR_E_INVALID_ARG, KR_E_NOT_FOUND (no histogram of that name). Allocates nothing.
 * Threads    any. Since 0.1 */
KR_API kr_status_t kr_telemetry_histogram(kr_telemetry_t telemetry, const char *name,
                                          const double *bounds_ms, uint32_t n_bounds,
                                          uint64_t *counts, uint64_t *count, double *sum_ms);
/* kr_telemetry_name: name of metric `index`, or NULL past the last. Static. Since 0.1 */
KR_API const char *kr_telemetry_name(uint32_t index);
/* kr_telemetry_reset: empties histograms and counters. Gauges say what is now and stay. */
KR_API kr_status_t kr_telemetry_reset(kr_telemetry_t telemetry);
/* kr_telemetry_set: sets a gauge ("kv_usage", ...). tensor_pool_bytes is the process's own: what
 * is set is not reported. Errors as kr_telemetry_record. */
KR_API kr_status_t kr_telemetry_set(kr_telemetry_t telemetry, const char *name, double value);
/* kr_telemetry_json: all metrics as one JSON object {"name": {...}, ...} in the order of
 * kr_telemetry_name: kind ("histogram", "counter", "gauge"), help, unit, vLLM-compatible alias
 * where there is one, and values. Histograms: count, sum, min, max, p50, p95, p99, per_s; counters:
 * value, per_s; gauges: value. buf [capacity], NUL-terminated; *n_bytes receives the length without
 * NUL, also when it does not fit (then KR_E_LIMIT, buf unspecified). buf may be NULL with capacity
 * 0. Errors KR_E_INVALID_ARG, KR_E_LIMIT. Allocates nothing. Since 0.1 */
KR_API kr_status_t kr_telemetry_json(kr_telemetry_t telemetry, char *buf, size_t capacity,
                                     size_t *n_bytes);

/* ---- model -------------------------------------------------------------------------------- */

typedef int32_t kr_token_t;

/* Element types; ids are kr's own and never reused. Sizes and file ids: src/tensor/dtypes.def */
typedef int32_t kr_dtype_t;
enum {
    KR_DTYPE_NONE = 0, KR_DTYPE_F32 = 1, KR_DTYPE_F16 = 2, KR_DTYPE_BF16 = 3,
    KR_DTYPE_Q4_0 = 4, KR_DTYPE_Q4_1 = 5, KR_DTYPE_Q5_0 = 6, KR_DTYPE_Q5_1 = 7,
    KR_DTYPE_Q8_0 = 8, KR_DTYPE_Q4_K = 9, KR_DTYPE_Q5_K = 10, KR_DTYPE_Q6_K = 11,
    KR_DTYPE_I8 = 12, /* of tensors; of KV caches: integers with a scale per token and head */
    KR_DTYPE_F8 = 13 /* e4m3, of KV caches on CUDA only: with a scale per token and head */
};
/* kr_dtype_name: C string "q4_k"; "?" for unknown. Static. Since 0.1 */
KR_API const char *kr_dtype_name(kr_dtype_t dtype);

/* ---- tensors ------------------------------------------------------------------------------ */

typedef struct kr_tensor_s *kr_tensor_t;
typedef struct kr_tensor_view_s {
    uint32_t struct_bytes;
    kr_dtype_t dtype;
    uint32_t n_dims;
    uint32_t reserved;
    uint64_t shape[4];         /* outermost first */
    uint64_t strides[4];       /* bytes between neighbours of a dimension */
    uint64_t n_bytes;
    void *data;                /* 64-byte aligned; valid while a reference is held */
} kr_tensor_view_t;
KR_API void kr_tensor_view_init(kr_tensor_view_t *view);
/* kr_tensor_acquire: a dense tensor from the process's pool, uninitialised, with one reference.
 * dtype   F32, F16, BF16 or I8. shape [n_dims], n_dims 1..4, each at least 1.
 * Memory  released tensors stay in the pool by size class, at most 64 MiB of them, so that a step
 *         does not allocate what the last one already had. kr_memory_usage counts them too (gauge
 *         tensor_pool_bytes); they are given back when memory is short and by kr_allocator_set.
 * Errors  KR_E_INVALID_ARG, KR_E_UNSUPPORTED (dtype), KR_E_LIMIT (2^39 bytes), KR_E_NOMEM.
 * Threads any. Since 0.1 */
KR_API kr_status_t kr_tensor_acquire(kr_dtype_t dtype, uint32_t n_dims, const uint64_t *shape,
                                     kr_tensor_t *tensor, kr_error_t *error);
/* kr_tensor_retain / kr_tensor_release: one reference more / less; the last returns the memory to
 * the pool. Any thread. */
KR_API void kr_tensor_retain(kr_tensor_t tensor);
KR_API void kr_tensor_release(kr_tensor_t tensor);
/* kr_tensor_view: where and how it lies. KR_E_INVALID_ARG. Any thread. */
KR_API kr_status_t kr_tensor_view(kr_tensor_t tensor, kr_tensor_view_t *view);

typedef struct kr_model_s *kr_model_t;

/* Called on the opening thread with done <= total (bytes of the stage; `stage` is a static C
 * string such as "pack"). Return non-zero to cancel the load (KR_E_CANCELLED). */
typedef int32_t (*kr_progress_fn)(const char *stage, uint64_t done, uint64_t total, void *user);

typedef struct kr_model_params_s {
    uint32_t struct_bytes;
    uint32_t n_threads;      /* for loading; 0 = kr_threads_default() */
    uint32_t vocab_only;     /* 1: tokenizer and metadata only; no weights are checked or packed */
    uint32_t reserved;
    kr_progress_fn progress; /* may be NULL */
    void *progress_user;
    const char *cache_dir;   /* C string, borrowed for the call; folder of files kept between runs.
                                NULL = $XDG_CACHE_HOME/kr or ~/.cache/kr; "" = keep nothing */
    uint64_t cache_bytes_max; /* of that folder, oldest use goes first; 0 = 16 GiB */
} kr_model_params_t;
KR_API void kr_model_params_init(kr_model_params_t *params);

/* kr_model_open: opens a GGUF file (v2, v3; the first part of a split set opens all parts).
 * path     C string. params may be NULL.
 * Memory   the file stays mapped; matrices are packed once into private memory and their file
 *          pages released. The file must not change while the model is open.
 * Cache    packed matrices of at least 4 MiB are written to cache_dir by a background thread and
 *          mapped by the next open of the same file (device, inode, size, mtime). They are checked
 *          at first use; what is damaged is packed anew, with one log line. Trouble with the
 *          folder never fails an open: one warning, and nothing is kept.
 * Errors   KR_E_NOT_FOUND, KR_E_IO, KR_E_BAD_FORMAT, KR_E_TRUNCATED, KR_E_UNSUPPORTED,
 *          KR_E_LIMIT, KR_E_NOMEM, KR_E_CANCELLED, KR_E_BAD_TEMPLATE is delayed to rendering.
 * Threads  any. The caller owns one reference. Since 0.1 */
KR_API kr_status_t kr_model_open(const char *path, const kr_model_params_t *params,
                                 kr_model_t *model, kr_error_t *error);
/* kr_model_retain / kr_model_close: one reference more / less; the last close frees. It waits for
 * the background thread to hand the rest of the packed weights (at most 2 GiB, else the file is
 * given up) to the system, not to the disk. Any thread. */
KR_API void kr_model_retain(kr_model_t model);
KR_API void kr_model_close(kr_model_t model);

/* kr_cache_verify: reads every file kept in a cache folder and checks all its hashes.
 * dir     C string or NULL, as kr_model_params_t.cache_dir ("" holds nothing).
 * fn      called for each file with its path (C string), its bytes and KR_OK, what is wrong with
 *         it (KR_E_TRUNCATED, KR_E_BAD_FORMAT, KR_E_CORRUPT) or why it cannot be read now
 *         (KR_E_IO, KR_E_PERMISSION, KR_E_NOMEM); returns non-zero to stop, which ends the call
 *         with KR_E_CANCELLED.
 * Errors  KR_E_INVALID_ARG (no fn, dir is no folder), KR_E_CANCELLED, KR_E_NOMEM, KR_E_PERMISSION,
 *         KR_E_IO. Nothing is changed, and no folder is created.
 * Threads any, also beside processes that use the folder. Since 0.1 */
typedef int32_t (*kr_cache_fn)(const char *path, uint64_t bytes, kr_status_t status, void *user);
KR_API kr_status_t kr_cache_verify(const char *dir, kr_cache_fn fn, void *user,
                                   kr_error_t *error);

typedef struct kr_model_info_s {
    uint32_t struct_bytes;
    uint32_t n_layers, n_embd, n_heads, n_kv_heads, head_dim, n_ff, n_vocab, n_ctx_train;
    uint32_t window;           /* sliding window in tokens, 0 = none */
    kr_token_t token_bos, token_eos; /* -1 = none */
    uint32_t add_bos;          /* 1: prompts begin with token_bos */
    uint32_t has_chat_template;
    uint64_t model_bytes;      /* file bytes, all parts */
    uint64_t bytes_per_token;  /* weight bytes read to decode one token at batch 1 */
    uint64_t packed_bytes;     /* packed weights, in private memory or mapped from the cache */
    uint64_t n_params;
    const char *format, *arch, *name; /* C strings owned by the model */
    const char *chat_template; /* C string owned by the model, or NULL */
} kr_model_info_t;
KR_API void kr_model_info_init(kr_model_info_t *info);
/* kr_model_info: borrowed strings live as long as the model. KR_E_INVALID_ARG. Any thread. */
KR_API kr_status_t kr_model_info(kr_model_t model, kr_model_info_t *info);
/* kr_model_meta: key (C string, owned by the model) and value printed into buf (truncated with
 * "..." to cap bytes, always NUL-terminated). Errors KR_E_NOT_FOUND past the last index. */
KR_API kr_status_t kr_model_meta(kr_model_t model, uint32_t index, const char **key, char *buf,
                                 size_t cap);
typedef struct kr_tensor_info_s {
    uint32_t struct_bytes;
    kr_dtype_t dtype;
    uint32_t n_dims;
    uint32_t reserved;
    uint64_t shape[4];         /* outermost first */
    uint64_t bytes;
    const char *name;          /* owned by the model */
} kr_tensor_info_t;
KR_API void kr_tensor_info_init(kr_tensor_info_t *info);
/* kr_model_tensor: description of tensor `index`. KR_E_NOT_FOUND past the last. Any thread. */
KR_API kr_status_t kr_model_tensor(kr_model_t model, uint32_t index, kr_tensor_info_t *info);

/* ---- text --------------------------------------------------------------------------------- */

enum { KR_TOKENIZE_ADD_BOS = 1,      /* begin with BOS where the model adds one */
       KR_TOKENIZE_PARSE_SPECIAL = 2 /* spellings of special tokens become those tokens */ };
/* kr_model_tokenize: text to token ids.
 * text    [text_bytes] valid UTF-8, at most 16 MiB; borrowed.
 * tokens  [capacity]; *n_tokens receives the number needed, also when it is over capacity
 *         (then KR_E_LIMIT and tokens are unspecified). tokens may be NULL with capacity 0.
 * Errors  KR_E_INVALID_ARG (also invalid UTF-8, offset set), KR_E_LIMIT, KR_E_NOMEM.
 * Threads any; needs 2 MiB of stack. Since 0.1 */
KR_API kr_status_t kr_model_tokenize(kr_model_t model, const char *text, size_t text_bytes,
                                     uint32_t flags, kr_token_t *tokens, size_t capacity,
                                     size_t *n_tokens, kr_error_t *error);
/* kr_model_detokenize: ids to bytes (may end inside a UTF-8 character). Special tokens are
 * skipped unless KR_TOKENIZE_PARSE_SPECIAL is given, then they are spelled out. buf [capacity],
 * *n_bytes receives the size needed. Errors as kr_model_tokenize. */
KR_API kr_status_t kr_model_detokenize(kr_model_t model, const kr_token_t *tokens,
                                       size_t n_tokens, uint32_t flags, char *buf,
                                       size_t capacity, size_t *n_bytes, kr_error_t *error);
/* kr_model_token_is_end: 1 if the token ends generation (EOS, end of turn), else 0. */
KR_API int32_t kr_model_token_is_end(kr_model_t model, kr_token_t token);

typedef struct kr_message_s {
    const char *role;      /* C string: "system", "user", "assistant", ...; handed to the template
                              as it is: one that it does not know may be left out or refused */
    const char *content;   /* [content_bytes] UTF-8 */
    size_t content_bytes;
} kr_message_t;
/* kr_model_chat_tokenize: renders messages with the model's chat template and tokenizes: only
 * the template's own literals become special tokens, content never does.
 * Errors  KR_E_NOT_FOUND (model has no template), KR_E_BAD_TEMPLATE, KR_E_LIMIT,
 *         KR_E_INVALID_ARG, KR_E_NOMEM. Outputs as kr_model_tokenize. Since 0.1 */
KR_API kr_status_t kr_model_chat_tokenize(kr_model_t model, const kr_message_t *messages,
                                          size_t n_messages, uint32_t add_generation_prompt,
                                          kr_token_t *tokens, size_t capacity,
                                          size_t *n_tokens, kr_error_t *error);
/* kr_model_chat_render: the text of the prompt that kr_model_chat_tokenize tokenizes, as the
 * template writes it: without the BOS that goes in front where the model adds one. Not meant to be
 * tokenized: in a text nothing tells a control token of the template from its spelling in content.
 * buf     [capacity], not NUL-terminated; may be NULL with capacity 0. *n_bytes receives the size
 *         needed, also when it is over capacity (then KR_E_LIMIT, buf unspecified).
 * Errors  as kr_model_chat_tokenize. Any thread; needs 2 MiB of stack. Since 0.1 */
KR_API kr_status_t kr_model_chat_render(kr_model_t model, const kr_message_t *messages,
                                        size_t n_messages, uint32_t add_generation_prompt,
                                        char *buf, size_t capacity, size_t *n_bytes,
                                        kr_error_t *error);

typedef struct kr_detokenizer_s *kr_detokenizer_t;
/* kr_detokenizer_create: incremental text of one generation; keeps a reference to the model.
 * stops  [n_stops] C strings of 1..256 bytes, at most 16; copied. Text from the first stop
 *        string on is never emitted, also when it spans tokens.
 * Errors KR_E_INVALID_ARG, KR_E_LIMIT, KR_E_NOMEM. Since 0.1 */
KR_API kr_status_t kr_detokenizer_create(kr_model_t model, const char *const *stops,
                                         size_t n_stops, kr_detokenizer_t *detokenizer,
                                         kr_error_t *error);
KR_API void kr_detokenizer_destroy(kr_detokenizer_t detokenizer);
/* kr_detokenizer_push: adds a token. *text (valid UTF-8, borrowed until the next call) and
 * *text_bytes receive what can be emitted now: incomplete characters and possible beginnings of
 * a stop string are held back. *stopped becomes 1 when a stop string was completed.
 * Errors KR_E_INVALID_ARG, KR_E_NOMEM. */
KR_API kr_status_t kr_detokenizer_push(kr_detokenizer_t detokenizer, kr_token_t token,
                                       const char **text, size_t *text_bytes, int32_t *stopped);
/* kr_detokenizer_finish: what was held back; an incomplete character becomes U+FFFD. */
KR_API kr_status_t kr_detokenizer_finish(kr_detokenizer_t detokenizer, const char **text,
                                         size_t *text_bytes);

/* ---- session ------------------------------------------------------------------------------ */

typedef struct kr_session_s *kr_session_t;
/* Whether a token's logits are the same bits in any batch, chunking and number of threads. Always
 * so on every level but amx. There, prompts of 16 rows and more go through the matrix unit, whose
 * sums have an order of their own, unless ON; ON costs prefill speed (`kr bench model --invariant
 * on` prints how much). DEFAULT = what is fastest. */
enum { KR_INVARIANT_DEFAULT = 0, KR_INVARIANT_ON = 1, KR_INVARIANT_OFF = 2 };
/* How attention multiplies queries with keys. F32 loses nothing. INT8 and INT16 round each query
 * and each key of a head to integers with one scale, which is faster for long prompts: INT16 (about
 * 12 bits are used) moves logits no more than f16 keys do, INT8 more: perplexity by up to 1 %. All
 * are batch-invariant. Measurements: docs/perf-log.md.
 * DEFAULT = INT16 for a KV cache of KR_DTYPE_F16 on the levels avx512 and amx, which multiply pairs
 * of 16-bit integers as fast as single floats; F32 on other levels, for KR_DTYPE_F32 and for CUDA.
 * A KV cache of KR_DTYPE_I8 holds 8-bit keys and always multiplies them by 15-bit integers made of
 * the query: there DEFAULT and INT16 mean that, F32 and INT8 are KR_E_UNSUPPORTED. */
enum { KR_ATTN_QK_DEFAULT = 0, KR_ATTN_QK_F32 = 1, KR_ATTN_QK_INT8 = 2, KR_ATTN_QK_INT16 = 3 };
/* Where a session computes. CUDA: the machine's first NVIDIA GPU of the Hopper class, found at run
 * time. Weights are copied there by the first such session of a model and stay until the model is
 * closed. Not built there: a kv_dtype of F32, attn_qk other than DEFAULT and F32 (with KR_DTYPE_I8
 * INT16), KR_INVARIANT_ON, isa; each is KR_E_UNSUPPORTED. */
enum { KR_DEVICE_CPU = 0, KR_DEVICE_CUDA = 1 };
/* Whether prompts reuse the pages of equal prefixes. */
enum { KR_PREFIX_CACHE_DEFAULT = 0, KR_PREFIX_CACHE_ON = 1, KR_PREFIX_CACHE_OFF = 2 };
typedef struct kr_session_params_s {
    uint32_t struct_bytes;
    uint32_t n_ctx;          /* tokens per sequence; 0 = min(model's, 4096) */
    uint32_t n_seqs;         /* sequences, 1..256; 0 = 1 */
    uint32_t n_rows_max;     /* rows of one step, 1..4096; 0 = 512 */
    uint32_t n_threads;      /* 0 = kr_threads_default() */
    kr_dtype_t kv_dtype;     /* KR_DTYPE_F16 (0 = this), KR_DTYPE_F32 or KR_DTYPE_I8: about half
                              * the bytes of f16, perplexity within 0.5 %; on CUDA also
                              * KR_DTYPE_F8: the same bytes, not as near */
    int32_t invariant;       /* KR_INVARIANT_* */
    int32_t attn_qk;         /* KR_ATTN_QK_*; 0 = what is fastest: see there */
    const char *isa;         /* C string; level to use ("ref", "avx2", ...), NULL = best; one that
                              * the machine has not got is KR_E_UNSUPPORTED */
    kr_telemetry_t telemetry; /* kept by reference; NULL = none */
    uint64_t kv_bytes_max;   /* of the KV pool; 0 = every sequence can hold n_ctx tokens */
    uint32_t prefix_cache;   /* KR_PREFIX_CACHE_*; only engines have one, sessions refuse ON */
    uint32_t device;         /* KR_DEVICE_* */
} kr_session_params_t;
KR_API void kr_session_params_init(kr_session_params_t *params);
/* kr_session_create: takes every byte that decoding will need.
 * Errors KR_E_INVALID_ARG, KR_E_UNSUPPORTED, KR_E_CONTEXT_LENGTH (n_ctx over the model's),
 *        KR_E_LIMIT, KR_E_NOMEM; with a device KR_E_NOT_FOUND (there is none), KR_E_DEVICE_NOMEM
 *        (the message says what is needed and what is free), KR_E_DEVICE_LOST.
 * The session keeps a reference to the model. Since 0.1 */
KR_API kr_status_t kr_session_create(kr_model_t model, const kr_session_params_t *params,
                                     kr_session_t *session, kr_error_t *error);
KR_API void kr_session_destroy(kr_session_t session);

typedef struct kr_session_info_s {
    uint32_t struct_bytes;
    uint32_t n_ctx, n_seqs, n_rows_max, n_threads;
    kr_dtype_t kv_dtype;
    uint32_t is_invariant;   /* 1: logits do not depend on the batch (see KR_INVARIANT_*) */
    uint32_t device;         /* KR_DEVICE_* */
    uint64_t kv_bytes;       /* KV pool */
    uint64_t scratch_bytes;  /* activations and tables; with a device of its memory */
    const char *isa;         /* level in use, of the device; static C string */
    /* The rest of the device's memory that a model's first session takes; 0 without a device. */
    uint64_t device_weight_bytes; /* the model's weights, shared by its sessions */
    uint64_t device_kv_bytes; /* the KV pool, taken whole: kv_bytes for each kind of layer (with and
                                 without a sliding window) */
    uint64_t device_work_bytes; /* workspace of libraries, where the machine has them */
} kr_session_info_t;
KR_API void kr_session_info_init(kr_session_info_t *info);
KR_API kr_status_t kr_session_info(kr_session_t session, kr_session_info_t *info);
/* kr_session_plan: what kr_session_create would take, without taking it; with prefix_cache ON what
 * kr_engine_add_model would (kv_bytes before its ledger's bound). No device is asked. */
KR_API kr_status_t kr_session_plan(kr_model_t model, const kr_session_params_t *params,
                                   kr_session_info_t *info, kr_error_t *error);

typedef struct kr_batch_seq_s { uint32_t seq; uint32_t n_rows; } kr_batch_seq_t;
typedef struct kr_batch_s {
    uint32_t struct_bytes;
    uint32_t n_rows;              /* rows of this step, all sequences together */
    const kr_token_t *tokens;     /* [n_rows], sequence after sequence in the order of seqs */
    const kr_batch_seq_t *seqs;   /* [n_seqs]; each sequence at most once, n_rows >= 1 each */
    uint32_t n_seqs;
    uint32_t n_out_rows;
    const uint32_t *out_rows;     /* [n_out_rows] ascending row indices that give logits */
    const int32_t *positions;     /* [n_rows, 3]; not built: must be NULL (rows are appended) */
    const float *embeddings;      /* [n_rows, n_embd]; not built: must be NULL */
    const int32_t *adapters;      /* [n_rows] adapter ids; not built: must be NULL */
    const uint32_t *hidden_rows;  /* [n_hidden_rows] ascending row indices that give hidden states;
                                     a row may give logits too */
    float *hidden;                /* [n_hidden_rows, n_embd] f32 receives what the head would read:
                                     after the last layer and the final norm; written only on
                                     KR_OK. It costs no product with the head */
    uint32_t n_hidden_rows;
    uint32_t reserved;
} kr_batch_t;
KR_API void kr_batch_init(kr_batch_t *batch);
/* kr_session_decode: appends the batch's tokens to their sequences and computes logits.
 * logits  [n_out_rows, n_vocab] f32, unnormalised; written only on KR_OK, except that
 *         KR_E_NUMERIC leaves them unspecified.
 * Memory  none is allocated. On any error the sequences keep their former length.
 * Errors  KR_E_INVALID_ARG (param names the field), KR_E_LIMIT (rows, or no KV pages under
 *         kv_bytes_max), KR_E_CONTEXT_LENGTH, KR_E_UNSUPPORTED (a field that is not built),
 *         KR_E_NUMERIC, KR_E_CANCELLED, KR_E_DEVICE_LOST (no session of the device works any
 *         more in this process).
 * Threads one call per session at a time. Since 0.1 */
KR_API kr_status_t kr_session_decode(kr_session_t session, const kr_batch_t *batch,
                                     float *logits, kr_error_t *error);
/* kr_session_cancel: makes the decode in progress return KR_E_CANCELLED soon; without one in
 * progress it does nothing. Any thread, also a signal handler. Since 0.1 */
KR_API void kr_session_cancel(kr_session_t session);
/* kr_session_length: tokens held by a sequence. KR_E_INVALID_ARG. */
KR_API kr_status_t kr_session_length(kr_session_t session, uint32_t seq, uint32_t *n_tokens);
/* kr_session_truncate: drops all tokens of a sequence from position n_tokens on and returns
 * their pages. KR_E_INVALID_ARG when n_tokens is over the length. KR_E_UNSUPPORTED when a model
 * with a sliding window has already given back pages that the row at n_tokens would see (0 always
 * works); nothing is dropped then. */
KR_API kr_status_t kr_session_truncate(kr_session_t session, uint32_t seq, uint32_t n_tokens);
/* kr_session_fork: the empty sequence dst begins with the first n_tokens tokens of src. Pages are
 * shared; a page is copied when one of the two first writes into it.
 * Errors KR_E_INVALID_ARG (dst not empty, n_tokens over src's length), KR_E_UNSUPPORTED as
 *        kr_session_truncate. Since 0.1 */
KR_API kr_status_t kr_session_fork(kr_session_t session, uint32_t src, uint32_t dst,
                                   uint32_t n_tokens);
/* kr_session_save: keys and values of a sequence as bytes: *n_bytes receives the size, also when
 * it is over capacity (then KR_E_LIMIT, buf unspecified); buf may be NULL with capacity 0. The
 * bytes are for the same model, kv_dtype and layout, with KR_ATTN_QK_INT8 or without;
 * kr_session_restore checks that and a hash. The format may change with the library's version,
 * which is checked too.
 * Errors KR_E_INVALID_ARG, KR_E_LIMIT. Since 0.1 */
KR_API kr_status_t kr_session_save(kr_session_t session, uint32_t seq, void *buf, size_t capacity,
                                   size_t *n_bytes);
/* kr_session_restore: fills the empty sequence seq from saved bytes; on errors it stays empty.
 * Errors KR_E_INVALID_ARG, KR_E_BAD_FORMAT, KR_E_TRUNCATED, KR_E_CORRUPT, KR_E_UNSUPPORTED (other
 *        model, type, layout or version), KR_E_CONTEXT_LENGTH, KR_E_LIMIT (no pages). Since 0.1 */
KR_API kr_status_t kr_session_restore(kr_session_t session, uint32_t seq, const void *buf,
                                      size_t n_bytes, kr_error_t *error);

/* ---- sampling ----------------------------------------------------------------------------- */

typedef struct kr_logit_bias_s { kr_token_t token; float bias; } kr_logit_bias_t;
/* Order of the steps: logit bias, repetition, presence and frequency penalties, (log-
 * probabilities are taken here), then, unless temperature is 0 (greedy), top-k, typical, top-p,
 * min-p, temperature, draw. */
typedef struct kr_sampler_params_s {
    uint32_t struct_bytes;
    uint32_t n_penalty_last;  /* tokens looked back by the penalties, at most 2^20; default 64,
                                 0 = none */
    float temperature;        /* 0..2, default 0.8; 0 = greedy */
    int32_t top_k;            /* default 40; 0 and -1 = off */
    float top_p;              /* (0,1], default 0.95; 1 = off */
    float min_p;              /* [0,1], default 0 = off */
    float typical_p;          /* (0,1], default 1 = off */
    float repeat_penalty;     /* (0,2], default 1 = off */
    float presence_penalty;   /* -2..2, default 0 */
    float frequency_penalty;  /* -2..2, default 0 */
    uint64_t seed;            /* same seed, same text */
    uint32_t n_logprobs;      /* 0..20: top log-probabilities kept for kr_sampler_logprobs */
    uint32_t n_logit_bias;    /* 0..1024 */
    const kr_logit_bias_t *logit_bias; /* [n_logit_bias]; copied; bias -100..100 */
} kr_sampler_params_t;
typedef struct kr_sampler_s *kr_sampler_t;
KR_API void kr_sampler_params_init(kr_sampler_params_t *params);
/* kr_sampler_create: errors KR_E_INVALID_ARG (param names the field), KR_E_NOMEM. Since 0.1 */
KR_API kr_status_t kr_sampler_create(const kr_sampler_params_t *params, uint32_t n_vocab,
                                     kr_sampler_t *sampler, kr_error_t *error);
KR_API void kr_sampler_destroy(kr_sampler_t sampler);
/* kr_sampler_accept: adds a token (prompt or generated) to the penalties' history. */
KR_API kr_status_t kr_sampler_accept(kr_sampler_t sampler, kr_token_t token);
/* kr_sampler_sample: picks a token; the caller accepts it.
 * logits [n_vocab] f32, not changed. Allocates nothing.
 * Errors KR_E_INVALID_ARG, KR_E_NUMERIC (a NaN or +Inf among the logits, or only -Inf). */
KR_API kr_status_t kr_sampler_sample(kr_sampler_t sampler, const float *logits,
                                     kr_token_t *token);
typedef struct kr_logprob_s { kr_token_t token; float logprob; } kr_logprob_t;
/* kr_sampler_logprobs: of the last sample: *chosen and the most likely n_logprobs tokens,
 * descending, into top [n_logprobs]; {-1, -Inf} where fewer tokens are possible. Natural
 * logarithms. KR_E_NOT_FOUND before a sample and with n_logprobs 0. */
KR_API kr_status_t kr_sampler_logprobs(kr_sampler_t sampler, kr_logprob_t *chosen,
                                       kr_logprob_t *top);

/* ---- engine ------------------------------------------------------------------------------- */

/* An engine runs many requests at once: continuous batching with chunked prefill, one step thread
 * that owns all computing, one KV pool per model with a prefix cache. Requests are submitted from
 * any thread; what they produce comes as events, through a callback on one dispatcher thread or
 * through kr_engine_poll. Scheduling: docs/decisions/0007-engine.md. */
typedef struct kr_engine_s *kr_engine_t;
typedef struct kr_request_s *kr_request_t;

/* Every accepted request gives, for each choice, its tokens in order (TOKEN) and then one CHOICE;
 * with pooling instead one EMBEDDING; then, exactly once and last, DONE or ERROR (which may come at
 * any point, also after some tokens and choices). */
enum { KR_EVENT_TOKEN = 1, KR_EVENT_CHOICE = 2, KR_EVENT_DONE = 3, KR_EVENT_ERROR = 4,
       KR_EVENT_EMBEDDING = 5 };
/* Why a choice ended: an end token, a stop string, the token budget or the context. */
enum { KR_FINISH_NONE = 0, KR_FINISH_END = 1, KR_FINISH_STOP = 2, KR_FINISH_LENGTH = 3 };
typedef struct kr_event_s {
    uint32_t struct_bytes;
    int32_t type;              /* KR_EVENT_* */
    kr_request_t request;
    void *user;                /* of the request */
    uint32_t choice;           /* TOKEN, CHOICE */
    kr_token_t token;          /* TOKEN */
    int32_t finish;            /* CHOICE: KR_FINISH_* */
    kr_status_t status;        /* ERROR: why; else KR_OK */
    const char *text;          /* TOKEN, CHOICE: [text_bytes] UTF-8 that can be shown now (""
                                  while a character or a possible stop string is incomplete) */
    size_t text_bytes;
    float logprob;             /* TOKEN, with n_logprobs: of the token; else 0 */
    uint32_t n_logprobs;
    const kr_logprob_t *logprobs; /* TOKEN: [n_logprobs] most likely tokens, descending */
    const kr_error_t *error;   /* ERROR: details; else NULL */
    int32_t stop;              /* CHOICE with KR_FINISH_STOP: index of the stop string; else -1 */
    uint32_t n_embd;           /* EMBEDDING; else 0 */
    const float *embedding;    /* EMBEDDING: [n_embd] f32, finite; else NULL */
} kr_event_t;
/* The event and all it points to are borrowed until return. May call any function of the library,
 * submit, cancel, kr_request_release and kr_engine_destroy included; not kr_engine_drain. */
typedef void (*kr_event_fn)(const kr_event_t *event, void *user);

typedef struct kr_engine_params_s {
    uint32_t struct_bytes;
    uint32_t n_threads;        /* of a step; 0 = kr_threads_default() */
    uint32_t max_stall_ms;     /* 1..60000, 0 = 250: while streams run, a step takes no more prompt
                                  rows than fit into this time, but at least one page of 16 */
    uint32_t queue_max;        /* 1..65536 requests waiting, 0 = 1024 */
    uint32_t queue_wait_ms_max; /* 0 = 60000; then a request that has not begun to run ends with
                                   KR_E_BUSY as ERROR event */
    uint32_t key_in_flight_max; /* requests of one key, 0 = 64; key 0 is not bounded */
    kr_telemetry_t telemetry;  /* kept by reference; NULL = none */
    uint64_t kv_bytes_max;     /* KV pools of all models; 0 = half of the memory now available */
    kr_event_fn on_event;      /* NULL: events are polled */
    void *user;                /* of on_event */
} kr_engine_params_t;
KR_API void kr_engine_params_init(kr_engine_params_t *params);
/* kr_engine_create: starts the threads; models follow.
 * Errors KR_E_INVALID_ARG (param names the field), KR_E_NOMEM, KR_E_IO. Any thread. Since 0.1 */
KR_API kr_status_t kr_engine_create(const kr_engine_params_t *params, kr_engine_t *engine,
                                    kr_error_t *error);
/* kr_engine_drain: no submit is accepted from now on (KR_E_SHUTTING_DOWN); waits until all
 * requests have ended. KR_E_TIMEOUT after timeout_ms with some left: they go on. KR_E_BUSY from
 * inside a callback. Any thread. */
KR_API kr_status_t kr_engine_drain(kr_engine_t engine, uint32_t timeout_ms);
/* kr_engine_destroy: ends what is left with ERROR events (KR_E_SHUTTING_DOWN; by callback only),
 * stops the threads, frees. Inside a callback it takes effect after the callback's return: more
 * callbacks may follow on that thread, with the events that were left. Request handles that are
 * still held stay valid for kr_request_stats and kr_request_release. No other thread may be in a
 * function of the engine (of requests: it may). */
KR_API void kr_engine_destroy(kr_engine_t engine);

/* kr_engine_add_model: a session for the model (kept by reference) under a name; requests may name
 * it at once. The work is done on the calling thread while others generate.
 * name    C string of 1..255 bytes. params as for a session: n_seqs 0 = 32 sequences at once,
 *         n_threads 0 and telemetry NULL = the engine's, kv_bytes_max 0 = n_seqs * n_ctx tokens or
 *         what the engine's ledger has left, prefix_cache on by default.
 * Errors  those of kr_session_create; KR_E_EXISTS (name), KR_E_LIMIT (16 models; kv_bytes_max over
 *         what is left of the ledger), KR_E_SHUTTING_DOWN. Since 0.1 */
KR_API kr_status_t kr_engine_add_model(kr_engine_t engine, const char *name, kr_model_t model,
                                       const kr_session_params_t *params, kr_error_t *error);
/* kr_engine_remove_model: requests of the model end with KR_E_SHUTTING_DOWN; returns when its
 * session is freed. KR_E_NOT_FOUND. */
KR_API kr_status_t kr_engine_remove_model(kr_engine_t engine, const char *name,
                                          kr_error_t *error);
/* kr_engine_resize_kv: changes a model's KV pool while requests run; cached pages go first, then
 * running requests are preempted and computed again later.
 * Errors KR_E_NOT_FOUND, KR_E_LIMIT (over the ledger, over n_seqs * n_ctx tokens and the size at
 *        creation, on a device over the latter; too small for one token or for a request that is
 *        running). */
KR_API kr_status_t kr_engine_resize_kv(kr_engine_t engine, const char *name, uint64_t kv_bytes,
                                       kr_error_t *error);

typedef struct kr_engine_stats_s {
    uint32_t struct_bytes;
    uint32_t n_models;
    uint32_t n_running, n_waiting; /* requests */
    uint64_t kv_bytes_max;     /* of the pool(s) */
    uint64_t kv_bytes_used;    /* pages held by running requests, shared ones once */
    uint64_t kv_bytes_cached;  /* pages that only the prefix cache holds */
    uint64_t kv_bytes_moved;   /* copied by copy-on-write since the start */
    uint64_t n_steps, n_preempted;
    uint64_t n_rows_prefill, n_rows_decode; /* rows computed */
    uint64_t n_tokens_cached;  /* prompt tokens that were not computed */
    double retry_after_ms;     /* measured: when a place in a full queue is likely to be free */
    double sched_us;           /* scheduler's time per step (choice of rows and its
                                  commit), mean of recent steps */
    uint32_t is_draining;
    uint32_t reserved;
} kr_engine_stats_t;
KR_API void kr_engine_stats_init(kr_engine_stats_t *stats);
/* kr_engine_stats: of one model, or of all together (name NULL), then with what models that were
 * removed have counted. KR_E_NOT_FOUND. */
KR_API kr_status_t kr_engine_stats(kr_engine_t engine, const char *name,
                                   kr_engine_stats_t *stats);

/* Restricts what may be sampled. Called on the engine's threads within a step, for one choice by
 * one thread at a time; a status other than KR_OK ends the request with it. Of the engine's
 * functions only submit, stats and those of requests may be called: others wait for the step. */
typedef struct kr_grammar_s {
    /* mask [n_words], bit t % 32 of word t / 32: token t is allowed; comes with all bits set. A
     * mask without any bit is KR_E_INTERNAL. */
    kr_status_t (*mask)(void *user, uint32_t choice, uint32_t *mask, size_t n_words);
    kr_status_t (*accept)(void *user, uint32_t choice, kr_token_t token);
    void *user;                /* must outlive the request */
} kr_grammar_t;

enum { KR_SEGMENT_TOKENS = 1, KR_SEGMENT_TEXT = 2, KR_SEGMENT_MESSAGES = 3 };
typedef struct kr_segment_s {
    int32_t type;
    uint32_t flags;            /* TEXT: KR_TOKENIZE_*; MESSAGES: 1 = no generation prompt */
    size_t count;              /* of the one that type names: */
    const kr_token_t *tokens;
    const char *text;          /* bytes of UTF-8 */
    const kr_message_t *messages;
} kr_segment_t;

/* What a request is for: NONE generates. The others make one vector of the prompt's final hidden
 * states (after the last layer and the final norm, what the head would read) and generate nothing:
 * the mean over all tokens, or the last token's. */
enum { KR_POOLING_NONE = 0, KR_POOLING_MEAN = 1, KR_POOLING_LAST = 2 };

typedef struct kr_request_params_s {
    uint32_t struct_bytes;
    uint32_t n_segments;       /* 1..256 */
    const kr_segment_t *segments; /* the prompt: their tokens one after the other, at least one */
    const char *model;         /* name; NULL = the model added first */
    const kr_sampler_params_t *sampler; /* NULL = defaults; choice i draws with seed + i */
    const char *const *stops;  /* [n_stops] as kr_detokenizer_create */
    uint32_t n_stops;
    uint32_t n_choices;        /* 1..64, 0 = 1: they share the prompt's pages */
    uint32_t n_tokens_max;     /* of each choice; 0 = what the context leaves */
    uint32_t ignore_end;       /* 1: end tokens are ordinary */
    int32_t priority;          /* -100..100, higher first; waiting requests age upwards */
    uint32_t deadline_ms;      /* from submit; 0 = 600000: then KR_E_TIMEOUT */
    uint32_t credits;          /* 0: events count as consumed when the callback returns or at the
                                  next poll. Else: TOKEN events that may come before
                                  kr_request_add_credits must grant more, at most 2^20; an
                                  EMBEDDING takes one */
    uint32_t reserved;
    uint64_t key;              /* on whose behalf: fair share and key_in_flight_max; 0 = nobody's */
    uint64_t cache_salt;       /* prefixes are shared among equal salts only */
    const kr_grammar_t *grammar; /* NULL = none; copied */
    void *user;
    /* Embeddings ride in the steps of everyone else and are the same bits in any batch and chunking
     * (KR_INVARIANT_*): MEAN adds in the order of positions in f64. MEAN computes every token, for
     * the prefix cache holds no hidden states; LAST uses the cache. Both may hold n_ctx tokens and
     * leave their pages in the cache. sampler, stops, n_stops, n_tokens_max, ignore_end and grammar
     * must be 0, n_choices 0 or 1. */
    int32_t pooling;           /* KR_POOLING_* */
    uint32_t normalize;        /* 1, with pooling: divided by its Euclidean length (zeros stay) */
} kr_request_params_t;
KR_API void kr_request_params_init(kr_request_params_t *params);
/* kr_engine_submit: renders and tokenizes on the calling thread, checks everything, and queues.
 * request  receives a handle to be released by kr_request_release; may be NULL. It is set before
 *          the first event comes.
 * Errors   KR_E_INVALID_ARG (param names the field), KR_E_NOT_FOUND (model, template),
 *          KR_E_CONTEXT_LENGTH (prompt of n_ctx tokens or more; with pooling of more; offset says
 *          how many, exactly unless the message says "at least": text over 1 MiB that cannot
 *          fit whatever its tokens are is not tokenized), KR_E_LIMIT
 *          (would need more pages than the whole pool, or alone more heap than all requests may
 *          hold, which is a quarter of the memory available at create, at least 256 MiB; param
 *          names the field), KR_E_BUSY (queue full, key_in_flight_max: kr_engine_stats tells when
 *          to retry), KR_E_DEVICE_LOST (of the model; what ran has ended with that, and only a new
 *          process can use the device), KR_E_SHUTTING_DOWN, KR_E_NOMEM, those of tokenizing and
 *          templates. A refused request gives no events.
 * Threads  any; needs 2 MiB of stack. Since 0.1 */
KR_API kr_status_t kr_engine_submit(kr_engine_t engine, const kr_request_params_t *params,
                                    kr_request_t *request, kr_error_t *error);
/* kr_request_cancel: ends it with KR_E_CANCELLED, its pages are free within one step; a step on the
 * CPU stops between two layers when all requests that have rows in it are cancelled. Without effect
 * when it has ended. Any thread. */
KR_API void kr_request_cancel(kr_request_t request);
/* kr_request_add_credits: n more TOKEN events may come. KR_E_INVALID_ARG (request with automatic
 * credits, more than 2^20 together). Any thread. */
KR_API kr_status_t kr_request_add_credits(kr_request_t request, uint32_t n);
/* kr_request_release: gives the handle back; the request goes on. Any thread. */
KR_API void kr_request_release(kr_request_t request);

typedef struct kr_request_stats_s {
    uint32_t struct_bytes;
    uint32_t is_ended;
    uint32_t n_prompt, n_generated; /* tokens; generated: all choices */
    uint32_t n_cached;         /* prompt tokens whose pages were found in the prefix cache */
    uint32_t miss_position;    /* first prompt token after what the closest cached prefix shares
                                  with it; n_prompt = all shared */
    kr_token_t miss_cached;    /* what the cache has there; -1 = nothing */
    uint32_t n_preempted;
    uint32_t n_stalls;         /* gaps over max_stall_ms, as gap_max_ms counts them */
    kr_status_t status;        /* once ended */
    double template_ms, tokenize_ms, queue_ms, prefill_ms; /* prefill: first step to first token,
                                                              or to the embedding */
    double ttft_ms;            /* submit to first token, or to the embedding; 0 before */
    double decode_ms;          /* first to last token */
    double gap_max_ms;         /* longest time between two tokens of a choice, from the
                                 credits on where it had none */
} kr_request_stats_t;
KR_API void kr_request_stats_init(kr_request_stats_t *stats);
/* kr_request_stats: as of now. KR_E_INVALID_ARG. Any thread. */
KR_API kr_status_t kr_request_stats(kr_request_t request, kr_request_stats_t *stats);

typedef struct kr_explain_s {
    uint32_t struct_bytes;
    uint32_t n_prompt, n_cached, miss_position;
    kr_token_t miss_cached;
    uint32_t queue_position;   /* requests before it */
    uint64_t kv_bytes;         /* pages it would take, without cached ones */
    double ttft_ms;            /* predicted from measured step times; 0 before any step */
} kr_explain_t;
KR_API void kr_explain_init(kr_explain_t *explain);
/* kr_engine_explain: what kr_engine_submit would find, without submitting. Errors as submit. */
KR_API kr_status_t kr_engine_explain(kr_engine_t engine, const kr_request_params_t *params,
                                     kr_explain_t *explain, kr_error_t *error);

/* kr_engine_poll: takes up to capacity events; waits for the first one at most timeout_ms (0 = not,
 * UINT32_MAX = for ever). events [capacity], each prepared by the caller with struct_bytes;
 * borrowed until the next poll or destroy. *n_events 0 with KR_OK: time is over.
 * Errors  KR_E_INVALID_ARG (engine with callback, capacity 0), KR_E_BUSY (another thread polls),
 *         KR_E_UNSUPPORTED (several events of a size that is not this library's). */
KR_API kr_status_t kr_engine_poll(kr_engine_t engine, kr_event_t *events, uint32_t capacity,
                                  uint32_t timeout_ms, uint32_t *n_events);
/* kr_engine_event_fd: a descriptor that is readable while events wait (for poll, epoll), and at
 * times although another poll took them: kr_engine_poll with timeout 0 says 0 events. Owned by the
 * engine, not to be read. KR_E_INVALID_ARG (engine with callback). */
KR_API kr_status_t kr_engine_event_fd(kr_engine_t engine, int32_t *fd);

/* ---- machine ------------------------------------------------------------------------------ */

/* kr_isa_best: C string, highest level this machine runs: "ref"; on x86-64 "avx2", "avx512",
 * "amx"; on AArch64 "neon", "dotprod", "i8mm". Static. */
KR_API const char *kr_isa_best(void);
/* kr_isa_details: C string, that level and what is used beside it: "avx512+bf16" where bf16 weights
 * meet activations rounded to bf16 (AVX512_BF16), otherwise the level's name. Static. */
KR_API const char *kr_isa_details(void);
/* kr_threads_default: physical cores usable by this process (affinity, cgroup quota). */
KR_API uint32_t kr_threads_default(void);
enum { KR_PIN_AUTO = 0, KR_PIN_ON = 1, KR_PIN_OFF = 2 };
/* kr_threads_pin: whether worker threads stay each on a CPU of a physical core of its own; the
 * caller's thread is never bound. AUTO (the default) pins when a session's threads are more than
 * half of the machine's cores (4 or more) but not more, and neither an affinity mask nor a CPU
 * quota limits the process. Holds for all sessions of the process from the next
 * kr_session_create or kr_model_open on, which with ON return KR_E_UNSUPPORTED when there are
 * fewer cores than threads. KR_E_INVALID_ARG: pin is none of these. Any thread. Since 0.1 */
KR_API kr_status_t kr_threads_pin(int32_t pin);
/* kr_threads_pinned: worker threads that are bound to a CPU now. Any thread. Since 0.1 */
KR_API uint32_t kr_threads_pinned(void);

#ifdef __cplusplus
}
#endif
#endif /* KR_H */
