# Strict from the first day; conversions included (32-bit accumulators are a bug family).
function(kri_warnings target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wshadow -Wconversion -Wsign-conversion
    -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wvla -Wundef -Werror
    -fno-strict-aliasing -ffp-contract=off)
  if(KR_ASSERTIONS)
    target_compile_definitions(${target} PRIVATE KR_ASSERTIONS)
  endif()
  if(KR_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${KR_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
    target_link_options(${target} PUBLIC -fsanitize=${KR_SANITIZE})
  endif()
  if(KR_FUZZ)
    target_compile_options(${target} PRIVATE -fsanitize=fuzzer-no-link)
  endif()
endfunction()
