/* test_tensor_pool.c: pooled tensors through kr.h: shapes and refusals, reuse by size class, the
 * bound on idle memory, memory that runs out, threads, fork, and the allocator hook. */
#include "tensor/tensor_pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "telemetry/telemetry.h"
#include "test.h"

#define MIB ((uint64_t)1 << 20)

static kr_tensor_t acquire_bytes(uint64_t n_bytes) {
    kr_tensor_t tensor = NULL;
    assert_status(kr_tensor_acquire(KR_DTYPE_I8, 1, &n_bytes, &tensor, NULL), KR_OK);
    assert_non_null(tensor);
    return tensor;
}

static kr_tensor_view_t view_of(kr_tensor_t tensor) {
    kr_tensor_view_t view;
    kr_tensor_view_init(&view);
    assert_status(kr_tensor_view(tensor, &view), KR_OK);
    return view;
}

static uint64_t heap_bytes(void) {
    kr_memory_usage_t usage;
    kr_memory_usage_init(&usage);
    assert_status(kr_memory_usage(&usage), KR_OK);
    return usage.bytes_now;
}

static uint64_t heap_allocs(void) {
    kr_memory_usage_t usage;
    kr_memory_usage_init(&usage);
    assert_status(kr_memory_usage(&usage), KR_OK);
    return usage.n_allocs;
}

TEST(tensor_pool_view_tells_shape_strides_and_bytes) {
    static const struct {
        kr_dtype_t dtype;
        uint64_t item_bytes;
    } types[] = {{KR_DTYPE_F32, 4}, {KR_DTYPE_F16, 2}, {KR_DTYPE_BF16, 2}, {KR_DTYPE_I8, 1}};
    const uint64_t shape[4] = {3, 5, 7, 11};
    for (size_t t = 0; t < 4; t++) {
        for (uint32_t n_dims = 1; n_dims <= 4; n_dims++) {
            kr_tensor_t tensor = NULL;
            assert_status(kr_tensor_acquire(types[t].dtype, n_dims, shape, &tensor, NULL), KR_OK);
            const kr_tensor_view_t view = view_of(tensor);
            assert_int_equal(view.dtype, types[t].dtype);
            assert_int_equal(view.n_dims, n_dims);
            uint64_t stride = types[t].item_bytes;
            for (uint32_t d = n_dims; d-- > 0;) {
                assert_int_equal(view.shape[d], shape[d]);
                assert_int_equal(view.strides[d], stride);
                stride *= shape[d];
            }
            for (uint32_t d = n_dims; d < 4; d++) {
                assert_int_equal(view.shape[d], 0);
                assert_int_equal(view.strides[d], 0);
            }
            assert_int_equal(view.n_bytes, stride);
            assert_int_equal((uintptr_t)view.data % 64, 0);
            memset(view.data, 0xa5, view.n_bytes); /* all of it can be written */
            kr_tensor_release(tensor);
        }
    }
    kri_tensor_pool_trim();
}

static void assert_refused(kr_dtype_t dtype, uint32_t n_dims, const uint64_t *shape,
                           kr_status_t expected, const char *param) {
    kr_tensor_t tensor = NULL;
    kr_error_t error;
    kr_error_init(&error);
    assert_status(kr_tensor_acquire(dtype, n_dims, shape, &tensor, &error), expected);
    assert_int_equal(error.code, expected);
    assert_string_equal(error.param, param);
    assert_null(tensor);
    assert_status(kr_tensor_acquire(dtype, n_dims, shape, &tensor, NULL), expected);
}

