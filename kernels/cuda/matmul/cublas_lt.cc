#include "kernels/cuda/matmul/cublas_lt.h"

#include <dlfcn.h>

#include <type_traits>

#include "absl/strings/str_cat.h"

namespace keyline::cuda {
namespace {

constexpr char kLibrary[] = "libcublasLt.so.13";

absl::StatusOr<CublasLt> Open() {
  void* library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return absl::UnavailableError(
        absl::StrCat(dlerror(), "; install CUDA 13, or say in LD_LIBRARY_PATH where it is"));
  }
  CublasLt lt;
  const char* missing = nullptr;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    if (function == nullptr) missing = name;
  };
  find(lt.create, "cublasLtCreate");
  find(lt.destroy, "cublasLtDestroy");
  find(lt.status_string, "cublasLtGetStatusString");
  find(lt.matmul, "cublasLtMatmul");
  find(lt.heuristic, "cublasLtMatmulAlgoGetHeuristic");
  find(lt.desc_create, "cublasLtMatmulDescCreate");
  find(lt.desc_destroy, "cublasLtMatmulDescDestroy");
  find(lt.desc_set, "cublasLtMatmulDescSetAttribute");
  find(lt.preference_create, "cublasLtMatmulPreferenceCreate");
  find(lt.preference_destroy, "cublasLtMatmulPreferenceDestroy");
  find(lt.preference_set, "cublasLtMatmulPreferenceSetAttribute");
  find(lt.layout_create, "cublasLtMatrixLayoutCreate");
  find(lt.layout_destroy, "cublasLtMatrixLayoutDestroy");
  if (missing != nullptr) {
    return absl::UnavailableError(absl::StrCat(kLibrary, " has no ", missing));
  }
  return lt;
}

}  // namespace

absl::StatusOr<const CublasLt*> OpenCublasLt() {
  static const auto* const lt = new absl::StatusOr<CublasLt>(Open());
  if (!lt->ok()) return lt->status();
  return &**lt;
}

const CublasLt& Lt() {
  static const CublasLt* const lt = [] {
    const absl::StatusOr<const CublasLt*> opened = OpenCublasLt();
    CHECK(opened.ok()) << opened.status();
    return *opened;
  }();
  return *lt;
}

}  // namespace keyline::cuda
