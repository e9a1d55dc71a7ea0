# make_tiny_gguf: writes the tiny random models of tests/tiny_model.h (golden files, fuzz seeds).
if(KR_TESTS)
  add_executable(make_tiny_gguf tools/make_tiny_gguf.c)
  target_include_directories(make_tiny_gguf PRIVATE ${CMAKE_SOURCE_DIR}/tests)
  set_target_properties(make_tiny_gguf PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  kri_warnings(make_tiny_gguf)
endif()