TEST(tensor_pool_refuses_what_is_no_dense_tensor) {
    const uint64_t ones[4] = {1, 1, 1, 1};
    assert_refused(KR_DTYPE_NONE, 1, ones, KR_E_UNSUPPORTED, "dtype");
    assert_refused(KR_DTYPE_Q8_0, 1, (uint64_t[]){32}, KR_E_UNSUPPORTED, "dtype");
    assert_refused(13, 1, ones, KR_E_UNSUPPORTED, "dtype");
    assert_refused(-1, 1, ones, KR_E_UNSUPPORTED, "dtype");
    assert_refused(KR_DTYPE_F32, 0, ones, KR_E_INVALID_ARG, "n_dims");
    assert_refused(KR_DTYPE_F32, 5, ones, KR_E_INVALID_ARG, "n_dims");
    assert_refused(KR_DTYPE_F32, 1, NULL, KR_E_INVALID_ARG, "shape");
    for (uint32_t d = 0; d < 4; d++) {
        uint64_t shape[4] = {2, 2, 2, 2};
        shape[d] = 0;
        assert_refused(KR_DTYPE_F32, 4, shape, KR_E_INVALID_ARG, "shape");
        shape[(d + 1) % 4] = UINT64_MAX; /* a zero is worse than a limit, wherever it stands */
        assert_refused(KR_DTYPE_F32, 4, shape, KR_E_INVALID_ARG, "shape");
    }
    const uint64_t limit = (uint64_t)1 << 39;
    assert_refused(KR_DTYPE_I8, 1, (uint64_t[]){limit + 1}, KR_E_LIMIT, "shape");
    assert_refused(KR_DTYPE_I8, 1, (uint64_t[]){UINT64_MAX}, KR_E_LIMIT, "shape");
    assert_refused(KR_DTYPE_F32, 1, (uint64_t[]){limit / 4 + 1}, KR_E_LIMIT, "shape");
    assert_refused(KR_DTYPE_F32, 4, (uint64_t[]){65536, 65536, 65536, 65536}, KR_E_LIMIT, "shape");
    assert_refused(KR_DTYPE_F32, 2, (uint64_t[]){UINT64_C(1) << 62, 4}, KR_E_LIMIT, "shape");
    assert_refused(KR_DTYPE_I8, 1, (uint64_t[]){limit}, KR_E_NOMEM, ""); /* no room for a header */
    kr_error_t error;
    kr_error_init(&error);
    assert_status(kr_tensor_acquire(KR_DTYPE_F32, 1, ones, NULL, &error), KR_E_INVALID_ARG);
    assert_string_equal(error.param, "tensor");
    kr_tensor_retain(NULL);
    kr_tensor_release(NULL);
    kr_tensor_view_t view;
    kr_tensor_view_init(&view);
    assert_status(kr_tensor_view(NULL, &view), KR_E_INVALID_ARG);
    kr_tensor_t tensor = acquire_bytes(1);
    assert_status(kr_tensor_view(tensor, NULL), KR_E_INVALID_ARG);
    view.struct_bytes = 0;
    assert_status(kr_tensor_view(tensor, &view), KR_E_INVALID_ARG);
    kr_tensor_release(tensor);
    kri_tensor_pool_trim();
}

TEST(tensor_pool_gives_the_same_memory_again_without_allocating) {
    kri_tensor_pool_trim();
    /* 1281..1536 bytes are one class. */
    kr_tensor_t tensor = acquire_bytes(1281);
    void *data = view_of(tensor).data;
    kr_tensor_release(tensor);
    const uint64_t n_allocs = heap_allocs();
    for (uint64_t n = 1281; n <= 1536; n += 51) {
        tensor = acquire_bytes(n);
        assert_ptr_equal(view_of(tensor).data, data);
        assert_int_equal(kri_tensor_pool_idle_bytes(), 0);
        kr_tensor_release(tensor);
    }
    assert_int_equal(heap_allocs(), n_allocs);
    tensor = acquire_bytes(1537); /* the next class */
    assert_int_equal(heap_allocs(), n_allocs + 1);
    kr_tensor_release(tensor);
    kri_tensor_pool_trim();
    assert_int_equal(kri_tensor_pool_idle_bytes(), 0);
}

TEST(tensor_pool_wastes_at_most_a_quarter_at_every_size) {
    kri_tensor_pool_trim();
    const uint64_t before = heap_bytes();
    for (uint64_t n = 1; n < 300 * MIB; n += n / 9 + 1) {
        for (uint64_t size = n > 1 ? n - 1 : 1; size <= n + 1; size++) {
            kr_tensor_t tensor = acquire_bytes(size);
            const uint64_t taken = heap_bytes() - before;
            assert_true(taken >= size);
            assert_true(taken <= (size <= 256 ? 256 : size + size / 4) + 256);
            kr_tensor_release(tensor);
            kri_tensor_pool_trim();
            assert_int_equal(heap_bytes(), before);
        }
    }
}

TEST(tensor_pool_keeps_a_tensor_until_its_last_reference) {
    kri_tensor_pool_trim();
    const uint64_t before = heap_bytes();
    kr_tensor_t tensor = acquire_bytes(1000);
    kr_tensor_retain(tensor);
    kr_tensor_retain(tensor);
    kr_tensor_release(tensor);
    kr_tensor_release(tensor);
    assert_int_equal(kri_tensor_pool_idle_bytes(), 0);
    memset(view_of(tensor).data, 1, 1000);
    kr_tensor_release(tensor);
    assert_true(kri_tensor_pool_idle_bytes() >= 1000);
    kri_tensor_pool_trim();
    assert_int_equal(heap_bytes(), before);
}

