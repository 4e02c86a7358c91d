// This library stands in for cuDNN 9 on a machine without a GPU. It has the functions of api.h and computes on the
// host's memory, so that the callers of cuDNN can be tested there. It returns an error and a message for arguments
// that the recurrence should never pass, even if cuDNN would accept them.

#include "api.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

namespace cudnn {

struct Context {};

struct Dropout {
  bool set = false;
};

struct Tensor {
  DataType type;
  std::vector<int> sizes, strides;
};

struct Sequences {
  DataType type;
  // Zero until the descriptor is set.
  int steps = 0;
  int batch, width;
};

struct Recurrence {
  Algorithm algorithm;
  Mode mode;
  Direction direction;
  DataType type;
  int features, hidden;
  // Zero until the descriptor is set.
  int layers = 0;

  int64_t gates() const { return mode == LSTM ? 4 : mode == GRU ? 3 : 1; }
  int64_t directions() const { return direction == BIDIRECTIONAL ? 2 : 1; }

  // A pseudo-layer is one direction of one layer.
  int64_t pseudo_layers() const { return layers * directions(); }
  int64_t inputs(int64_t pseudo) const { return pseudo < directions() ? features : hidden * directions(); }

  // Offsets of the weights of a pseudo-layer, in elements. Each matrix and bias contains all gates.
  struct Place {
    int64_t w, r, b_w, b_r;
  };

  int64_t matrices_before(int64_t pseudo) const {
    int64_t count = 0;
    for (int64_t p = 0; p < pseudo; ++p) count += gates() * hidden * (inputs(p) + hidden);
    return count;
  }

  Place place(int64_t pseudo) const {
    const int64_t w = matrices_before(pseudo), b = matrices_before(pseudo_layers()) + pseudo * 2 * gates() * hidden;
    return {w, w + gates() * hidden * inputs(pseudo), b, b + gates() * hidden};
  }

  int64_t weights() const { return place(pseudo_layers()).b_w; }
};

}  // namespace cudnn

using namespace cudnn;

// A definition below that differs from its declaration in api.h does not compile.
extern "C" {
#define DECLARE(result, name, parameters) result name parameters;
CUDNN_FUNCTIONS(DECLARE)
#undef DECLARE
int stand_in_live_objects();
int stand_in_contexts();
}

