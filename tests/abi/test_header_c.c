/* test_header_c.c: numbers and layouts of kr.h that callers compiled against. A change here is a
 * change of KR_ABI_VERSION. kr.h comes first, so that this file also proves it needs nothing. */
#include "kr.h"

#include "test.h"

TEST(abi_version_of_the_library_is_that_of_the_header) {
    assert_int_equal(kr_abi_version(), KR_ABI_VERSION);
    assert_int_equal(KR_ABI_VERSION, 1);
}

TEST(abi_status_numbers_and_names_are_fixed) {
    static const char *const names[] = {
        "KR_OK", "KR_E_INVALID_ARG", "KR_E_NOT_FOUND", "KR_E_EXISTS", "KR_E_UNSUPPORTED",
        "KR_E_BAD_FORMAT", "KR_E_TRUNCATED", "KR_E_CORRUPT", "KR_E_LIMIT", "KR_E_NOMEM",
        "KR_E_DEVICE_NOMEM", "KR_E_DEVICE_LOST", "KR_E_IO", "KR_E_NOSPC", "KR_E_BUSY",
        "KR_E_TIMEOUT", "KR_E_CANCELLED", "KR_E_SHUTTING_DOWN", "KR_E_CONTEXT_LENGTH",
        "KR_E_NUMERIC", "KR_E_BAD_SCHEMA", "KR_E_BAD_TEMPLATE", "KR_E_BAD_IMAGE", "KR_E_PROTOCOL",
        "KR_E_PERMISSION", "KR_E_CHANGED", "KR_E_CHILD_DIED", "KR_E_INTERNAL"};
    for (kr_status_t status = 0; status <= KR_E_INTERNAL; status++)
        assert_string_equal(kr_status_name(status), names[status]);
    assert_int_equal(KR_E_INTERNAL + 1, sizeof names / sizeof names[0]);
}

TEST(abi_other_enumerators_are_fixed) {
    assert_int_equal(KR_LOG_DEBUG, 3);
    assert_int_equal(KR_DTYPE_F16, 2);
    assert_int_equal(KR_DTYPE_Q6_K, 11);
    assert_int_equal(KR_TOKENIZE_ADD_BOS | KR_TOKENIZE_PARSE_SPECIAL, 3);
    assert_int_equal(KR_INVARIANT_OFF, 2);
    assert_int_equal(sizeof(kr_status_t), 4);
    assert_int_equal(sizeof(kr_token_t), 4);
    assert_int_equal(sizeof(kr_dtype_t), 4);
}

#define SIZE(type, size) {#type, sizeof(type), size}
#define FIELD(type, field, offset) {#type "." #field, offsetof(type, field), offset}

typedef struct layout_s { const char *what; size_t is, was; } layout_t;