TEST(tensor_pool_idle_memory_is_bounded_and_the_longest_idle_goes_first) {
    kri_tensor_pool_trim();
    const uint64_t before = heap_bytes();
    kr_tensor_t small = acquire_bytes(300);
    void *small_data = view_of(small).data;
    enum { N = 20 };
    kr_tensor_t large[N];
    for (int i = 0; i < N; i++) large[i] = acquire_bytes(7 * MIB);
    kr_tensor_release(small); /* the longest idle */
    for (int i = 0; i < N; i++) {
        kr_tensor_release(large[i]);
        assert_true(kri_tensor_pool_idle_bytes() <= KRI_TENSOR_IDLE_BYTES_MAX);
        if (i == 7) { /* 8 of 7 MiB and the small one fit */
            small = acquire_bytes(300);
            assert_ptr_equal(view_of(small).data, small_data);
            kr_tensor_release(small); /* now the newest */
        }
    }
    assert_true(kri_tensor_pool_idle_bytes() > KRI_TENSOR_IDLE_BYTES_MAX - 8 * MIB);
    const uint64_t n_allocs = heap_allocs();
    kr_tensor_t tensor = acquire_bytes(300); /* its place went to newer ones */
    assert_int_equal(heap_allocs(), n_allocs + 1);
    kr_tensor_release(tensor);
    tensor = acquire_bytes(65 * MIB); /* never kept */
    const uint64_t idle = kri_tensor_pool_idle_bytes();
    kr_tensor_release(tensor);
    assert_int_equal(kri_tensor_pool_idle_bytes(), idle);
    kri_tensor_pool_trim();
    assert_int_equal(heap_bytes(), before);
}

TEST(tensor_pool_gives_idle_memory_back_before_it_fails) {
    kri_tensor_pool_trim();
    const uint64_t before = heap_bytes();
    const uint64_t shape = 5000;
    kr_tensor_t tensor = NULL;
    for (int forever = 0; forever < 2; forever++) {
        kri_alloc_fail(1, forever != 0);
        assert_status(kr_tensor_acquire(KR_DTYPE_F32, 1, &shape, &tensor, NULL), KR_E_NOMEM);
        kri_alloc_fail(0, false);
        assert_null(tensor);
        assert_int_equal(heap_bytes(), before);
        kr_tensor_release(acquire_bytes(300));
        kri_alloc_fail(1, forever != 0);
        const kr_status_t status = kr_tensor_acquire(KR_DTYPE_F32, 1, &shape, &tensor, NULL);
        kri_alloc_fail(0, false);
        assert_status(status, forever ? KR_E_NOMEM : KR_OK);
        assert_int_equal(kri_tensor_pool_idle_bytes(), 0);
        kr_tensor_release(tensor);
        tensor = NULL;
        kri_tensor_pool_trim();
    }
    kr_tensor_release(acquire_bytes(20000));
    kri_alloc_fail(1, true); /* what is idle needs no heap */
    assert_status(kr_tensor_acquire(KR_DTYPE_F32, 1, &shape, &tensor, NULL), KR_OK);
    kri_alloc_fail(0, false);
    kr_tensor_release(tensor);
    kri_tensor_pool_trim();
    assert_int_equal(heap_bytes(), before);
}

static void *counting_alloc(size_t size, const char *purpose, void *user) {
    assert_string_equal(purpose, "tensor");
    (*(int *)user)++;
    return aligned_alloc(64, (size + 63) / 64 * 64);
}

static void counting_free(void *ptr, size_t size, const char *purpose, void *user) {
    (void)size, (void)purpose;
    (*(int *)user)--;
    free(ptr);
}

TEST(tensor_pool_does_not_keep_the_allocator_from_being_replaced) {
    int n_live = 0;
    const kr_allocator_t allocator = {sizeof allocator, 0, counting_alloc, counting_free, &n_live};
    kr_tensor_t tensor = acquire_bytes(5000);
    assert_status(kr_allocator_set(&allocator), KR_E_BUSY); /* one is in use */
    kr_tensor_release(tensor);
    assert_true(kri_tensor_pool_idle_bytes() > 0);
    assert_status(kr_allocator_set(&allocator), KR_OK);
    assert_int_equal(kri_tensor_pool_idle_bytes(), 0);
    kr_tensor_release(acquire_bytes(5000));
    assert_int_equal(n_live, 1);
    assert_status(kr_allocator_set(NULL), KR_OK);
    assert_int_equal(n_live, 0);
}

