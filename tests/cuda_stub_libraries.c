/* cuBLAS and cuDNN for the stub of CUDA: every call succeeds and nothing is computed.
 *
 * torch asks its own allocator for what these libraries work in, so the workspaces of cuBLAS are real. How much cuDNN wants
 * only cuDNN knows: here it is what IPYVRAM_STUB_CUDNN_WORKSPACE says (0 bytes), and what it keeps for backward is none.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static int made(void **object) { *object = calloc(1, 256); return 0; }
static size_t workspace(void) {
    const char *text = getenv("IPYVRAM_STUB_CUDNN_WORKSPACE");
    return text ? strtoull(text, NULL, 0) : 0;
}
#define MADE(name) int name(void **object) { return made(object); }
#define SUCCEEDS(name) int name(void) { return 0; }

/* -- cuBLAS and cuBLASLt. */

MADE(cublasCreate_v2)
int cublasGetMathMode(void *handle, int *mode) { *mode = 0; return 0; }
int cublasGetPointerMode_v2(void *handle, int *mode) { *mode = 0; return 0; }
SUCCEEDS(cublasDestroy_v2) SUCCEEDS(cublasSetMathMode) SUCCEEDS(cublasSetPointerMode_v2) SUCCEEDS(cublasSetSmCountTarget)
SUCCEEDS(cublasSetStream_v2) SUCCEEDS(cublasSetWorkspace_v2) SUCCEEDS(cublasGemmEx) SUCCEEDS(cublasGemmStridedBatchedEx)
SUCCEEDS(cublasSgemmEx) SUCCEEDS(cublasDotEx) SUCCEEDS(cublasSdot_v2) SUCCEEDS(cublasDdot_v2) SUCCEEDS(cublasCdotc_v2)
SUCCEEDS(cublasCdotu_v2) SUCCEEDS(cublasZdotc_v2) SUCCEEDS(cublasZdotu_v2)
#define EACH(op) SUCCEEDS(cublasS##op) SUCCEEDS(cublasD##op) SUCCEEDS(cublasC##op) SUCCEEDS(cublasZ##op)
EACH(gemm_v2) EACH(gemmStridedBatched) EACH(gemv_v2) EACH(gelsBatched) EACH(geqrfBatched) EACH(getrfBatched) EACH(getrsBatched)
EACH(trsmBatched) EACH(trsm_v2)

typedef struct { uint64_t algorithm[8]; size_t workspace; int state; float waves; int reserved[4]; } Heuristic;
int cublasLtMatmulDescCreate(void **object, int compute, int scale) { return made(object); }
int cublasLtMatrixLayoutCreate(void **object, int type, uint64_t rows, uint64_t columns, int64_t leading) { return made(object); }
MADE(cublasLtMatmulPreferenceCreate)
int cublasLtMatmulAlgoGetHeuristic(void *handle, void *op, void *a, void *b, void *c, void *d, void *preference, int asked,
                                   Heuristic *results, int *found) {
    memset(results, 0, sizeof *results);
    *found = 1;
    return 0;
}
SUCCEEDS(cublasLtMatmul) SUCCEEDS(cublasLtMatmulAlgoCheck) SUCCEEDS(cublasLtMatmulAlgoConfigGetAttribute)
SUCCEEDS(cublasLtMatmulAlgoConfigSetAttribute) SUCCEEDS(cublasLtMatmulAlgoInit) SUCCEEDS(cublasLtMatmulDescDestroy)
SUCCEEDS(cublasLtMatmulDescSetAttribute) SUCCEEDS(cublasLtMatmulPreferenceDestroy) SUCCEEDS(cublasLtMatmulPreferenceSetAttribute)
SUCCEEDS(cublasLtMatrixLayoutDestroy) SUCCEEDS(cublasLtMatrixLayoutSetAttribute)

/* -- cuDNN: the graph interface (convolutions) finds one engine for everything. */

enum { TYPE_INT64 = 3, TYPE_DESCRIPTOR = 15, TYPE_INT32 = 23, ATTRIBUTE_WORKSPACE = 402 }; /* cudnn_graph.h */
int cudnnBackendCreateDescriptor(int type, void **object) { return made(object); }
int cudnnBackendGetAttribute(void *object, int name, int type, int64_t room, int64_t *count, void *to) {
    int64_t found = type == TYPE_DESCRIPTOR || type == TYPE_INT64 || type == TYPE_INT32;
    if (count) *count = found;
    if (found && room > 0 && to && type == TYPE_INT32) *(int32_t *)to = 0;
    if (found && room > 0 && to && type == TYPE_INT64) *(int64_t *)to = name == ATTRIBUTE_WORKSPACE ? workspace() : 0;
    return 0;
}
SUCCEEDS(cudnnBackendDestroyDescriptor) SUCCEEDS(cudnnBackendExecute) SUCCEEDS(cudnnBackendFinalize)
SUCCEEDS(cudnnBackendSetAttribute)

