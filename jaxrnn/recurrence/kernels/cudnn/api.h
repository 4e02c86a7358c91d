// Declarations of the cuDNN 9 functions, types and constants that are used here, so that compiling requires neither
// cuDNN nor a CUDA toolkit. A test compares them with cudnn_adv.h, cudnn_ops.h and cudnn_graph.h of cuDNN 9.28 on
// machines where cuDNN is installed.

#pragma once

#include <cstddef>
#include <cstdint>

namespace cudnn {

// Opaque types.
struct Context;
struct Recurrence;
struct Sequences;
struct Tensor;
struct Dropout;

using Status = int;
constexpr Status SUCCESS = 0;

enum Algorithm : int { STANDARD = 0, PERSIST_STATIC = 1, PERSIST_STATIC_SMALL_H = 3 };
enum ForwardMode : int { INFERENCE = 0, TRAINING = 1 };
enum Mode : int { RELU = 0, TANH = 1, LSTM = 2, GRU = 3 };
enum BiasMode : int { DOUBLE_BIAS = 2 };
enum Direction : int { UNIDIRECTIONAL = 0, BIDIRECTIONAL = 1 };
enum InputMode : int { LINEAR_INPUT = 0 };
enum Layout : int { SEQ_MAJOR_UNPACKED = 0 };
enum DataType : int { FLOAT = 0, DOUBLE = 1, HALF = 2, BFLOAT16 = 9 };
// DEFAULT_MATH allows TF32 for float32; FMA_MATH does not use tensor cores.
enum Math : int { DEFAULT_MATH = 0, TENSOR_OP_MATH = 1, FMA_MATH = 3 };
enum WeightGradient : int { ADD = 0 };
constexpr uint32_t PADDED_IO_ENABLED = 1;

// Expands X(result type, name, parameters) for every function.
#define CUDNN_FUNCTIONS(X)                                                                                         \
  X(size_t, cudnnGetVersion, ())                                                                                   \
  X(const char*, cudnnGetErrorString, (Status status))                                                             \
  X(void, cudnnGetLastErrorString, (char* message, size_t size))                                                   \
  X(Status, cudnnCreate, (Context * *context))                                                                     \
  X(Status, cudnnSetStream, (Context * context, void* stream))                                                     \
  X(Status, cudnnCreateDropoutDescriptor, (Dropout * *dropout))                                                    \
  X(Status, cudnnDestroyDropoutDescriptor, (Dropout * dropout))                                                    \
  X(Status, cudnnSetDropoutDescriptor,                                                                             \
    (Dropout * dropout, Context * context, float rate, void* states, size_t bytes, unsigned long long seed))       \
  X(Status, cudnnCreateTensorDescriptor, (Tensor * *tensor))                                                       \
  X(Status, cudnnDestroyTensorDescriptor, (Tensor * tensor))                                                       \
  X(Status, cudnnSetTensorNdDescriptor,                                                                            \
    (Tensor * tensor, DataType type, int rank, const int* sizes, const int* strides))                              \
  X(Status, cudnnCreateRNNDataDescriptor, (Sequences * *sequences))                                                \
  X(Status, cudnnDestroyRNNDataDescriptor, (Sequences * sequences))                                                \
  X(Status, cudnnSetRNNDataDescriptor,                                                                             \
    (Sequences * sequences, DataType type, Layout layout, int steps, int batch, int width, const int* lengths,     \
     void* padding))                                                                                               \
  X(Status, cudnnCreateRNNDescriptor, (Recurrence * *recurrence))                                                  \
  X(Status, cudnnDestroyRNNDescriptor, (Recurrence * recurrence))                                                  \
  X(Status, cudnnSetRNNDescriptor_v8,                                                                              \
    (Recurrence * recurrence, Algorithm algorithm, Mode mode, BiasMode biases, Direction direction,                \
     InputMode inputs, DataType type, DataType precision, Math math, int32_t features, int32_t hidden,             \
     int32_t projection, int32_t layers, Dropout* dropout, uint32_t flags))                                        \
  X(Status, cudnnGetRNNTempSpaceSizes,                                                                             \
    (Context * context, Recurrence * recurrence, ForwardMode mode, Sequences* xs, size_t* workspace,               \
     size_t* reserve))                                                                                             \
  X(Status, cudnnGetRNNWeightSpaceSize, (Context * context, Recurrence * recurrence, size_t* bytes))               \
  X(Status, cudnnGetRNNWeightParams,                                                                               \
    (Context * context, Recurrence * recurrence, int32_t layer, size_t bytes, const void* weights, int32_t gate,   \
     Tensor* matrix, void** matrix_data, Tensor* bias, void** bias_data))                                          \
  X(Status, cudnnRNNForward,                                                                                       \
    (Context * context, Recurrence * recurrence, ForwardMode mode, const int32_t* lengths, Sequences* xs,          \
     const void* xs_data, Sequences* ys, void* ys_data, Tensor* h, const void* h_first, void* h_last, Tensor* c,   \
     const void* c_first, void* c_last, size_t weight_bytes, const void* weights, size_t workspace_bytes,          \
     void* workspace, size_t reserve_bytes, void* reserve))                                                        \
  X(Status, cudnnRNNBackwardData_v8,                                                                               \
    (Context * context, Recurrence * recurrence, const int32_t* lengths, Sequences* ys, const void* ys_data,       \
     const void* d_ys, Sequences* xs, void* d_xs, Tensor* h, const void* h_first, const void* d_h_last,            \
     void* d_h_first, Tensor* c, const void* c_first, const void* d_c_last, void* d_c_first, size_t weight_bytes,  \
     const void* weights, size_t workspace_bytes, void* workspace, size_t reserve_bytes, void* reserve))           \
  X(Status, cudnnRNNBackwardWeights_v8,                                                                            \
    (Context * context, Recurrence * recurrence, WeightGradient mode, const int32_t* lengths, Sequences* xs,       \
     const void* xs_data, Tensor* h, const void* h_first, Sequences* ys, const void* ys_data, size_t weight_bytes, \
     void* d_weights, size_t workspace_bytes, void* workspace, size_t reserve_bytes, void* reserve))

// Pointers to the functions of a loaded cuDNN library.
struct Functions {
#define CUDNN_POINTER(result, name, parameters) result(*name) parameters = nullptr;
  CUDNN_FUNCTIONS(CUDNN_POINTER)
#undef CUDNN_POINTER
};

}  // namespace cudnn
