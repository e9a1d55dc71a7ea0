# One static library per ISA folder of src/cpu, with that folder's flags only. Detection
# (src/cpu/cpuid.c) stays baseline code without LTO.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(KRI_ISA_FLAGS_avx2 -mavx2 -mfma -mf16c -mbmi2)
  set(KRI_ISA_FLAGS_avx512 ${KRI_ISA_FLAGS_avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mprefer-vector-width=512)
  set(KRI_ISA_FLAGS_amx ${KRI_ISA_FLAGS_avx512} -mavx512bf16 -mamx-tile -mamx-bf16)
  set(KRI_ISA_FLAGS_avx512bf16 ${KRI_ISA_FLAGS_avx512} -mavx512bf16)
  # kri_isa_library(<name> <folder>): the kernels of one folder.
  function(kri_isa_library name isa)
    file(GLOB sources CONFIGURE_DEPENDS src/cpu/${isa}/*.c)
    add_library(${name} STATIC ${sources})
    target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR}/include ${CMAKE_SOURCE_DIR}/src)
    target_compile_options(${name} PRIVATE ${KRI_ISA_FLAGS_${isa}} -O3)
    kri_warnings(${name})
    if(KR_SANITIZE)
      # Instrumented, the fully unrolled kernels take minutes to compile. Their bounds are held
      # by the guard pages of tests/ops, their arithmetic by bit-equality with the references,
      # which are instrumented.
      target_compile_options(${name} PRIVATE -fno-sanitize=all)
    endif()
    target_link_libraries(${name} PRIVATE kri_ops)
  endfunction()
  foreach(isa avx2 avx512 avx512bf16 amx)
    kri_isa_library(kri_cpu_${isa} ${isa})
    target_link_libraries(kri_cpu INTERFACE kri_cpu_${isa})
  endforeach()
  # The AMX kernels over tiles in ordinary memory: for tests on machines without AMX.
  kri_isa_library(kri_cpu_amx_emulated amx)
  set_target_properties(kri_cpu_amx_emulated PROPERTIES EXCLUDE_FROM_ALL ON)
  target_compile_definitions(kri_cpu_amx_emulated PUBLIC KRI_AMX_EMULATED)
  target_link_libraries(kri_cpu_amx_emulated PUBLIC kri_cpu_avx512)
endif()