namespace {

constexpr Status NO_CUDNN = 1001, WRONG = 2000, NOT_SUPPORTED = 3000;

std::atomic<int> live_objects{0}, contexts{0};
thread_local std::string last_error;

struct Error {
  Status status;
  std::string why;
};

template <class... Parts>
void require_or(Status status, bool truth, const Parts&... parts) {
  if (truth) return;
  std::ostringstream why;
  (why << ... << parts);
  throw Error{status, why.str()};
}

template <class... Parts>
void require(bool truth, const Parts&... parts) {
  require_or(WRONG, truth, parts...);
}

// Runs the body of a function, which throws an Error for invalid arguments. The message has two lines, because
// cuDNN's messages can have several lines.
template <class Body>
Status answer(const char* function, const Body& body) {
  try {
    body();
    return SUCCESS;
  } catch (const Error& error) {
    last_error = std::string(function) + ": " + cudnnGetErrorString(error.status) + "\n" + error.why;
    return error.status;
  }
}

template <class Object>
Status create(const char* function, Object** object) {
  return answer(function, [&] {
    require(object, "the pointer to the descriptor is null");
    *object = new Object();
    ++live_objects;
  });
}

template <class Object>
Status destroy(const char* function, Object* object) {
  return answer(function, [&] {
    require(object, "the descriptor is null");
    delete object;
    --live_objects;
  });
}

// A 16-bit number is a sign, an exponent and a significand of `digits` bits, the first of which is not stored.
int digits_of(DataType type) { return type == HALF ? 11 : 8; }
int exponents(int digits) { return 1 << (16 - digits); }
int least_exponent(int digits) { return 2 - exponents(digits) / 2; }

double decode(uint16_t bits, int digits) {
  const int one = 1 << (digits - 1), exponent = (bits & 0x7fff) / one, fraction = bits & (one - 1);
  double size = std::ldexp(fraction + (exponent ? one : 0), std::max(exponent, 1) + least_exponent(digits) - digits);
  if (exponent == exponents(digits) - 1) size = fraction ? NAN : INFINITY;
  return bits & 0x8000 ? -size : size;
}

// Rounds to the nearest number, ties to even. If a significand is rounded up to the next power of 2, it carries into
// the stored exponent, which is correct, and the largest exponent stands for infinity.
uint16_t encode(double x, int digits) {
  const int sign = std::signbit(x) ? 0x8000 : 0, one = 1 << (digits - 1), infinity = (exponents(digits) - 1) * one;
  if (std::isnan(x)) return sign | infinity | one / 2;
  if (std::isinf(x)) return sign | infinity;
  const int least = least_exponent(digits), exponent = std::max(std::ilogb(x), least);
  const int significand = std::nearbyint(std::ldexp(std::fabs(x), digits - 1 - exponent));
  return sign | std::min(infinity, (exponent - least) * one + significand);
}

double rounded(DataType type, double x) {
  if (type == DOUBLE) return x;
  if (type == FLOAT) return static_cast<float>(x);
  return decode(encode(x, digits_of(type)), digits_of(type));
}

size_t element_bytes(DataType type) { return type == DOUBLE ? 8 : type == FLOAT ? 4 : 2; }

using Values = std::vector<double>;

// Reads zeros if the pointer is null, as cuDNN does for states.
Values read(DataType type, const void* data, int64_t count) {
  Values values(count);
  for (int64_t i = 0; data && i < count; ++i) {
    if (type == DOUBLE) values[i] = static_cast<const double*>(data)[i];
    else if (type == FLOAT) values[i] = static_cast<const float*>(data)[i];
    else values[i] = decode(static_cast<const uint16_t*>(data)[i], digits_of(type));
  }
  return values;
}

// Writes nothing if the pointer is null.
void write(DataType type, const Values& values, void* data) {
  for (size_t i = 0; data && i < values.size(); ++i) {
    if (type == DOUBLE) static_cast<double*>(data)[i] = values[i];
    else if (type == FLOAT) static_cast<float*>(data)[i] = static_cast<float>(values[i]);
    else static_cast<uint16_t*>(data)[i] = encode(values[i], digits_of(type));
  }
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

double dot(const double* x, const double* y, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += x[i] * y[i];
  return sum;
}

void add_scaled(double scale, const double* x, double* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] += scale * x[i];
}

// Computes the three passes over all layers and directions. A pseudo-layer p runs the steps n = 0, 1, ... in this
// order; step n is at time t(p, n).
struct Pass {
  const Recurrence& r;
  const int64_t T, B, H = r.hidden, G = r.gates(), D = r.directions(), P = r.pseudo_layers();
  // xs [T, B, features], ys [T, B, D * H], h and c before the first step [P, B, H].
  Values xs, ys, h_first, c_first;
  // What the backward passes need: the gates and the extra of every pseudo-layer [P, T, B, G + 1, H], followed by the
  // outputs of every layer below the last [layers - 1, T, B, D * H].
  double* kept = nullptr;

  Pass(const Recurrence& recurrence, const Sequences& sequences)
      : r(recurrence), T(sequences.steps), B(sequences.batch) {}

  int64_t states() const { return P * B * H; }
  int64_t kept_count() const { return T * B * H * (P * (G + 1) + (r.layers - 1) * D); }
  int64_t t(int64_t p, int64_t n) const { return p % D ? T - 1 - n : n; }

  double* gates(int64_t p, int64_t t, int64_t b) { return kept + ((p * T + t) * B + b) * (G + 1) * H; }
  // The extra is the cell after the step for an LSTM, and R_n h + b_Rn for a GRU.
  double* extras(int64_t p, int64_t t, int64_t b) { return gates(p, t, b) + G * H; }

  double* outputs(int64_t layer) {
    return layer == r.layers - 1 ? ys.data() : kept + P * T * B * (G + 1) * H + layer * T * B * D * H;
  }
  double* hidden(int64_t p, int64_t t, int64_t b) { return outputs(p / D) + ((t * B + b) * D + p % D) * H; }

  const double* input(int64_t p, int64_t t, int64_t b) {
    return (p < D ? xs.data() : outputs(p / D - 1)) + (t * B + b) * r.inputs(p);
  }
  const double* hidden_before(int64_t p, int64_t n, int64_t b) {
    return n ? hidden(p, t(p, n - 1), b) : &h_first[(p * B + b) * H];
  }
  const double* cell_before(int64_t p, int64_t n, int64_t b) {
    return n ? extras(p, t(p, n - 1), b) : &c_first[(p * B + b) * H];
  }

