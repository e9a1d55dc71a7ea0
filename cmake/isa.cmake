# One static library per ISA folder of src/cpu, with that folder's flags only. Detection
# (src/cpu/cpuid.c) stays baseline code without LTO.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(KRI_ISA_FLAGS_avx2 -mavx2 -mfma -mf16c -mbmi2)
  set(KRI_ISA_FLAGS_avx512 -mavx2 -mfma -mf16c -mbmi2 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mprefer-vector-width=512)
  set(KRI_ISA_FLAGS_avx512bf16 ${KRI_ISA_FLAGS_avx512} -mavx512bf16)
  foreach(isa avx2 avx512 avx512bf16)
    file(GLOB sources CONFIGURE_DEPENDS src/cpu/${isa}/*.c)
    if(sources)
      add_library(kri_cpu_${isa} STATIC ${sources})
      target_include_directories(kri_cpu_${isa} PRIVATE ${CMAKE_SOURCE_DIR}/include ${CMAKE_SOURCE_DIR}/src)
      target_compile_options(kri_cpu_${isa} PRIVATE ${KRI_ISA_FLAGS_${isa}} -O3)
      kri_warnings(kri_cpu_${isa})
      if(KR_SANITIZE)
        # Instrumented, the fully unrolled kernels take minutes to compile. Their bounds are held
        # by the guard pages of tests/ops, their arithmetic by bit-equality with the references,
        # which are instrumented.
        target_compile_options(kri_cpu_${isa} PRIVATE -fno-sanitize=all)
      endif()
      target_link_libraries(kri_cpu INTERFACE kri_cpu_${isa})
      target_link_libraries(kri_cpu_${isa} PRIVATE kri_ops)
    endif()
  endforeach()
endif()
