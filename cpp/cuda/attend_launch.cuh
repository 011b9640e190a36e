// Attend for one element type; attend_<type>.cu instantiates it.
#pragma once

#include "cuda/device/attend_join.cuh"
#include "cuda/device/attend_rows.cuh"
#include "cuda/launch.h"
#include "cuda/launchers.h"

namespace vlkv::cuda {

template <class Type, int kDim>
void launch_attend_of(const AttendArgs& args, bool few, CudaStream stream) {
  const int64_t blocks = args.row_blocks * args.splits * args.batch * args.kv_heads;
  if (few) {
    using Shape = AttendShape<Type, kDim, true>;
    launch("attend", attend_rows<Shape>, blocks, Shape::kThreads, args, stream);
  } else {
    using Shape = AttendShape<Type, kDim, false>;
    launch("attend", attend_rows<Shape>, blocks, Shape::kThreads, args, stream);
  }
}

template <class Type>
void launch_attend_rows(const AttendArgs& args, bool few, CudaStream stream) {
  if (args.head_dim <= 64) {
    launch_attend_of<Type, 64>(args, few, stream);
  } else if (args.head_dim <= 80) {
    launch_attend_of<Type, 80>(args, few, stream);
  } else if (args.head_dim <= 96) {
    launch_attend_of<Type, 96>(args, few, stream);
  } else if (args.head_dim <= 128) {
    launch_attend_of<Type, 128>(args, few, stream);
  } else {
    launch_attend_of<Type, 256>(args, few, stream);
  }
}

template <class Type>
void launch_attend_join(const AttendArgs& args, CudaStream stream) {
  launch("attend", attend_join<Type>, args.batch * args.kv_heads * args.group_rows, kJoinThreads, args,
         stream);
}

}  // namespace vlkv::cuda
