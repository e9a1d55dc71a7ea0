# The text library: one Rust crate (text/) built by cargo into a static library with a C ABI.
# The target folder lies outside build/ so that a clean C build does not rebuild 90 crates.
find_program(CARGO cargo REQUIRED)
set(KRT_LIB ${KR_CARGO_DIR}/release/libkrt.a)
file(GLOB KRT_SOURCES CONFIGURE_DEPENDS text/src/*.rs text/Cargo.toml text/Cargo.lock)
add_custom_command(OUTPUT ${KRT_LIB}
  COMMAND ${CMAKE_COMMAND} -E env CARGO_TARGET_DIR=${KR_CARGO_DIR} ${CARGO} build --release --locked --manifest-path ${CMAKE_SOURCE_DIR}/text/Cargo.toml
  DEPENDS ${KRT_SOURCES} COMMENT "cargo build text" USES_TERMINAL)
add_custom_target(krt_build DEPENDS ${KRT_LIB})
add_library(krt INTERFACE)
add_dependencies(krt krt_build)
target_include_directories(krt INTERFACE ${CMAKE_SOURCE_DIR}/text)
target_link_libraries(krt INTERFACE ${KRT_LIB} m pthread dl)