  // Calls what(p, n, b) for all pseudo-layers, steps and rows, in the order of the steps.
  template <class What>
  void for_all(const What& what) {
    for (int64_t p = 0; p < P; ++p)
      for (int64_t n = 0; n < T; ++n)
        for (int64_t b = 0; b < B; ++b) what(p, n, b);
  }

  // Returns the cells after the last step for an LSTM.
  Values forward(const Values& weights) {
    Values c_last(states());
    for_all([&](int64_t p, int64_t n, int64_t b) {
      const int64_t inputs = r.inputs(p), time = t(p, n);
      const Recurrence::Place at = r.place(p);
      const double *x = input(p, time, b), *h_before = hidden_before(p, n, b), *c_before = cell_before(p, n, b);
      for (int64_t unit = 0; unit < H; ++unit) {
        const auto from_input = [&](int64_t k) {
          const int64_t row = k * H + unit;
          return dot(&weights[at.w + row * inputs], x, inputs) + weights[at.b_w + row];
        };
        const auto from_hidden = [&](int64_t k) {
          const int64_t row = k * H + unit;
          return dot(&weights[at.r + row * H], h_before, H) + weights[at.b_r + row];
        };
        const auto sum = [&](int64_t k) { return from_input(k) + from_hidden(k); };
        const auto gate = [&](int64_t k) -> double& { return gates(p, time, b)[k * H + unit]; };
        double &extra = extras(p, time, b)[unit], h;
        if (r.mode == LSTM) {
          for (const int64_t k : {0, 1, 3}) gate(k) = sigmoid(sum(k));
          gate(2) = std::tanh(sum(2));
          extra = gate(1) * c_before[unit] + gate(0) * gate(2);
          h = gate(3) * std::tanh(extra);
          c_last[(p * B + b) * H + unit] = extra;
        } else if (r.mode == GRU) {
          for (const int64_t k : {0, 1}) gate(k) = sigmoid(sum(k));
          extra = from_hidden(2);
          gate(2) = std::tanh(from_input(2) + gate(0) * extra);
          h = (1 - gate(1)) * gate(2) + gate(1) * h_before[unit];
        } else {
          h = gate(0) = r.mode == TANH ? std::tanh(sum(0)) : std::max(sum(0), 0.0);
        }
        hidden(p, time, b)[unit] = rounded(r.type, h);
      }
    });
    return c_last;
  }

  Values h_last() {
    Values last(states());
    for (int64_t p = 0; p < P; ++p)
      for (int64_t b = 0; b < B; ++b) std::copy_n(hidden(p, t(p, T - 1), b), H, &last[(p * B + b) * H]);
    return last;
  }

  // Returns d_xs, given d_ys. Changes d_h and d_c from the gradients of the final state to those of the initial one.
  Values backward_data(const Values& weights, Values d_outputs, Values& d_h, Values& d_c) {
    for (int64_t layer = r.layers - 1; layer >= 0; --layer) {
      const int64_t inputs = r.inputs(layer * D);
      Values d_inputs(T * B * inputs);
      for (int64_t p = layer * D; p < (layer + 1) * D; ++p)
        for (int64_t n = T - 1; n >= 0; --n)
          for (int64_t b = 0; b < B; ++b) {
            const int64_t row = t(p, n) * B + b, state = (p * B + b) * H;
            const Recurrence::Place at = r.place(p);
            for (int64_t unit = 0; unit < H; ++unit) {
              const double d_y = d_outputs[(row * D + p % D) * H + unit];
              differentiate(p, n, b, unit, d_y, d_h[state + unit], d_c[state + unit]);
            }
            for (int64_t i = 0; i < G * H; ++i) {
              add_scaled(d_from_input(p, n, b, i), &weights[at.w + i * inputs], &d_inputs[row * inputs], inputs);
              add_scaled(d_from_hidden(p, n, b, i), &weights[at.r + i * H], &d_h[state], H);
            }
          }
      d_outputs = d_inputs;
    }
    return d_outputs;
  }

