// Compares the declarations of kernels/cudnn/api.h with those of cuDNN's headers at compile time. If WRONG is
// defined, it also compares two different functions, so that compiling must fail.

#include <cstddef>
#include <type_traits>

#include "api.h"

// The types that cuDNN's headers expect from a CUDA toolkit, whose headers are replaced by empty files.
typedef struct CUstream_st* cudaStream_t;
typedef struct CUgraph_st* cudaGraph_t;
typedef int libraryPropertyType;

#include "cudnn.h"

namespace {

// Whether two types are passed alike in C: both are pointers, or both are numbers of the same size and kind.
template <class A, class B>
constexpr bool alike() {
  if constexpr (std::is_pointer_v<A> || std::is_void_v<A>)
    return std::is_pointer_v<A> == std::is_pointer_v<B> && std::is_void_v<A> == std::is_void_v<B>;
  else if constexpr (std::is_pointer_v<B> || std::is_void_v<B>) return false;
  else return sizeof(A) == sizeof(B) && std::is_floating_point_v<A> == std::is_floating_point_v<B>;
}

template <class Ours, class Theirs>
struct Same : std::false_type {};

template <class R, class... A, class S, class... B>
struct Same<R (*)(A...), S (*)(B...)> {
  static constexpr bool value = [] {
    if constexpr (sizeof...(A) != sizeof...(B)) return false;
    else return alike<R, S>() && (alike<A, B>() && ...);
  }();
};

#define COMPARE(result, name, parameters) \
  static_assert(Same<decltype(cudnn::Functions::name), decltype(&::name)>::value, #name);
CUDNN_FUNCTIONS(COMPARE)

#ifdef WRONG
static_assert(Same<decltype(cudnn::Functions::cudnnRNNForward), decltype(&::cudnnRNNBackwardData_v8)>::value,
              "cudnnRNNForward is another function");
#endif

#define EQUAL(ours, theirs) static_assert(static_cast<int>(cudnn::ours) == static_cast<int>(theirs), #theirs)
EQUAL(SUCCESS, CUDNN_STATUS_SUCCESS);
EQUAL(STANDARD, CUDNN_RNN_ALGO_STANDARD);
EQUAL(PERSIST_STATIC, CUDNN_RNN_ALGO_PERSIST_STATIC);
EQUAL(PERSIST_STATIC_SMALL_H, CUDNN_RNN_ALGO_PERSIST_STATIC_SMALL_H);
EQUAL(INFERENCE, CUDNN_FWD_MODE_INFERENCE);
EQUAL(TRAINING, CUDNN_FWD_MODE_TRAINING);
EQUAL(RELU, CUDNN_RNN_RELU);
EQUAL(TANH, CUDNN_RNN_TANH);
EQUAL(LSTM, CUDNN_LSTM);
EQUAL(GRU, CUDNN_GRU);
EQUAL(DOUBLE_BIAS, CUDNN_RNN_DOUBLE_BIAS);
EQUAL(UNIDIRECTIONAL, CUDNN_UNIDIRECTIONAL);
EQUAL(BIDIRECTIONAL, CUDNN_BIDIRECTIONAL);
EQUAL(LINEAR_INPUT, CUDNN_LINEAR_INPUT);
EQUAL(SEQ_MAJOR_UNPACKED, CUDNN_RNN_DATA_LAYOUT_SEQ_MAJOR_UNPACKED);
EQUAL(FLOAT, CUDNN_DATA_FLOAT);
EQUAL(DOUBLE, CUDNN_DATA_DOUBLE);
EQUAL(HALF, CUDNN_DATA_HALF);
EQUAL(BFLOAT16, CUDNN_DATA_BFLOAT16);
EQUAL(DEFAULT_MATH, CUDNN_DEFAULT_MATH);
EQUAL(TENSOR_OP_MATH, CUDNN_TENSOR_OP_MATH);
EQUAL(FMA_MATH, CUDNN_FMA_MATH);
EQUAL(ADD, CUDNN_WGRAD_MODE_ADD);
EQUAL(PADDED_IO_ENABLED, CUDNN_RNN_PADDED_IO_ENABLED);

}  // namespace