/* 64-bit systems; where pointers are smaller, nothing was ever released. */
TEST(abi_layouts_are_fixed) {
    static const layout_t layouts[] = {
        SIZE(kr_error_t, 592), FIELD(kr_error_t, offset, 8), FIELD(kr_error_t, message, 80),
        SIZE(kr_allocator_t, 32), FIELD(kr_allocator_t, user, 24),
        SIZE(kr_memory_usage_t, 32), FIELD(kr_memory_usage_t, n_allocs, 24),
        SIZE(kr_telemetry_report_t, 80), FIELD(kr_telemetry_report_t, p50_ms, 40),
        FIELD(kr_telemetry_report_t, throughput_per_s, 64), FIELD(kr_telemetry_report_t, value, 72),
        SIZE(kr_model_params_t, 48), FIELD(kr_model_params_t, vocab_only, 8),
        FIELD(kr_model_params_t, progress_user, 24), FIELD(kr_model_params_t, cache_dir, 32),
        FIELD(kr_model_params_t, cache_bytes_max, 40),
        SIZE(kr_model_info_t, 120), FIELD(kr_model_info_t, token_bos, 40),
        FIELD(kr_model_info_t, model_bytes, 56), FIELD(kr_model_info_t, chat_template, 112),
        SIZE(kr_tensor_info_t, 64), FIELD(kr_tensor_info_t, shape, 16),
        FIELD(kr_tensor_info_t, name, 56),
        SIZE(kr_message_t, 24),
        SIZE(kr_session_params_t, 64), FIELD(kr_session_params_t, isa, 32),
        FIELD(kr_session_params_t, telemetry, 40), FIELD(kr_session_params_t, kv_bytes_max, 48),
        FIELD(kr_session_params_t, prefix_cache, 56),
        SIZE(kr_session_info_t, 80), FIELD(kr_session_info_t, kv_bytes, 32),
        FIELD(kr_session_info_t, isa, 48),
        SIZE(kr_batch_seq_t, 8),
        SIZE(kr_batch_t, 88), FIELD(kr_batch_t, tokens, 8), FIELD(kr_batch_t, out_rows, 32),
        FIELD(kr_batch_t, adapters, 56), FIELD(kr_batch_t, hidden, 72),
        SIZE(kr_sampler_params_t, 64), FIELD(kr_sampler_params_t, seed, 40),
        FIELD(kr_sampler_params_t, logit_bias, 56),
        SIZE(kr_logit_bias_t, 8), SIZE(kr_logprob_t, 8),
        SIZE(kr_tensor_view_t, 96), FIELD(kr_tensor_view_t, strides, 48),
        FIELD(kr_tensor_view_t, data, 88), SIZE(kr_event_t, 96), FIELD(kr_event_t, text, 40),
        FIELD(kr_event_t, error, 72), FIELD(kr_event_t, stop, 80),
        FIELD(kr_event_t, embedding, 88), SIZE(kr_engine_params_t, 56),
        FIELD(kr_engine_params_t, telemetry, 24), FIELD(kr_engine_params_t, user, 48),
        SIZE(kr_engine_stats_t, 112), FIELD(kr_engine_stats_t, kv_bytes_max, 16),
        FIELD(kr_engine_stats_t, is_draining, 104), SIZE(kr_grammar_t, 24), SIZE(kr_segment_t, 40),
        FIELD(kr_segment_t, messages, 32), SIZE(kr_request_params_t, 112),
        FIELD(kr_request_params_t, stops, 32), FIELD(kr_request_params_t, key, 72),
        FIELD(kr_request_params_t, user, 96), FIELD(kr_request_params_t, pooling, 104),
        SIZE(kr_request_stats_t, 96), FIELD(kr_request_stats_t, template_ms, 40),
        SIZE(kr_explain_t, 40), FIELD(kr_explain_t, ttft_ms, 32),
    };
    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++) {
        if (sizeof(void *) != 8) SKIP("layouts are recorded for 64-bit systems");
        if (layouts[i].is != layouts[i].was) print_error("%s moved\n", layouts[i].what);
        assert_int_equal(layouts[i].is, layouts[i].was);
    }
}

TEST(abi_structs_that_callers_fill_begin_with_their_size) {
    kr_error_t error;
    kr_memory_usage_t usage;
    kr_telemetry_report_t report;
    kr_model_params_t model_params;
    kr_model_info_t model_info;
    kr_tensor_info_t tensor_info;
    kr_session_params_t session_params;
    kr_session_info_t session_info;
    kr_batch_t batch;
    kr_sampler_params_t sampler_params;
    kr_error_init(&error);
    kr_memory_usage_init(&usage);
    kr_telemetry_report_init(&report);
    kr_model_params_init(&model_params);
    kr_model_info_init(&model_info);
    kr_tensor_info_init(&tensor_info);
    kr_session_params_init(&session_params);
    kr_session_info_init(&session_info);
    kr_batch_init(&batch);
    kr_sampler_params_init(&sampler_params);
    assert_int_equal(error.struct_bytes, sizeof error);
    assert_int_equal(usage.struct_bytes, sizeof usage);
    assert_int_equal(report.struct_bytes, sizeof report);
    assert_int_equal(model_params.struct_bytes, sizeof model_params);
    assert_int_equal(model_info.struct_bytes, sizeof model_info);
    assert_int_equal(tensor_info.struct_bytes, sizeof tensor_info);
    assert_int_equal(session_params.struct_bytes, sizeof session_params);
    assert_int_equal(session_info.struct_bytes, sizeof session_info);
    assert_int_equal(batch.struct_bytes, sizeof batch);
    assert_int_equal(sampler_params.struct_bytes, sizeof sampler_params);
}