  // Replaces the gates and the extra of a GRU by their gradients. Changes d_h and d_c from the gradients of the state
  // after the step to those of the state before it, except for the part that comes through R.
  void differentiate(int64_t p, int64_t n, int64_t b, int64_t unit, double d_y, double& d_h, double& d_c) {
    const auto gate = [&](int64_t k) -> double& { return gates(p, t(p, n), b)[k * H + unit]; };
    double& extra = extras(p, t(p, n), b)[unit];
    const double d = d_h + d_y;
    d_h = 0;
    if (r.mode == LSTM) {
      const double i = gate(0), f = gate(1), g = gate(2), o = gate(3), tanh_c = std::tanh(extra);
      const double d_cell = d_c + d * o * (1 - tanh_c * tanh_c);
      gate(0) = d_cell * g * i * (1 - i);
      gate(1) = d_cell * cell_before(p, n, b)[unit] * f * (1 - f);
      gate(2) = d_cell * i * (1 - g * g);
      gate(3) = d * tanh_c * o * (1 - o);
      d_c = d_cell * f;
    } else if (r.mode == GRU) {
      const double reset = gate(0), z = gate(1), memory = gate(2);
      const double d_memory = d * (1 - z) * (1 - memory * memory);
      gate(0) = d_memory * extra * reset * (1 - reset);
      gate(1) = d * (hidden_before(p, n, b)[unit] - memory) * z * (1 - z);
      gate(2) = d_memory;
      extra = d_memory * reset;
      d_h = d * z;
    } else {
      gate(0) = r.mode == TANH ? d * (1 - gate(0) * gate(0)) : gate(0) > 0 ? d : 0;
    }
  }

  // The gradients of row i of W x + b_W and of R h + b_R. They differ only in the new memory of a GRU.
  double d_from_input(int64_t p, int64_t n, int64_t b, int64_t i) { return gates(p, t(p, n), b)[i]; }
  double d_from_hidden(int64_t p, int64_t n, int64_t b, int64_t i) {
    return r.mode == GRU && i >= 2 * H ? extras(p, t(p, n), b)[i - 2 * H] : d_from_input(p, n, b, i);
  }

