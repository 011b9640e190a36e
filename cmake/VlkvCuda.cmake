# VLKV_HAVE_CUDA: whether the CUDA kernels are compiled. ON asks for them; AUTO takes them where a compiler and the
# runtime are found, but not into a Python wheel nor under the sanitizers, which check the kernels on the host.
set(VLKV_CUDA AUTO CACHE STRING "CUDA kernels: ON, OFF, or AUTO (where a CUDA compiler is found)")
set(VLKV_CUDA_ARCHITECTURES 80 86-real 89-real 90-real 100-real 120-real
    CACHE STRING "What the CUDA kernels are compiled for; 80 brings the PTX that any later device can take")

set(VLKV_HAVE_CUDA OFF)
if(VLKV_CUDA STREQUAL "AUTO")
  if(NOT VLKV_PYTHON AND NOT VLKV_ASAN)
    include(CheckLanguage)
    check_language(CUDA)
    find_package(CUDAToolkit QUIET)
    if(CMAKE_CUDA_COMPILER AND TARGET CUDA::cudart_static)
      set(VLKV_HAVE_CUDA ON)
    else()
      message(NOTICE "CUDA kernels skipped: no CUDA compiler and runtime here (set CUDACXX to an nvcc of CUDA 12.8 "
                     "or later)")
    endif()
  endif()
elseif(VLKV_CUDA)
  set(VLKV_HAVE_CUDA ON)
endif()

if(VLKV_HAVE_CUDA)
  set(CMAKE_CUDA_ARCHITECTURES ${VLKV_CUDA_ARCHITECTURES})
  enable_language(CUDA)
  find_package(CUDAToolkit REQUIRED)
endif()