/* -- cuDNN: the functions by name. */

MADE(cudnnCreate) MADE(cudnnCreateActivationDescriptor) MADE(cudnnCreateCTCLossDescriptor) MADE(cudnnCreateConvolutionDescriptor)
MADE(cudnnCreateDropoutDescriptor) MADE(cudnnCreateFilterDescriptor) MADE(cudnnCreatePoolingDescriptor)
MADE(cudnnCreateRNNDataDescriptor) MADE(cudnnCreateRNNDescriptor) MADE(cudnnCreateSpatialTransformerDescriptor)
MADE(cudnnCreateTensorDescriptor)
int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(void *h, int mode, int ops, void *x, void *z, void *y, void *scale,
                                                             void *activation, size_t *size) { *size = 0; return 0; }
int cudnnGetBatchNormalizationBackwardExWorkspaceSize(void *h, int mode, int ops, void *x, void *y, void *dy, void *dz, void *dx,
                                                      void *scale, void *activation, size_t *size) { *size = 0; return 0; }
int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(void *h, int mode, int ops, void *activation, void *x, size_t *size) {
    *size = 0;
    return 0;
}
int cudnnDropoutGetStatesSize(void *h, size_t *size) { *size = 2 << 20; return 0; }
int cudnnGetStream(void *h, void **stream) { *stream = NULL; return 0; }
int cudnnGetCTCLossWorkspaceSize(void *h, void *p, void *g, void *l, void *ll, void *il, int a, void *c, size_t *size) { *size = 0; return 0; }
int cudnnGetCTCLossWorkspaceSize_v8(void *h, int a, void *c, void *p, void *g, size_t *size) { *size = 0; return 0; }
int cudnnGetConvolutionForwardWorkspaceSize(void *h, void *a, void *b, void *c, void *d, int algo, size_t *size) {
    *size = workspace();
    return 0;
}
int cudnnGetConvolutionBackwardDataWorkspaceSize(void *h, void *a, void *b, void *c, void *d, int algo, size_t *size) {
    *size = workspace();
    return 0;
}
int cudnnGetConvolutionBackwardFilterWorkspaceSize(void *h, void *a, void *b, void *c, void *d, int algo, size_t *size) {
    *size = workspace();
    return 0;
}

/* Where a recurrent network's weights lie in their one buffer: matrices of each layer and direction, then their biases. What
 * cuDNN works in and keeps for backward (its reserve) only cuDNN knows: none. */