  void backward_weights(Values& d_weights) {
    for_all([&](int64_t p, int64_t n, int64_t b) {
      const int64_t inputs = r.inputs(p);
      const Recurrence::Place at = r.place(p);
      for (int64_t i = 0; i < G * H; ++i) {
        const double d_input = d_from_input(p, n, b, i), d_hidden = d_from_hidden(p, n, b, i);
        add_scaled(d_input, input(p, t(p, n), b), &d_weights[at.w + i * inputs], inputs);
        add_scaled(d_hidden, hidden_before(p, n, b), &d_weights[at.r + i * H], H);
        d_weights[at.b_w + i] += d_input;
        d_weights[at.b_r + i] += d_hidden;
      }
    });
  }
};

// The reserve begins with a header: the pass that used it last, and its problem.
enum Stage : int64_t { FILLED = 0x6a61787266696c6c, DIFFERENTIATED = 0x6a61787264696666 };
using Header = std::array<int64_t, 7>;

Header header(const Pass& pass, Stage stage) {
  const Recurrence& r = pass.r;
  return {stage, r.mode, r.algorithm, r.type, pass.T, pass.B, r.weights()};
}
static_assert(sizeof(Header) <= 64);

void mark(const Pass& pass, Stage stage, void* reserve) { *static_cast<Header*>(reserve) = header(pass, stage); }

// The offset of the kept values depends on the algorithm, so that the reserve sizes of two algorithms differ, and no
// size is proportional to the batch.
int64_t kept_offset(const Recurrence& r) { return 64 + 256 * r.algorithm; }

size_t reserve_needed(const Pass& pass) {
  return (kept_offset(pass.r) + pass.kept_count() * sizeof(double) + 255) / 256 * 256;
}

// The passes do not use the workspace. Its size depends on the mode, so that the size for inference is too small for
// training.
size_t workspace_needed(const Pass& pass, ForwardMode mode) {
  return 256 * (mode == TRAINING ? 2 : 1) + pass.B * pass.H * sizeof(double);
}

const Recurrence& configured(const Context* context, const Recurrence* recurrence) {
  require(context, "the context is null");
  require(recurrence && recurrence->layers, "the recurrence's descriptor is null or not set");
  return *recurrence;
}

void require_supported(const Recurrence& r) {
  const bool persistent = r.algorithm == PERSIST_STATIC, small = r.algorithm == PERSIST_STATIC_SMALL_H;
  require_or(NOT_SUPPORTED, !persistent || (r.type == HALF && r.hidden % 128 == 0 && r.layers == 1),
             "PERSIST_STATIC takes one layer of HALF with a multiple of 128 units, not ", r.layers,
             " layers of type ", r.type, " with ", r.hidden, " units");
  require_or(NOT_SUPPORTED, !small || (r.type != DOUBLE && r.hidden <= 384),
             "PERSIST_STATIC_SMALL_H takes up to 384 units and no DOUBLE, not ", r.hidden, " of type ", r.type);
}

bool is_known(DataType type) { return type == FLOAT || type == DOUBLE || type == HALF || type == BFLOAT16; }

void check_sequences(const char* name, const Recurrence& r, const Sequences* s, int64_t width) {
  require(s && s->steps, "the descriptor of ", name, " is null or not set");
  require(s->type == r.type, name, " has type ", s->type, ", the recurrence type ", r.type);
  require(s->width == width, name, " is ", s->width, " wide and must be ", width);
}

std::string text(const std::vector<int>& sizes) {
  std::string result = "[";
  for (const int size : sizes) result += (result.size() > 1 ? ", " : "") + std::to_string(size);
  return result + "]";
}

void check_state(const char* name, const Recurrence& r, const Tensor* state, int batch) {
  require(state && !state->sizes.empty(), "the descriptor of ", name, " is null or not set");
  const std::vector<int> sizes{static_cast<int>(r.pseudo_layers()), batch, r.hidden};
  const std::vector<int> strides{batch * r.hidden, r.hidden, 1};
  require(state->type == r.type, name, " has type ", state->type, ", the recurrence type ", r.type);
  require(state->sizes == sizes, name, " is ", text(state->sizes), " and must be ", text(sizes));
  require(state->strides == strides, name, " has strides ", text(state->strides), " and must have ", text(strides));
}

void check_bytes(const char* name, size_t bytes, size_t needed) {
  require(bytes >= needed, name, " is ", bytes, " bytes and must be at least ", needed);
}

void require_data(const char* name, const void* data) { require(data, name, " must not be null"); }

// Fills the workspace with bytes that are NaN in every type. A pass does this before it reads and after it writes, so
// that the results are wrong if the workspace overlaps another buffer.
void scribble(void* workspace, size_t bytes) { std::memset(workspace, 0xff, bytes); }

// Checks the arguments that the three passes have in common, and returns the pass.
Pass checked(const Context* context, const Recurrence* recurrence, ForwardMode mode, const int32_t* lengths,
             const Sequences* xs, const Sequences* ys, const Tensor* h, size_t weight_bytes, size_t workspace_bytes,
             void* workspace, size_t reserve_bytes, void* reserve) {
  const Recurrence& r = configured(context, recurrence);
  require(mode == INFERENCE || mode == TRAINING, "there is no mode ", mode);
  require(!lengths, "the lengths on the device must be null");
  check_sequences("xs", r, xs, r.features);
  check_sequences("ys", r, ys, r.hidden * r.directions());
  require(xs->steps == ys->steps && xs->batch == ys->batch, "xs has ", xs->steps, " steps of ", xs->batch,
          " rows, ys ", ys->steps, " of ", ys->batch);
  check_state("h", r, h, xs->batch);
  require_supported(r);
  Pass pass(r, *xs);
  check_bytes("weight_bytes", weight_bytes, r.weights() * element_bytes(r.type));
  check_bytes("workspace_bytes", workspace_bytes, workspace_needed(pass, mode));
  require_data("the workspace", workspace);
  if (mode == INFERENCE) {
    require(!reserve && !reserve_bytes, "inference must have no reserve");
  } else {
    check_bytes("reserve_bytes", reserve_bytes, reserve_needed(pass));
    require_data("the reserve", reserve);
    require(reinterpret_cast<uintptr_t>(reserve) % alignof(double) == 0, "the reserve is not aligned");
    pass.kept = reinterpret_cast<double*>(static_cast<char*>(reserve) + kept_offset(r));
  }
  scribble(workspace, workspace_bytes);
  return pass;
}

void require_stage(const Pass& pass, Stage stage, const void* reserve, const char* after) {
  require(*static_cast<const Header*>(reserve) == header(pass, stage), "the reserve was not written by ", after,
          " for this problem");
}

}  // namespace

