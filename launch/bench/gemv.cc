// bench gemv: the products of a layer and the head with few rows, each over as many copies of its
// weights as it takes to find none of them in a cache.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "kernels/ops/ops.h"
#include "launch/bench/bench_run.h"
#include "runtime/weights/layer_blob.h"

namespace keyline::bench {
namespace {

constexpr int kMostCopies = 512;

enum class Product { kNormed, kAdded, kGated, kLogits };

struct Case {
  const char* name;
  Product product;
  MatrixSpec matrix;
};

class Matrix {
 public:
  Matrix(const Run& run, OneDevice& one, DType dtype, const Case& c)
      : run_(run), one_(one), dtype_(dtype), format_(c.matrix.format.value_or(dtype)), c_(c) {}

  absl::Status Load() {
    bytes_ = static_cast<double>(
        ops::PackedBytes(*one_.device, format_, c_.matrix.rows(), c_.matrix.cols));
    const int copies = static_cast<int>(std::clamp(
        static_cast<double>(ColdBytes(*one_.device)) / bytes_ + 1, 1.0, double{kMostCopies}));
    LayerSpec spec;
    spec.matrices.assign(copies, c_.matrix);
    spec.vectors = {run_.opened.model->HeadTensors().vectors.at(0)};
    ASSIGN_OR_RETURN(
        blob_, LayerBlob::Load(*one_.device, *one_.stream, run_.opened.weights(), spec, dtype_));
    return absl::OkStatus();
  }

  absl::Status Measure(int rows) {
    const LayerWeights weights = blob_.weights();
    const int64_t outputs = c_.matrix.rows() / (c_.product == Product::kGated ? 2 : 1);
    const DType type = one_.device->ActivationType(dtype_);
    const DType out_type = c_.product == Product::kLogits ? DType::kF32 : type;
    ASSIGN_OR_RETURN(const Tensor in,
                     RandomTensor(*one_.device, *one_.stream, type, rows, c_.matrix.cols, 5));
    ASSIGN_OR_RETURN(const Tensor out, Tensor::Allocate(*one_.device, out_type, {rows, outputs}));
    const RmsNorm norm{weights.vectors[0].as<float>(), run_.opened.model->config().norm_eps};
    const auto pass = [&] {
      for (const Weight& weight : weights.matrices) Multiply(out, in, norm, weight);
    };
    const double copies = static_cast<double>(weights.matrices.size());
    one_.probe->Seconds(*one_.stream, pass);
    std::vector<double> seconds;
    double read = 0, multiply = 0;
    for (int round = 0; round < run_.args.repeat; ++round) {
      read = std::max(read, one_.probe->ReadBandwidth(static_cast<size_t>(bytes_)));
      multiply = std::max(multiply, one_.probe->MultiplyRate(dtype_));
      for (int i = 0; i < 7; ++i)
        seconds.push_back(one_.probe->Seconds(*one_.stream, pass) / copies);
    }
    const double operations =
        2.0 * rows * static_cast<double>(c_.matrix.rows()) * static_cast<double>(c_.matrix.cols);
    const bool by_read = bytes_ / read > operations / multiply;
    const double least = std::max(bytes_ / read, operations / multiply);
    run_.report.Add(
        {.name = absl::StrCat(c_.name, " [", c_.matrix.rows(), ", ", c_.matrix.cols, "] M=", rows),
         .value = bytes_ / Median(seconds) * 1e-9,
         .unit = "GB/s",
         .limit = bytes_ / least * 1e-9,
         .limit_by = by_read ? absl::StrCat("reading ", absl::SixDigits(bytes_ * 1e-6), " MB at ",
                                            Rate(read, "B"))
                             : absl::StrCat("multiplying at ", Rate(multiply, "FLOP")),
         .more = {{"batch", rows},
                  {"us", Median(seconds) * 1e6},
                  {"bytes", bytes_},
                  {"operations", operations},
                  {"copies", copies}}});
    return absl::OkStatus();
  }

 private:
  void Multiply(const Tensor& out, const Tensor& in, const RmsNorm& norm, const Weight& w) {
    Stream& s = *one_.stream;
    switch (c_.product) {
      case Product::kNormed:
      case Product::kLogits:
        return ops::NormMatMul(s, out, in, norm, w);
      case Product::kAdded:
        return ops::MatMulAdd(s, out, in, w);
      case Product::kGated:
        return ops::NormGatedMatMul(s, out, in, norm, w, Activation::kSilu);
    }
  }

  const Run& run_;
  OneDevice& one_;
  const DType dtype_;
  const DType format_;  // of the weights
  const Case& c_;
  double bytes_ = 0;  // of one copy
  LayerBlob blob_;
};

}  // namespace

absl::Status Gemv(const Run& run) {
  ASSIGN_OR_RETURN(OneDevice one, OpenOneDevice(run));
  ASSIGN_OR_RETURN(const PipelineSpec spec, MakeSpec(run.options, run.opened, {}));
  Describe(run, spec, one.device->description(), 1, ThreadsOfRank(run.options, 1));
  const DecoderModel& model = *run.opened.model;
  // The order of every family's layers so far (runtime/model/llama.h).
  const std::vector<MatrixSpec> layer = LayerTensors(model, spec, 0).matrices;
  const std::vector<MatrixSpec> head = HeadTensors(model, spec).matrices;
  if (layer.size() != 4) {
    return absl::UnimplementedError("bench gemv: this family's layers are not of four matrices");
  }
  const std::vector<Case> cases = {
      {"qkv", Product::kNormed, layer[0]},
      {"o", Product::kAdded, layer[1]},
      {"gate_up", Product::kGated, layer[2]},
      {"down", Product::kAdded, layer[3]},
      {"head", Product::kLogits,
       head.empty() ? EmbeddingTensors(model, spec).matrices.at(0) : head[0]}};
  for (const Case& c : cases) {
    Matrix matrix(run, one, spec.dtype, c);
    RETURN_IF_ERROR(matrix.Load());
    for (int rows : run.args.batch) RETURN_IF_ERROR(matrix.Measure(rows));
  }
  return absl::OkStatus();
}

}  // namespace keyline::bench