enum { N_THREADS = 8, N_ROUNDS = 3000, N_SHARED = 16 };
static kr_tensor_t shared[N_SHARED];
static _Atomic uint32_t n_wrong;

static void *use_tensors(void *arg) {
    const uint32_t self = (uint32_t)(uintptr_t)arg;
    uint64_t seed = 88172645463325252u + self;
    for (uint32_t i = 0; i < N_ROUNDS; i++) {
        seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
        uint64_t shape = 1 + seed % 20000;
        kr_tensor_t tensor = NULL;
        kr_tensor_view_t view;
        kr_tensor_view_init(&view);
        if (kr_tensor_acquire(KR_DTYPE_I8, 1, &shape, &tensor, NULL) != KR_OK ||
            kr_tensor_view(tensor, &view) != KR_OK) {
            atomic_fetch_add(&n_wrong, 1);
            return NULL;
        }
        const uint8_t mark = (uint8_t)(self * 31 + i);
        memset(view.data, mark, shape);
        kr_tensor_t other = shared[seed % N_SHARED];
        kr_tensor_retain(other);
        if (i % 97 == 0) kri_tensor_pool_trim();
        kr_tensor_release(other);
        const uint8_t *bytes = view.data; /* nobody else was given it meanwhile */
        if (bytes[0] != mark || bytes[shape / 2] != mark || bytes[shape - 1] != mark) {
            atomic_fetch_add(&n_wrong, 1);
        }
        kr_tensor_release(tensor);
    }
    return NULL;
}

TEST(tensor_pool_serves_threads_at_once) {
    kri_tensor_pool_trim();
    const uint64_t before = heap_bytes();
    for (int i = 0; i < N_SHARED; i++) shared[i] = acquire_bytes(100);
    pthread_t threads[N_THREADS];
    for (uintptr_t i = 0; i < N_THREADS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, use_tensors, (void *)i), 0);
    }
    for (int i = 0; i < N_THREADS; i++) pthread_join(threads[i], NULL);
    assert_int_equal(atomic_load(&n_wrong), 0);
    for (int i = 0; i < N_SHARED; i++) kr_tensor_release(shared[i]);
    kri_tensor_pool_trim();
    assert_int_equal(heap_bytes(), before);
}

static _Atomic int is_forking;

static void *churn(void *arg) {
    (void)arg;
    while (atomic_load(&is_forking)) kr_tensor_release(acquire_bytes(1000));
    return NULL;
}

TEST(tensor_pool_works_in_the_child_of_a_fork) {
    /* An emulator of another CPU has threads of its own, which do not survive this. */
    if (getenv("KR_TEST_ISA") != NULL) SKIP("under emulation");
    atomic_store(&is_forking, 1);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, churn, NULL), 0);
    for (int i = 0; i < 50; i++) {
        const pid_t child = fork();
        if (child == 0) {
            alarm(60); /* a mutex that stayed locked would hang the child */
            uint64_t shape = 1000;
            kr_tensor_t tensor = NULL;
            const kr_status_t status = kr_tensor_acquire(KR_DTYPE_F32, 1, &shape, &tensor, NULL);
            kr_tensor_release(tensor);
            _exit(status == KR_OK ? 0 : 1);
        }
        assert_true(child > 0);
        int how = -1;
        assert_int_equal(waitpid(child, &how, 0), child);
        assert_int_equal(how, 0);
    }
    atomic_store(&is_forking, 0);
    pthread_join(thread, NULL);
    kri_tensor_pool_trim();
}

TEST(tensor_pool_bytes_is_what_every_telemetry_reports) {
    kri_tensor_pool_trim();
    kr_telemetry_t telemetry = NULL;
    if (kr_telemetry_create(&telemetry) == KR_E_UNSUPPORTED) SKIP("built with KR_TELEMETRY=OFF");
    kr_telemetry_report_t report;
    kr_telemetry_report_init(&report);
    kr_tensor_release(acquire_bytes(4096));
    assert_status(kr_telemetry_report(telemetry, "tensor_pool_bytes", &report), KR_OK);
    assert_true(report.value == (double)kri_tensor_pool_idle_bytes());
    assert_true(report.value >= 4096.0);
    /* What a host sets is not what is. */
    assert_status(kr_telemetry_set(telemetry, "tensor_pool_bytes", 1.0), KR_OK);
    kri_tensor_pool_trim();
    assert_status(kr_telemetry_report(telemetry, "tensor_pool_bytes", &report), KR_OK);
    assert_true(report.value == 0.0);
    kr_telemetry_destroy(telemetry);
}
