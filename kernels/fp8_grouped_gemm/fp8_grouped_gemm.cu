// A grouped FP8 GEMM for SM12x out of CUTLASS's own parts: a configuration that compiles, no launcher (see README.md).
#include <cutlass/cutlass.h>
#include <cutlass/detail/blockwise_scale_layout.hpp>
#include <cutlass/device_kernel.h>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/group_array_problem_shape.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>

namespace sparkwright {

using ProblemShape = cutlass::gemm::GroupProblemShape<cute::Shape<int, int, int>>;
using Fp8 = cutlass::float_e4m3_t;
using LayoutA = cutlass::layout::RowMajor;
using LayoutB = cutlass::layout::ColumnMajor;
using LayoutD = cutlass::layout::RowMajor;
constexpr int kAlignment = 16;
using Cluster = cute::Shape<cute::_1, cute::_1, cute::_1>;

template <typename Tile>
using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
    cutlass::arch::Sm120, cutlass::arch::OpClassTensorOp, Tile, Cluster, cutlass::epilogue::collective::EpilogueTileAuto, float,
    float, void, LayoutD *, 8, cutlass::bfloat16_t, LayoutD *, 8, cutlass::epilogue::collective::EpilogueScheduleAuto,
    cutlass::epilogue::fusion::LinearCombination<cutlass::bfloat16_t, float, void, float>>::CollectiveOp;

template <typename Tile, typename A, typename B, typename Schedule>
using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
    cutlass::arch::Sm120, cutlass::arch::OpClassTensorOp, Fp8, A, kAlignment, Fp8, B, kAlignment, float, Tile, Cluster,
    cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename Epilogue<Tile>::SharedStorage))>,
    Schedule>::CollectiveOp;

#if defined(WITHOUT_BLOCK_SCALES)

// What vLLM's SM90 and SM100 kernels are made of. The builder refuses it for SM120.
using Tile = cute::Shape<cute::_128, cute::_128, cute::_128>;
static_assert(
    sizeof(Mainloop<Tile, LayoutA *, LayoutB *, cutlass::gemm::KernelPtrArrayTmaWarpSpecializedCooperative>::SharedStorage) > 0);

#else

// Scales as vLLM's block-quantised FP8 models have them: one for 1 x 128 of the activations and 128 x 128 of the weights.
using Scales = cutlass::detail::Sm120BlockwiseScaleConfig<1, 128, 128, cute::UMMA::Major::MN, cute::UMMA::Major::K>;
using LayoutSFA = decltype(Scales::deduce_layoutSFA());
using LayoutSFB = decltype(Scales::deduce_layoutSFB());

template <int kTileM, typename Schedule>
struct Kernel {
  using Tile = cute::Shape<cute::Int<kTileM>, cute::_128, cute::_128>;
  using Loop = Mainloop<Tile, cute::tuple<LayoutA *, LayoutSFA *>, cute::tuple<LayoutB *, LayoutSFB *>, Schedule>;
  using Gemm = cutlass::gemm::kernel::GemmUniversal<ProblemShape, Loop, Epilogue<Tile>>;
  static_assert(Gemm::SharedStorageSize <= 99 * 1024, "GB10 gives a block 99 KB");
  static_assert(Loop::DispatchPolicy::Stages >= 2, "a pipeline needs two stages");
};

using Cooperative = Kernel<128, cutlass::gemm::KernelTmaWarpSpecializedBlockwiseCooperativeSm120>;
using Pingpong = Kernel<64, cutlass::gemm::KernelTmaWarpSpecializedBlockwisePingpongSm120>;

#if defined(REPORT)
template <int kBytes, int kStages>
struct Is;
Is<Cooperative::Gemm::SharedStorageSize, Cooperative::Loop::DispatchPolicy::Stages> cooperative;
Is<Pingpong::Gemm::SharedStorageSize, Pingpong::Loop::DispatchPolicy::Stages> pingpong;
#endif

#endif

}  // namespace sparkwright

#if !defined(WITHOUT_BLOCK_SCALES) && !defined(REPORT)
template __global__ void cutlass::device_kernel<sparkwright::Cooperative::Gemm>(sparkwright::Cooperative::Gemm::Params const CUTLASS_GRID_CONSTANT);
template __global__ void cutlass::device_kernel<sparkwright::Pingpong::Gemm>(sparkwright::Pingpong::Gemm::Params const CUTLASS_GRID_CONSTANT);
#endif