extern "C" {

int stand_in_live_objects() { return live_objects; }

int stand_in_contexts() { return contexts; }

size_t cudnnGetVersion() {
  const char* version = std::getenv("STAND_IN_CUDNN_VERSION");
  return version ? std::atoi(version) : 92801;
}

const char* cudnnGetErrorString(Status status) {
  switch (status) {
    case SUCCESS: return "CUDNN_STATUS_SUCCESS";
    case NO_CUDNN: return "CUDNN_STATUS_NOT_INITIALIZED";
    case WRONG: return "CUDNN_STATUS_BAD_PARAM";
    case NOT_SUPPORTED: return "CUDNN_STATUS_NOT_SUPPORTED";
    default: return "an unknown status";
  }
}

void cudnnGetLastErrorString(char* message, size_t size) {
  if (message) std::snprintf(message, size, "%s", last_error.c_str());
}

Status cudnnCreate(Context** context) {
  return answer(__func__, [&] {
    require(context, "the pointer to the context is null");
    require_or(NO_CUDNN, !std::getenv("STAND_IN_CUDNN_BROKEN"), "STAND_IN_CUDNN_BROKEN is set");
    *context = new Context();
    ++contexts;
  });
}

Status cudnnSetStream(Context* context, void*) {
  return answer(__func__, [&] { require(context, "the context is null"); });
}

#define CREATE_AND_DESTROY(Object, name)                                                                  \
  Status cudnnCreate##name##Descriptor(Object** object) { return create(__func__, object); }              \
  Status cudnnDestroy##name##Descriptor(Object* object) { return destroy(__func__, object); }
CREATE_AND_DESTROY(Dropout, Dropout)
CREATE_AND_DESTROY(Tensor, Tensor)
CREATE_AND_DESTROY(Sequences, RNNData)
CREATE_AND_DESTROY(Recurrence, RNN)
#undef CREATE_AND_DESTROY

Status cudnnSetDropoutDescriptor(Dropout* dropout, Context* context, float rate, void*, size_t, unsigned long long) {
  return answer(__func__, [&] {
    require(dropout, "the dropout's descriptor is null");
    require(context, "the context is null");
    require(rate == 0, "the rate of dropout is ", rate, " and must be 0");
    dropout->set = true;
  });
}

Status cudnnSetTensorNdDescriptor(Tensor* tensor, DataType type, int rank, const int* sizes, const int* strides) {
  return answer(__func__, [&] {
    require(tensor && sizes && strides, "the descriptor, the sizes or the strides are null");
    require(is_known(type), "there is no data type ", type);
    require(rank >= 3 && rank <= 8, "the rank is ", rank, " and must be from 3 to 8");
    for (int i = 0; i < rank; ++i)
      require(sizes[i] > 0 && strides[i] > 0, "size ", i, " is ", sizes[i], ", its stride ", strides[i]);
    *tensor = {type, {sizes, sizes + rank}, {strides, strides + rank}};
  });
}

Status cudnnSetRNNDataDescriptor(Sequences* sequences, DataType type, Layout layout, int steps, int batch, int width,
                                 const int* lengths, void*) {
  return answer(__func__, [&] {
    require(sequences && lengths, "the descriptor or the lengths are null");
    require(is_known(type), "there is no data type ", type);
    require(layout == SEQ_MAJOR_UNPACKED, "the layout is ", layout, " and must be SEQ_MAJOR_UNPACKED");
    require(steps > 0 && batch > 0 && width > 0, "the sizes are [", steps, ", ", batch, ", ", width, "]");
    for (int b = 0; b < batch; ++b)
      require(lengths[b] == steps, "length ", b, " is ", lengths[b], " and must be ", steps);
    *sequences = {type, steps, batch, width};
  });
}

Status cudnnSetRNNDescriptor_v8(Recurrence* recurrence, Algorithm algorithm, Mode mode, BiasMode biases,
                                Direction direction, InputMode inputs, DataType type, DataType precision, Math math,
                                int32_t features, int32_t hidden, int32_t projection, int32_t layers,
                                Dropout* dropout, uint32_t flags) {
  return answer(__func__, [&] {
    require(recurrence, "the recurrence's descriptor is null");
    require(algorithm == STANDARD || algorithm == PERSIST_STATIC || algorithm == PERSIST_STATIC_SMALL_H,
            "there is no algorithm ", algorithm);
    require(mode >= RELU && mode <= GRU, "there is no mode ", mode);
    require(biases == DOUBLE_BIAS, "the mode of the biases is ", biases, " and must be DOUBLE_BIAS");
    require(direction == UNIDIRECTIONAL || direction == BIDIRECTIONAL, "there is no direction ", direction);
    require(inputs == LINEAR_INPUT, "the mode of the inputs is ", inputs, " and must be LINEAR_INPUT");
    require(is_known(type), "there is no data type ", type);
    require(precision == (type == DOUBLE ? DOUBLE : FLOAT), "the precision of type ", type, " cannot be ", precision);
    require(math == DEFAULT_MATH || math == TENSOR_OP_MATH || math == FMA_MATH, "there is no math ", math);
    require(features > 0 && hidden > 0 && layers > 0, "there are ", features, " features, ", hidden, " units and ",
            layers, " layers");
    require(projection == hidden, "the projection is ", projection, " and must be ", hidden);
    require(dropout && dropout->set, "the dropout's descriptor is null or not set");
    require(flags == PADDED_IO_ENABLED, "the flags are ", flags, " and must be PADDED_IO_ENABLED");
    *recurrence = {algorithm, mode, direction, type, features, hidden, layers};
  });
}

Status cudnnGetRNNTempSpaceSizes(Context* context, Recurrence* recurrence, ForwardMode mode, Sequences* xs,
                                 size_t* workspace, size_t* reserve) {
  return answer(__func__, [&] {
    const Recurrence& r = configured(context, recurrence);
    require(mode == INFERENCE || mode == TRAINING, "there is no mode ", mode);
    check_sequences("xs", r, xs, r.features);
    require(workspace, "the pointer to the workspace size is null");
    require_supported(r);
    const Pass pass(r, *xs);
    *workspace = workspace_needed(pass, mode);
    if (reserve) *reserve = mode == TRAINING ? reserve_needed(pass) : 0;
  });
}

Status cudnnGetRNNWeightSpaceSize(Context* context, Recurrence* recurrence, size_t* bytes) {
  return answer(__func__, [&] {
    const Recurrence& r = configured(context, recurrence);
    require(bytes, "the pointer to the size is null");
    *bytes = r.weights() * element_bytes(r.type);
  });
}

Status cudnnGetRNNWeightParams(Context* context, Recurrence* recurrence, int32_t layer, size_t bytes,
                               const void* weights, int32_t gate, Tensor* matrix, void** matrix_data, Tensor* bias,
                               void** bias_data) {
  return answer(__func__, [&] {
    const Recurrence& r = configured(context, recurrence);
    require(layer >= 0 && layer < r.pseudo_layers(), "there is no pseudo-layer ", layer);
    require(gate >= 0 && gate < 2 * r.gates(), "there is no gate ", gate);
    check_bytes("bytes", bytes, r.weights() * element_bytes(r.type));
    require_data("the address of the weights", weights);
    const Recurrence::Place at = r.place(layer);
    const bool recurrent = gate >= r.gates();
    const int columns = recurrent ? r.hidden : r.inputs(layer), first_row = gate % r.gates() * r.hidden;
    const auto address = [&](int64_t element) {
      return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(weights) + element * element_bytes(r.type));
    };
    if (matrix) *matrix = {r.type, {1, r.hidden, columns}, {r.hidden * columns, columns, 1}};
    if (matrix_data) *matrix_data = address((recurrent ? at.r : at.w) + int64_t{first_row} * columns);
    if (bias) *bias = {r.type, {1, r.hidden, 1}, {r.hidden, 1, 1}};
    if (bias_data) *bias_data = address((recurrent ? at.b_r : at.b_w) + first_row);
  });
}

