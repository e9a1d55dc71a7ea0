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
    kri_isa_t isa = KRI_ISA_AVX2;
    assert_false(kri_isa_from_name("", &isa));
    assert_false(kri_isa_from_name("AVX2", &isa));
    assert_false(kri_isa_from_name("avx2 ", &isa));
    assert_false(kri_isa_from_name(NULL, &isa));
    assert_int_equal(isa, KRI_ISA_AVX2);
}

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
    const kri_isa_t best = kri_isa_detect();
    kri_kernels_t kernels;
    assert_int_equal(kri_cpu_kernels(NULL, &kernels, NULL), KR_OK);
    assert_string_equal(kernels.isa, kri_isa_name(best));
    for (int i = 0; i < KRI_N_ISA; i++) {
        const kri_isa_t wanted = (kri_isa_t)i;
        const kri_isa_t expected = wanted < best ? wanted : best;
        assert_int_equal(kri_cpu_kernels(kri_isa_name(wanted), &kernels, NULL), KR_OK);
        assert_string_equal(kernels.isa, kri_isa_name(expected));
    }
}

TEST(isa_bf16_comes_only_with_avx512) {
    assert_true(!kri_isa_has_bf16() || kri_isa_detect() == KRI_ISA_AVX512);
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
