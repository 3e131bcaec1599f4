// The head sizes that tensor core kernels are made for.
#pragma once

#include <glog/logging.h>

#include <type_traits>

namespace keyline::cuda {

// Calls body(integral_constant) with the head size, one of HasMma.
template <class Body>
void DispatchHeadDim(int head_dim, const Body& body) {
  switch (head_dim) {
    case 64:
      return body(std::integral_constant<int, 64>{});
    case 80:
      return body(std::integral_constant<int, 80>{});
    case 96:
      return body(std::integral_constant<int, 96>{});
    case 128:
      return body(std::integral_constant<int, 128>{});
    case 256:
      return body(std::integral_constant<int, 256>{});
    default:
      LOG(FATAL) << "no tensor core kernel for heads of " << head_dim;
  }
}

}  // namespace keyline::cuda
