# vlkv_tensorrt_headers: TensorRT's C++ headers from TENSORRT_ROOT or the system, else fetched by their hashes.
# Without any, the target does not exist and one line says what to do.
find_path(VLKV_TENSORRT_INCLUDE NvInferRuntime.h HINTS ${TENSORRT_ROOT} ENV TENSORRT_ROOT
          PATH_SUFFIXES include include/x86_64-linux-gnu include/aarch64-linux-gnu)

set(vlkv_tensorrt_tag v11.1)
set(vlkv_tensorrt_hashes
  NvInferImpl.h c6acddec7e286c18e9cd08511553c2015f99c487ca25717790e54e30c18ade79
  NvInferLegacyDims.h 3e10fe5b85545f2e956e6935271badf0b1c72553b698000a61d46d69c5d53030
  NvInferPluginBase.h 759f354754e64bf4d1e68d7df796c155c46f8a27541bf1912ba13e79a5a26fc2
  NvInferRuntime.h e78c2d49516a66f726864904386534f63eacf0ad75a6dfdde7dfa70adf39f797
  NvInferRuntimeBase.h ec38759dbf8a5538c4cd30890f1764658bc2dcec87e95ac18148e476cbe1671b
  NvInferRuntimeCommon.h eff4c0251cb4813bbc7fe34c6b28fdb6c08734c27ae53b07974d2557bf1431be
  NvInferRuntimePlugin.h d4db4236da9c03e543949247a75478b5ce68fc84eb30cd15b35081b94c8d8391
  NvInferVersion.h 8648df4851fb2df1a15d7dfdae6454428c4b119055f65f6a98de8ff806977b2e
  impl/NvInferPythonPlugin.h 9b3a1df866a40620ae029af35ea6cdb45d439cffbe4cc21aaf673201c07dcc77)

function(vlkv_fetch_tensorrt folder)
  set(base https://raw.githubusercontent.com/NVIDIA/TensorRT/${vlkv_tensorrt_tag}/include)
  while(vlkv_tensorrt_hashes)
    list(POP_FRONT vlkv_tensorrt_hashes name hash)
    set(file ${folder}/${name})
    if(NOT EXISTS ${file})
      file(DOWNLOAD ${base}/${name} ${file}.part STATUS status INACTIVITY_TIMEOUT 20)
      list(GET status 0 code)
      set(found none)
      if(code EQUAL 0)
        file(SHA256 ${file}.part found)
      endif()
      if(NOT found STREQUAL hash)
        file(REMOVE ${file}.part)
        return()
      endif()
      file(RENAME ${file}.part ${file})
    endif()
  endwhile()
  set(VLKV_TENSORRT_INCLUDE ${folder} CACHE PATH "TensorRT's headers" FORCE)
endfunction()

if(NOT VLKV_TENSORRT_INCLUDE)
  vlkv_fetch_tensorrt(${CMAKE_BINARY_DIR}/tensorrt/include)
endif()
if(VLKV_TENSORRT_INCLUDE)
  add_library(vlkv_tensorrt_headers INTERFACE)
  target_include_directories(vlkv_tensorrt_headers SYSTEM INTERFACE
    ${PROJECT_SOURCE_DIR}/plugin/cuda_types ${VLKV_TENSORRT_INCLUDE})
else()
  message(NOTICE "TensorRT plugin skipped: no headers here and none could be fetched (set TENSORRT_ROOT to a "
                 "folder with include/NvInferRuntime.h, of TensorRT 10.1 or later)")
endif()