Status cudnnRNNForward(Context* context, Recurrence* recurrence, ForwardMode mode, const int32_t* lengths,
                       Sequences* xs, const void* xs_data, Sequences* ys, void* ys_data, Tensor* h,
                       const void* h_first, void* h_last, Tensor* c, const void* c_first, void* c_last,
                       size_t weight_bytes, const void* weights, size_t workspace_bytes, void* workspace,
                       size_t reserve_bytes, void* reserve) {
  return answer(__func__, [&] {
    Pass pass = checked(context, recurrence, mode, lengths, xs, ys, h, weight_bytes, workspace_bytes, workspace,
                        reserve_bytes, reserve);
    const bool lstm = pass.r.mode == LSTM;
    if (lstm) check_state("c", pass.r, c, xs->batch);
    require_data("xs", xs_data);
    require_data("ys", ys_data);
    require_data("the weights", weights);
    const DataType type = pass.r.type;
    pass.xs = read(type, xs_data, pass.T * pass.B * xs->width);
    pass.ys.resize(pass.T * pass.B * ys->width);
    pass.h_first = read(type, h_first, pass.states());
    pass.c_first = read(type, lstm ? c_first : nullptr, pass.states());
    Values not_kept(mode == INFERENCE ? pass.kept_count() : 0);
    if (mode == INFERENCE) pass.kept = not_kept.data();
    const Values last_cells = pass.forward(read(type, weights, pass.r.weights()));
    write(type, pass.ys, ys_data);
    write(type, pass.h_last(), h_last);
    write(type, last_cells, lstm ? c_last : nullptr);
    if (mode == TRAINING) mark(pass, FILLED, reserve);
    scribble(workspace, workspace_bytes);
  });
}

