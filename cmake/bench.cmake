# The benchmarks of kernels and attention (bench/ops) are linked into the program, whose `kr bench`
# measures with them. They need kernels, which libkr does not export, so the program has its own
# copies of the folders that they include. As with base (targets.cmake), the public names inside
# these copies are made local: the program calls libkr's.
file(GLOB sources CONFIGURE_DEPENDS bench/ops/*.c)
add_library(kri_bench STATIC ${sources})
target_include_directories(kri_bench PUBLIC ${CMAKE_SOURCE_DIR})
target_link_libraries(kri_bench PUBLIC kri_cpu kri_cache)
kri_warnings(kri_bench)
# The softmax of the unfused form may fuse multiply-adds, as the kernels do; so may the ceilings.
set_source_files_properties(bench/ops/softmax.c bench/ops/bench_peak.c
  PROPERTIES COMPILE_OPTIONS -ffp-contract=fast)

set(app_copies)
foreach(folder bench cache cpu cpu_avx2 cpu_avx512 cpu_avx512bf16 cpu_amx cpu_neon cpu_dotprod cpu_i8mm ops
    tensor)
  if(TARGET kri_${folder})
    add_custom_command(OUTPUT ${CMAKE_BINARY_DIR}/libkri_app_${folder}.a
      COMMAND ${CMAKE_OBJCOPY} --wildcard --localize-symbol=kr_* $<TARGET_FILE:kri_${folder}>
        ${CMAKE_BINARY_DIR}/libkri_app_${folder}.a
      DEPENDS kri_${folder} VERBATIM)
    list(APPEND app_copies ${CMAKE_BINARY_DIR}/libkri_app_${folder}.a)
  endif()
endforeach()
target_sources(kr_cli PRIVATE ${app_copies})
target_include_directories(kr_cli PRIVATE ${CMAKE_SOURCE_DIR})
# Before base in the link line, since they need it.
target_link_libraries(kr_cli PRIVATE -Wl,--start-group ${app_copies}
  ${CMAKE_BINARY_DIR}/libkri_app_base.a -Wl,--end-group)
# What a figure was built with.
target_compile_definitions(kr_cli PRIVATE KR_BUILD_TYPE="${CMAKE_BUILD_TYPE}"
  KR_COMPILER="${CMAKE_C_COMPILER_ID} ${CMAKE_C_COMPILER_VERSION}")

# What a barrier and a fork-join cost: a plain program, built without assertions and sanitizers.
add_executable(bench_threads EXCLUDE_FROM_ALL bench/bench_threads.c)
target_link_libraries(bench_threads PRIVATE kri_base)
kri_warnings(bench_threads)

# The other end of a bare ping-pong over pipes (bench/serve.py).
add_executable(bench_pipe_echo bench/pipe_echo.c)
kri_warnings(bench_pipe_echo)

# Attention of prompts on the CUDA device (bench/cuda_attention.py).
if(NOT KR_KERNELS_ONLY)
  add_executable(bench_cuda EXCLUDE_FROM_ALL bench/bench_cuda.c)
  target_link_libraries(bench_cuda PRIVATE kri_cuda kri_cpu)
  target_include_directories(bench_cuda PRIVATE ${CMAKE_SOURCE_DIR}/src)
  kri_warnings(bench_cuda)
endif()