enum { LSTM = 2, GRU = 3, NO_BIAS = 0 };
typedef struct { int cell, bias, directions, type; uint64_t input, hidden, out, layers; } Rnn;
typedef struct { int type, dims[3]; } Shape;
static uint64_t gates(const Rnn *r) { return r->cell == LSTM ? 4 : r->cell == GRU ? 3 : 1; }
static uint64_t input_of(const Rnn *r, uint64_t layer) { return layer < r->directions ? r->input : r->out * r->directions; }
static uint64_t projection(const Rnn *r) { return r->out == r->hidden ? 0 : r->out * r->hidden; }
static uint64_t matrices(const Rnn *r, uint64_t layer) { return gates(r) * r->hidden * (input_of(r, layer) + r->out) + projection(r); }
static uint64_t biases_begin(const Rnn *r) {
    uint64_t sum = 0;
    for (uint64_t layer = 0; layer < r->layers * r->directions; layer++) sum += matrices(r, layer);
    return sum;
}
static size_t element(int type) { return type == 1 ? 8 : type == 2 || type == 9 ? 2 : 4; } /* cudnnDataType_t */
int cudnnSetRNNDescriptor_v8(Rnn *r, int algorithm, int cell, int bias, int direction, int mode, int type, int precision, int math,
                             int input, int hidden, int projected, int layers, void *dropout, unsigned flags) {
    *r = (Rnn){cell, bias, direction ? 2 : 1, type, input, hidden, projected, layers};
    return 0;
}
int cudnnGetRNNWeightSpaceSize(void *h, Rnn *r, size_t *size) {
    uint64_t biases = r->bias == NO_BIAS ? 0 : r->layers * r->directions * 2 * gates(r) * r->hidden;
    *size = (biases_begin(r) + biases) * element(r->type);
    return 0;
}
int cudnnGetRNNWeightParams(void *h, Rnn *r, int layer, size_t size, char *weights, int gate, Shape *matrix, char **matrix_at,
                            Shape *bias, char **bias_at) {
    uint64_t before = 0, input = input_of(r, layer), own = gates(r), recurrent = gate >= own;
    for (int i = 0; i < layer; i++) before += matrices(r, i);
    if (gate == 8) { /* an LSTM's projection */
        if (matrix) *matrix = (Shape){r->type, {1, r->out, r->hidden}};
        if (matrix_at) *matrix_at = projection(r) ? weights + (before + own * r->hidden * (input + r->out)) * element(r->type) : NULL;
        if (bias_at) *bias_at = NULL;
        return 0;
    }
    before += recurrent ? own * r->hidden * input + (gate - own) * r->hidden * r->out : gate * r->hidden * input;
    if (matrix) *matrix = (Shape){r->type, {1, r->hidden, recurrent ? r->out : input}};
    if (bias) *bias = (Shape){r->type, {1, r->hidden, 1}};
    if (matrix_at) *matrix_at = weights + before * element(r->type);
    if (bias_at) *bias_at = r->bias == NO_BIAS ? NULL : weights + (biases_begin(r) + (2 * own * layer + gate) * r->hidden) * element(r->type);
    return 0;
}
int cudnnGetTensorNdDescriptor(const Shape *shape, int room, int *type, int *count, int *dims, int *strides) {
    *type = shape->type, *count = 3;
    memcpy(dims, shape->dims, sizeof shape->dims);
    strides[0] = dims[1] * dims[2], strides[1] = dims[2], strides[2] = 1;
    return 0;
}
int cudnnGetRNNTempSpaceSizes(void *h, void *rnn, int mode, void *x, size_t *work, size_t *kept) {
    if (work) *work = workspace();
    if (kept) *kept = 0;
    return 0;
}
SUCCEEDS(cudnnBatchNormalizationBackwardEx) SUCCEEDS(cudnnBatchNormalizationForwardInference)
SUCCEEDS(cudnnBatchNormalizationForwardTrainingEx) SUCCEEDS(cudnnCTCLoss) SUCCEEDS(cudnnCTCLoss_v8)
SUCCEEDS(cudnnConvolutionBackwardData) SUCCEEDS(cudnnConvolutionBackwardFilter) SUCCEEDS(cudnnConvolutionBiasActivationForward)
SUCCEEDS(cudnnConvolutionForward) SUCCEEDS(cudnnDestroyActivationDescriptor) SUCCEEDS(cudnnDestroyCTCLossDescriptor)
SUCCEEDS(cudnnDestroyConvolutionDescriptor) SUCCEEDS(cudnnDestroyDropoutDescriptor) SUCCEEDS(cudnnDestroyFilterDescriptor)
SUCCEEDS(cudnnDestroyRNNDataDescriptor) SUCCEEDS(cudnnDestroyRNNDescriptor) SUCCEEDS(cudnnDestroySpatialTransformerDescriptor)
SUCCEEDS(cudnnDestroyTensorDescriptor) SUCCEEDS(cudnnPoolingForward) SUCCEEDS(cudnnRNNBackwardData_v8)
SUCCEEDS(cudnnRNNBackwardWeights_v8) SUCCEEDS(cudnnRNNForward) SUCCEEDS(cudnnRestoreDropoutDescriptor)
SUCCEEDS(cudnnSetActivationDescriptor) SUCCEEDS(cudnnSetCTCLossDescriptorEx) SUCCEEDS(cudnnSetCTCLossDescriptor_v9)
SUCCEEDS(cudnnSetConvolutionGroupCount) SUCCEEDS(cudnnSetConvolutionMathType) SUCCEEDS(cudnnSetConvolutionNdDescriptor)
SUCCEEDS(cudnnSetDropoutDescriptor) SUCCEEDS(cudnnSetFilterNdDescriptor) SUCCEEDS(cudnnSetPooling2dDescriptor)
SUCCEEDS(cudnnSetRNNDataDescriptor) SUCCEEDS(cudnnSetSpatialTransformerNdDescriptor) SUCCEEDS(cudnnSetStream)
SUCCEEDS(cudnnSetTensorNdDescriptor) SUCCEEDS(cudnnSpatialTfGridGeneratorBackward) SUCCEEDS(cudnnSpatialTfGridGeneratorForward)
SUCCEEDS(cudnnSpatialTfSamplerBackward) SUCCEEDS(cudnnSpatialTfSamplerForward)