Status cudnnRNNBackwardData_v8(Context* context, Recurrence* recurrence, const int32_t* lengths, Sequences* ys,
                               const void* ys_data, const void* d_ys, Sequences* xs, void* d_xs, Tensor* h,
                               const void* h_first, const void* d_h_last, void* d_h_first, Tensor* c,
                               const void* c_first, const void* d_c_last, void* d_c_first, size_t weight_bytes,
                               const void* weights, size_t workspace_bytes, void* workspace, size_t reserve_bytes,
                               void* reserve) {
  return answer(__func__, [&] {
    Pass pass = checked(context, recurrence, TRAINING, lengths, xs, ys, h, weight_bytes, workspace_bytes, workspace,
                        reserve_bytes, reserve);
    const bool lstm = pass.r.mode == LSTM;
    if (lstm) check_state("c", pass.r, c, xs->batch);
    require_data("ys", ys_data);
    require_data("d_ys", d_ys);
    require_data("d_xs", d_xs);
    require_data("the weights", weights);
    require_stage(pass, FILLED, reserve, "cudnnRNNForward");
    const DataType type = pass.r.type;
    const int64_t outputs = pass.T * pass.B * ys->width;
    pass.ys = read(type, ys_data, outputs);
    pass.h_first = read(type, h_first, pass.states());
    pass.c_first = read(type, lstm ? c_first : nullptr, pass.states());
    Values d_h = read(type, d_h_last, pass.states()), d_c = read(type, lstm ? d_c_last : nullptr, pass.states());
    write(type, pass.backward_data(read(type, weights, pass.r.weights()), read(type, d_ys, outputs), d_h, d_c), d_xs);
    write(type, d_h, d_h_first);
    write(type, d_c, lstm ? d_c_first : nullptr);
    mark(pass, DIFFERENTIATED, reserve);
    scribble(workspace, workspace_bytes);
  });
}

Status cudnnRNNBackwardWeights_v8(Context* context, Recurrence* recurrence, WeightGradient mode,
                                  const int32_t* lengths, Sequences* xs, const void* xs_data, Tensor* h,
                                  const void* h_first, Sequences* ys, const void* ys_data, size_t weight_bytes,
                                  void* d_weights, size_t workspace_bytes, void* workspace, size_t reserve_bytes,
                                  void* reserve) {
  return answer(__func__, [&] {
    Pass pass = checked(context, recurrence, TRAINING, lengths, xs, ys, h, weight_bytes, workspace_bytes, workspace,
                        reserve_bytes, reserve);
    require(mode == ADD, "the mode of the gradients is ", mode, " and must be ADD");
    require_data("xs", xs_data);
    require_data("ys", ys_data);
    require_data("the gradients of the weights", d_weights);
    require_stage(pass, DIFFERENTIATED, reserve, "cudnnRNNBackwardData_v8");
    const DataType type = pass.r.type;
    pass.xs = read(type, xs_data, pass.T * pass.B * xs->width);
    pass.ys = read(type, ys_data, pass.T * pass.B * ys->width);
    pass.h_first = read(type, h_first, pass.states());
    Values sums = read(type, d_weights, pass.r.weights());
    pass.backward_weights(sums);
    write(type, sums, d_weights);
    scribble(workspace, workspace_bytes);
  });
}

}  // extern "C"
