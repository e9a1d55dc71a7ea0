/* test_isa.c: levels by name, and the kernel table chosen for them. */
#include "test.h"

#include <string.h>

#include "cpu/cpu.h"
#include "kr.h"

TEST(isa_names_round_trip) {
    for (int i = 0; i < KRI_N_ISA; i++) {
        kri_isa_t isa = KRI_N_ISA;
        assert_true(kri_isa_from_name(kri_isa_name((kri_isa_t)i), &isa));
        assert_int_equal(isa, i);
    }
    assert_string_equal(kri_isa_name(KRI_ISA_REF), "ref");
    assert_string_equal(kri_isa_name(KRI_N_ISA), "?");
}

TEST(isa_from_name_refuses_what_it_does_not_know) {
    kri_isa_t isa = KRI_N_ISA;
    assert_false(kri_isa_from_name("", &isa));
    assert_false(kri_isa_from_name("REF", &isa));
    assert_false(kri_isa_from_name("ref ", &isa));
    assert_false(kri_isa_from_name(NULL, &isa));
    assert_int_equal(isa, KRI_N_ISA);
}

/* A level of another architecture is refused, not lowered: nothing below it was asked for. */
TEST(kernels_refuse_levels_of_other_architectures) {
#if defined(__aarch64__)
    static const char *const others[] = {"avx2", "avx512", "amx"};
#else
    static const char *const others[] = {"neon", "dotprod", "i8mm"};
#endif
    kri_kernels_t kernels;
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        assert_int_equal(kri_cpu_kernels(others[i], &kernels, NULL), KR_E_INVALID_ARG);
    }
}

#if defined(__aarch64__)
/* tools/run_tests.py names the level of the CPU it emulates. */
TEST(isa_detected_is_that_of_the_emulated_cpu) {
    const char *level = getenv("KR_TEST_ISA");
    if (level == NULL) SKIP("not emulated");
    assert_string_equal(kri_isa_name(kri_isa_detect()), level);
}

TEST(kernels_take_each_slot_from_the_highest_level_that_has_it) {
    kri_kernels_t below, kernels;
    kri_kernels_ref(&below);
    for (int i = KRI_ISA_NEON; i <= (int)kri_isa_detect(); i++) {
        assert_int_equal(kri_cpu_kernels(kri_isa_name((kri_isa_t)i), &kernels, NULL), KR_OK);
        assert_true(kernels.linear_q4_0 != below.linear_q4_0);
        assert_int_equal(kernels.attention_f16 != below.attention_f16, i == KRI_ISA_NEON);
        below = kernels;
    }
}
#endif

TEST(kernels_are_the_references_when_ref_is_wanted) {
    kri_kernels_t wanted, expected;
    memset(&wanted, 0, sizeof wanted);
    memset(&expected, 0, sizeof expected);
    kri_kernels_ref(&expected);
    assert_int_equal(kri_cpu_kernels("ref", &wanted, NULL), KR_OK);
    assert_string_equal(wanted.isa, "ref");
#define KR_OP(slot, type, family, tolerance) assert_true(wanted.slot == expected.slot);
#include "ops/ops.def"
}

TEST(kernels_level_is_lowered_but_never_raised) {
    kr_error_t error;
    const kri_isa_t best = kri_isa_detect();
    kri_kernels_t kernels;
    assert_int_equal(kri_cpu_kernels(NULL, &kernels, NULL), KR_OK);
    assert_string_equal(kernels.isa, kri_isa_name(best));
    for (int i = 0; i < KRI_N_ISA; i++) {
        const kri_isa_t wanted = (kri_isa_t)i;
        kr_error_init(&error);
        if (wanted <= best) {
            assert_int_equal(kri_cpu_kernels(kri_isa_name(wanted), &kernels, &error), KR_OK);
            assert_string_equal(kernels.isa, kri_isa_name(wanted));
            continue;
        }
        assert_int_equal(kri_cpu_kernels(kri_isa_name(wanted), &kernels, &error),
                         KR_E_UNSUPPORTED);
        assert_string_equal(error.param, "isa");
        assert_non_null(strstr(error.message, kri_isa_name(best))); /* names what there is */
    }
}

TEST(isa_bf16_comes_only_with_avx512) {
#if defined(__aarch64__)
    assert_false(kri_isa_has_bf16());
#else
    assert_true(!kri_isa_has_bf16() || kri_isa_detect() >= KRI_ISA_AVX512);
#endif
}

TEST(kernels_slots_change_with_the_level) {
    kri_kernels_t kernels;
    assert_int_equal(kri_cpu_kernels(NULL, &kernels, NULL), KR_OK);
    const int fast = kri_isa_detect() > KRI_ISA_REF;
    assert_int_equal(kernels.linear_q4_k != kri_linear_q4_k_ref, fast);
    assert_int_equal(kernels.quant_q8 != kri_quant_q8_ref, fast);
}

TEST(kernels_refuse_an_unknown_level_and_leave_the_table) {
    kri_kernels_t kernels;
    kr_error_t error;
    kernels.isa = "untouched";
    kr_error_init(&error);
    assert_int_equal(kri_cpu_kernels("sse9", &kernels, &error), KR_E_INVALID_ARG);
    assert_int_equal(error.code, KR_E_INVALID_ARG);
    assert_string_equal(error.param, "isa");
    assert_string_equal(kernels.isa, "untouched");
}
