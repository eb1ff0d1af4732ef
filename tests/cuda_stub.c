/* A CUDA runtime for machines without a card. It is preloaded in place of libcudart; torch's own code does all the rest.
 *
 * What is real with it: everything of torch.cuda above the runtime, that is the caching allocator with its counters, history,
 * snapshots and limits, streams and events, the autograd engine's thread of a device, and what each CUDA operator allocates.
 * What is not: kernels do not run and nothing is stored (every number on the card is 0), time, and the sizes that only NVIDIA's closed
 * libraries know (see cuda_stub_libraries.c). NVML's functions are here too: the file is loaded as libcuda.so.1, and libnvidia-ml.so.1 leads to it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <driver_types.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef unsigned long long u64;
typedef cudaError_t Error;

enum { MAX_DEVICES = 4, MAX_PROCESSES = 64, MAX_RANGES = 1 << 16 };
#define MIB (1ull << 20)
#define PAGE (2 * MIB)           /* the driver hands out memory in pages of this size */
#define SPACE (8ull << 40)       /* addresses of one device */

/* -- The cards: shared by all processes that are given the same file in IPYVRAM_STUB_CARD. */

typedef struct { int pid; u64 bytes[MAX_DEVICES]; } Owner;
typedef struct { Owner owners[MAX_PROCESSES]; } Cards;

static Cards *cards;
static Owner *mine;
static int devices = 1;
static u64 capacity = 16ull << 30, context = 300 * MIB, driver = 200 * MIB;
static int capability = 86, multiprocessors = 132;
static int downward = 0; /* whether each segment lies below those before */
static char *space[MAX_DEVICES];
static u64 next_free[MAX_DEVICES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread int current;
static __thread Error last_error;

typedef struct { char *start; u64 size; int device; int kind; } Range; /* kind: enum cudaMemoryType */
static Range ranges[MAX_RANGES];
static int range_count;

static u64 setting(const char *name, u64 otherwise) {
    const char *text = getenv(name);
    return text && *text ? strtoull(text, NULL, 0) : otherwise;
}

static Owner *owner_of(int pid) {
    for (int i = 0; i < MAX_PROCESSES; i++) {
        Owner *owner = &cards->owners[i];
        int old = owner->pid;
        if (old == pid) return owner;
        if (old == 0 || (kill(old, 0) != 0)) {
            if (__sync_bool_compare_and_swap(&owner->pid, old, pid)) {
                memset(owner->bytes, 0, sizeof owner->bytes);
                return owner;
            }
        }
    }
    abort();
}

static void configure(void) {
    devices = setting("IPYVRAM_STUB_DEVICES", devices);
    capacity = setting("IPYVRAM_STUB_BYTES", capacity);
    capability = setting("IPYVRAM_STUB_CAPABILITY", capability);
    multiprocessors = setting("IPYVRAM_STUB_MULTIPROCESSORS", multiprocessors);
    downward = setting("IPYVRAM_STUB_DOWNWARD", downward);
}

static void forked(void) { mine = NULL; }

__attribute__((constructor)) static void begin(void) {
    configure();
    pthread_atfork(NULL, NULL, forked);
    const char *path = getenv("IPYVRAM_STUB_CARD");
    int file = path ? open(path, O_RDWR | O_CREAT, 0600) : -1;
    if (file >= 0 && ftruncate(file, sizeof(Cards)) != 0) abort();
    cards = mmap(NULL, sizeof(Cards), PROT_READ | PROT_WRITE, file >= 0 ? MAP_SHARED : MAP_SHARED | MAP_ANONYMOUS, file, 0);
    if (cards == MAP_FAILED) abort();
    if (file >= 0) close(file);
}

static Owner *me(void) {
    if (!mine) {
        configure(); /* anew in a process that was forked: its environment may have changed */
        mine = owner_of(getpid());
    }
    return mine;
}

__attribute__((destructor)) static void end(void) {
    if (mine && mine->pid == getpid()) {
        memset(mine->bytes, 0, sizeof mine->bytes);
        mine->pid = 0;
    }
}

static u64 used(int device) {
    u64 sum = driver;
    for (int i = 0; i < MAX_PROCESSES; i++) {
        int pid = cards->owners[i].pid;
        if (pid && kill(pid, 0) == 0) sum += cards->owners[i].bytes[device];
    }
    return sum;
}

/* The context of the current device is made by the first call that needs it. */
static int here(void) {
    if (me()->bytes[current] == 0) me()->bytes[current] = context;
    return current;
}

static Error failed(Error error) { return last_error = error; }

static Range *range_of(const void *pointer) {
    for (int i = range_count - 1; i >= 0; i--)
        if ((char *)pointer >= ranges[i].start && (char *)pointer < ranges[i].start + ranges[i].size) return &ranges[i];
    return NULL;
}

static void add_range(char *start, u64 size, int device, int kind) {
    if (range_count == MAX_RANGES) abort();
    ranges[range_count++] = (Range){start, size, device, kind};
}

static char *reserve(int device, u64 size) {
    if (!space[device]) {
        space[device] = mmap(NULL, SPACE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (space[device] == MAP_FAILED) abort();
        next_free[device] = -(u64)space[device] % PAGE;
    }
    u64 before = next_free[device];
    next_free[device] += (size + PAGE - 1) / PAGE * PAGE;
    char *end = (char *)(((u64)space[device] + SPACE) / PAGE * PAGE);
    char *at = downward ? end - (next_free[device] - -(u64)space[device] % PAGE) : space[device] + before;
    return next_free[device] <= SPACE ? at : NULL;
}

static u64 pages(u64 size) { return (size + PAGE - 1) / PAGE * PAGE; }

static int take(int device, u64 size) {
    if (used(device) + size > capacity) return 0;
    me()->bytes[device] += size;
    return 1;
}

/* -- Memory. */

static Error allocate(void **pointer, u64 size) {
    pthread_mutex_lock(&lock);
    int device = here();
    char *at = NULL;
    if (take(device, pages(size))) {
        at = reserve(device, size);
        add_range(at, pages(size), device, cudaMemoryTypeDevice);
    }
    pthread_mutex_unlock(&lock);
    *pointer = at;
    return at ? cudaSuccess : failed(cudaErrorMemoryAllocation);
}

static Error release(void *pointer) {
    here();
    if (!pointer) return cudaSuccess;
    pthread_mutex_lock(&lock);
    Range *range = range_of(pointer);
    Error result = cudaErrorInvalidValue;
    if (range && range->start == pointer) {
        if (range->kind == cudaMemoryTypeDevice) {
            me()->bytes[range->device] -= range->size;
        } else {
            munmap(range->start, range->size);
        }
        *range = ranges[--range_count];
        result = cudaSuccess;
    }
    pthread_mutex_unlock(&lock);
    return result == cudaSuccess ? result : failed(result);
}

Error cudaMalloc(void **pointer, size_t size) { return allocate(pointer, size); }
Error cudaFree(void *pointer) { return release(pointer); }
Error cudaHostAlloc(void **pointer, size_t size, unsigned flags) {
    here();
    *pointer = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pthread_mutex_lock(&lock);
    add_range(*pointer, size, current, cudaMemoryTypeHost);
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}
Error cudaFreeHost(void *pointer) { return release(pointer); }
Error cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    u64 taken = used(here());
    *free_bytes = taken < capacity ? capacity - taken : 0;
    *total = capacity;
    return cudaSuccess;
}
Error cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *pointer) {
    memset(attributes, 0, sizeof *attributes);
    pthread_mutex_lock(&lock);
    Range *range = range_of(pointer);
    attributes->type = range ? range->kind : cudaMemoryTypeUnregistered;
    attributes->device = range ? range->device : -2;
    attributes->devicePointer = attributes->hostPointer = (void *)pointer;
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

/* Nothing is stored on a card: what is read from it is zeros, whatever was written. So a program takes the same way each time. */
static Error copy(void *to, const void *from, u64 size, enum cudaMemcpyKind kind) {
    here();
    pthread_mutex_lock(&lock);
    Range *target = range_of(to), *source = range_of(from);
    int into = target && target->kind == cudaMemoryTypeDevice, out_of = source && source->kind == cudaMemoryTypeDevice;
    pthread_mutex_unlock(&lock);
    if (!into && out_of) memset(to, 0, size);
    if (!into && !out_of) memmove(to, from, size);
    return cudaSuccess;
}
Error cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) { return copy(to, from, size, kind); }
Error cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
    return copy(to, from, size, kind);
}
Error cudaMemcpyPeerAsync(void *to, int to_device, const void *from, int from_device, size_t size, cudaStream_t stream) {
    return copy(to, from, size, cudaMemcpyDeviceToDevice);
}
Error cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                        enum cudaMemcpyKind kind, cudaStream_t stream) {
    for (size_t row = 0; row < height; row++) copy((char *)to + row * to_pitch, (char *)from + row * from_pitch, width, kind);
    return cudaSuccess;
}
Error cudaMemsetAsync(void *to, int value, size_t size, cudaStream_t stream) { here(); return cudaSuccess; }
Error cudaMemset(void *to, int value, size_t size) { here(); return cudaSuccess; }

/* The driver's own pools, for backend:cudaMallocAsync: they grow by chunks and keep them until they are trimmed. */
#define CHUNK (32 * MIB)
typedef struct { u64 used, reserved, used_high, reserved_high; } Pool;
static Pool pools[MAX_DEVICES];
static Pool *pool_of(cudaMemPool_t pool) { return &pools[(uintptr_t)pool - 1]; }

Error cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int device) {
    *pool = (cudaMemPool_t)(uintptr_t)(device + 1);
    return cudaSuccess;
}
Error cudaMallocAsync(void **pointer, size_t asked, cudaStream_t stream) {
    u64 size = (asked + 511) / 512 * 512;
    pthread_mutex_lock(&lock);
    int device = here();
    Pool *pool = &pools[device];
    u64 lacking = pool->used + size > pool->reserved ? (pool->used + size - pool->reserved + CHUNK - 1) / CHUNK * CHUNK : 0;
    int fits = take(device, lacking);
    if (fits) {
        pool->used += size, pool->reserved += lacking;
        if (pool->used > pool->used_high) pool->used_high = pool->used;
        if (pool->reserved > pool->reserved_high) pool->reserved_high = pool->reserved;
        *pointer = reserve(device, size);
        add_range(*pointer, size, device, cudaMemoryTypeDevice);
    }
    pthread_mutex_unlock(&lock);
    return fits ? cudaSuccess : failed(cudaErrorMemoryAllocation);
}
Error cudaFreeAsync(void *pointer, cudaStream_t stream) {
    pthread_mutex_lock(&lock);
    Range *range = range_of(pointer);
    if (range) {
        pools[range->device].used -= range->size;
        *range = ranges[--range_count];
    }
    pthread_mutex_unlock(&lock);
    return range ? cudaSuccess : failed(cudaErrorInvalidValue);
}
Error cudaMemPoolTrimTo(cudaMemPool_t which, size_t least) {
    Pool *pool = pool_of(which);
    u64 kept = (pool->used + CHUNK - 1) / CHUNK * CHUNK;
    pthread_mutex_lock(&lock);
    if (kept < least) kept = least;
    if (kept < pool->reserved) {
        me()->bytes[pool - pools] -= pool->reserved - kept;
        pool->reserved = kept;
    }
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}
Error cudaMemPoolGetAttribute(cudaMemPool_t which, enum cudaMemPoolAttr attribute, void *value) {
    Pool *pool = pool_of(which);
    u64 *to = value;
    switch (attribute) {
        case cudaMemPoolAttrReservedMemCurrent: *to = pool->reserved; break;
        case cudaMemPoolAttrReservedMemHigh: *to = pool->reserved_high; break;
        case cudaMemPoolAttrUsedMemCurrent: *to = pool->used; break;
        case cudaMemPoolAttrUsedMemHigh: *to = pool->used_high; break;
        case cudaMemPoolAttrReleaseThreshold: *to = 0; break;
        default: *(int *)value = 1;
    }
    return cudaSuccess;
}
Error cudaMemPoolSetAttribute(cudaMemPool_t which, enum cudaMemPoolAttr attribute, void *value) {
    Pool *pool = pool_of(which);
    if (attribute == cudaMemPoolAttrUsedMemHigh) pool->used_high = pool->used;
    if (attribute == cudaMemPoolAttrReservedMemHigh) pool->reserved_high = pool->reserved;
    return cudaSuccess;
}

/* -- The driver's virtual memory, for expandable segments: a handle is a number of bytes, physical memory is not told apart. */

typedef u64 Pointer, Handle;
typedef struct { u64 size; int device, mapped; } Physical;

int cuMemAddressReserve(Pointer *at, size_t size, size_t alignment, Pointer hint, u64 flags) {
    pthread_mutex_lock(&lock);
    *at = (Pointer)reserve(here(), size);
    pthread_mutex_unlock(&lock);
    return *at ? 0 : 2;
}
int cuMemAddressFree(Pointer at, size_t size) { return 0; }
int cuMemCreate(Handle *handle, size_t size, const void *properties, u64 flags) {
    int device = ((const int *)properties)[3]; /* CUmemAllocationProp.location.id */
    pthread_mutex_lock(&lock);
    here();
    int taken = take(device, size);
    pthread_mutex_unlock(&lock);
    if (!taken) return 2;
    Physical *physical = malloc(sizeof *physical);
    *physical = (Physical){size, device, 0};
    *handle = (Handle)physical;
    return 0;
}
static void let_go(Physical *physical) {
    if (--physical->mapped < 0) {
        me()->bytes[physical->device] -= physical->size;
        free(physical);
    }
}
int cuMemRelease(Handle handle) {
    pthread_mutex_lock(&lock);
    let_go((Physical *)handle);
    pthread_mutex_unlock(&lock);
    return 0;
}
int cuMemMap(Pointer at, size_t size, size_t offset, Handle handle, u64 flags) {
    pthread_mutex_lock(&lock);
    add_range((char *)at, size, ((Physical *)handle)->device, cudaMemoryTypeDevice);
    pthread_mutex_unlock(&lock);
    return 0;
}
int cuMemUnmap(Pointer at, size_t size) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < range_count;)
        if (ranges[i].start >= (char *)at && ranges[i].start < (char *)at + size) ranges[i] = ranges[--range_count];
        else i++;
    pthread_mutex_unlock(&lock);
    return 0;
}
int cuMemSetAccess(Pointer at, size_t size, const void *access, size_t count) { return 0; }
int cuMemGetAllocationGranularity(size_t *size, const void *properties, int option) { *size = PAGE; return 0; }
int cuMemGetAddressRange_v2(Pointer *base, size_t *size, Pointer at) {
    pthread_mutex_lock(&lock);
    Range *range = range_of((void *)at);
    if (range) *base = (Pointer)range->start, *size = range->size;
    pthread_mutex_unlock(&lock);
    return range ? 0 : 1;
}
int cuGetErrorString(int error, const char **text) { *text = error == 2 ? "out of memory" : "the stub says no"; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 102; return 0; } /* virtual memory */
int cuCtxGetCurrent(void **context_of) { *context_of = (void *)&cards; return 0; }
int cuCtxSetCurrent(void *context_of) { return 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    *flags = 0, *active = me()->bytes[device] > 0;
    return 0;
}
int cuDevicePrimaryCtxRetain(void **context_of, int device) { return cuCtxGetCurrent(context_of); }
int cuCtxPushCurrent_v2(void *context_of) { return 0; }
int cuCtxPopCurrent_v2(void **context_of) { *context_of = (void *)&cards; return 0; }
int cuLogsRegisterCallback(void *call, void *data, void **handle) { return 0; }
int cuLogsUnregisterCallback(void *handle) { return 0; }
static int unsupported(void) { return 801; }
#define UNSUPPORTED(name) int name(void) { return 801; }
UNSUPPORTED(cuFuncGetAttribute) UNSUPPORTED(cuFuncSetAttribute)
UNSUPPORTED(cuFuncSetCacheConfig) UNSUPPORTED(cuLaunchCooperativeKernel) UNSUPPORTED(cuLaunchKernel) UNSUPPORTED(cuLinkAddData_v2)
UNSUPPORTED(cuLinkComplete) UNSUPPORTED(cuLinkCreate_v2) UNSUPPORTED(cuModuleGetFunction) UNSUPPORTED(cuModuleLoad)
UNSUPPORTED(cuModuleLoadData) UNSUPPORTED(cuModuleLoadDataEx) UNSUPPORTED(cuModuleUnload) UNSUPPORTED(cuPointerGetAttribute)
UNSUPPORTED(cuMemExportToShareableHandle) UNSUPPORTED(cuMemImportFromShareableHandle) UNSUPPORTED(cuMulticastAddDevice)
UNSUPPORTED(cuMulticastBindMem) UNSUPPORTED(cuMulticastCreate) UNSUPPORTED(cuMemsetD32Async) UNSUPPORTED(cuStreamWriteValue32) UNSUPPORTED(cuMulticastUnbind)
UNSUPPORTED(cuOccupancyMaxActiveBlocksPerMultiprocessor) UNSUPPORTED(cuTensorMapEncodeTiled)

static Error entry_point(const char *symbol, void **function, enum cudaDriverEntryPointQueryResult *status) {
    char versioned[128];
    snprintf(versioned, sizeof versioned, "%s_v2", symbol);
    *function = dlsym(RTLD_DEFAULT, symbol);
    if (!*function) *function = dlsym(RTLD_DEFAULT, versioned);
    if (!*function) *function = unsupported;
    if (status) *status = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}
Error cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned version, unsigned long long flags,
                                       enum cudaDriverEntryPointQueryResult *status) {
    return entry_point(symbol, function, status);
}
Error cudaGetDriverEntryPoint(const char *symbol, void **function, unsigned long long flags,
                              enum cudaDriverEntryPointQueryResult *status) {
    return entry_point(symbol, function, status);
}

/* -- Devices. */

Error cudaGetDeviceCount(int *count) { me(); *count = devices; return cudaSuccess; }
Error cudaGetDevice(int *device) { *device = current; return cudaSuccess; }
Error cudaSetDevice(int device) {
    if (device < 0 || device >= devices) return failed(cudaErrorInvalidDevice);
    current = device;
    here(); /* since CUDA 12 */
    return cudaSuccess;
}
/* Resident threads of a multiprocessor: CUDA C++ Programming Guide, technical specifications per compute capability. */
static int resident(void) { return capability == 75 ? 1024 : capability > 80 && capability < 90 || capability >= 110 ? 1536 : 2048; }
static Error properties(struct cudaDeviceProp *p, int device) {
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "NVIDIA Stub");
    memset(p->uuid.bytes, 0x11 * (device + 1), sizeof p->uuid.bytes);
    p->totalGlobalMem = capacity;
    p->sharedMemPerBlock = 48 << 10, p->sharedMemPerBlockOptin = 227 << 10, p->sharedMemPerMultiprocessor = 228 << 10;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536, p->maxBlocksPerMultiProcessor = 16;
    p->warpSize = 32, p->maxThreadsPerBlock = 1024, p->maxThreadsPerMultiProcessor = resident();
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 0x7fffffff, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->totalConstMem = 64 << 10, p->l2CacheSize = 50 << 20, p->multiProcessorCount = multiprocessors;
    p->major = capability / 10, p->minor = capability % 10;
    p->pciBusID = device + 1;
    p->textureAlignment = 512;
    return cudaSuccess;
}
Error cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) { return properties(p, device); }
Error cudaGetDeviceProperties_v2(struct cudaDeviceProp *p, int device) { return properties(p, device); }
Error cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    switch ((int)attribute) {
        case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
        case cudaDevAttrMaxBlockDimX: case cudaDevAttrMaxBlockDimY: *value = 1024; break;
        case cudaDevAttrMaxBlockDimZ: *value = 64; break;
        case cudaDevAttrMaxGridDimX: *value = 0x7fffffff; break;
        case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: *value = 65535; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = 48 << 10; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 227 << 10; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 228 << 10; break;
        case cudaDevAttrWarpSize: *value = 32; break;
        case cudaDevAttrMultiProcessorCount: *value = multiprocessors; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = resident(); break;
        case cudaDevAttrMaxRegistersPerBlock: case cudaDevAttrMaxRegistersPerMultiprocessor: *value = 65536; break;
        case cudaDevAttrComputeCapabilityMajor: *value = capability / 10; break;
        case cudaDevAttrComputeCapabilityMinor: *value = capability % 10; break;
        case cudaDevAttrMemoryPoolsSupported: *value = 1; break;
        default: *value = 0;
    }
    return cudaSuccess;
}
Error cudaDeviceGetPCIBusId(char *text, int length, int device) {
    snprintf(text, length, "00000000:%02X:00.0", device + 1);
    return cudaSuccess;
}
Error cudaDriverGetVersion(int *version) { *version = VERSION; return cudaSuccess; }
Error cudaRuntimeGetVersion(int *version) { *version = VERSION; return cudaSuccess; }
Error cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0, *greatest = -5; return cudaSuccess; }
Error cudaDeviceCanAccessPeer(int *can, int device, int peer) { *can = 0; return cudaSuccess; }
Error cudaDeviceGetGraphMemAttribute(int device, enum cudaGraphMemAttributeType attribute, void *value) {
    *(u64 *)value = 0;
    return cudaSuccess;
}
Error cudaGetLastError(void) { Error error = last_error; last_error = cudaSuccess; return error; }
Error cudaPeekAtLastError(void) { return last_error; }
const char *cudaGetErrorString(Error error) {
    return error == cudaErrorMemoryAllocation ? "out of memory" : error == cudaSuccess ? "no error" : "the stub says no";
}
const char *cudaGetErrorName(Error error) {
    return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : error ? "cudaErrorUnknown" : "cudaSuccess";
}

/* -- Streams, events and graphs: all work is done when its call returns. */

typedef struct { u64 capture; int priority; } Stream;
static u64 captures;

Error cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    here();
    Stream *made = calloc(1, sizeof *made);
    made->priority = priority;
    *stream = (cudaStream_t)made;
    return cudaSuccess;
}
Error cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) { return cudaStreamCreateWithPriority(stream, flags, 0); }
Error cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }
Error cudaStreamDestroy(cudaStream_t stream) { free(stream); return cudaSuccess; }
Error cudaStreamGetPriority(cudaStream_t stream, int *priority) {
    *priority = (uintptr_t)stream > 2 ? ((Stream *)stream)->priority : 0;
    return cudaSuccess;
}
static u64 capture_of(cudaStream_t stream) { return (uintptr_t)stream > 2 ? ((Stream *)stream)->capture : 0; }
Error cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = capture_of(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
Error cudaStreamGetCaptureInfo_v2(cudaStream_t stream, enum cudaStreamCaptureStatus *status, u64 *id, cudaGraph_t *graph,
                                  const cudaGraphNode_t **nodes, size_t *count) {
    cudaStreamIsCapturing(stream, status);
    if (id) *id = capture_of(stream);
    if (graph) *graph = (cudaGraph_t)capture_of(stream);
    if (nodes) *nodes = NULL;
    if (count) *count = 0;
    return cudaSuccess;
}
Error cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status, u64 *id, cudaGraph_t *graph,
                               const cudaGraphNode_t **nodes, const void **edges, size_t *count) {
    if (edges) *edges = NULL;
    return cudaStreamGetCaptureInfo_v2(stream, status, id, graph, nodes, count);
}
Error cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    if ((uintptr_t)stream <= 2) return failed(cudaErrorStreamCaptureUnsupported);
    ((Stream *)stream)->capture = ++captures;
    return cudaSuccess;
}
Error cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    *graph = (cudaGraph_t)capture_of(stream);
    ((Stream *)stream)->capture = 0;
    return cudaSuccess;
}
Error cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count) { *count = 1; return cudaSuccess; }
Error cudaGraphInstantiateWithFlags(cudaGraphExec_t *made, cudaGraph_t graph, u64 flags) {
    *made = (cudaGraphExec_t)graph;
    return cudaSuccess;
}
Error cudaGraphInstantiate(cudaGraphExec_t *made, cudaGraph_t graph, u64 flags) {
    return cudaGraphInstantiateWithFlags(made, graph, flags);
}
Error cudaUserObjectCreate(cudaUserObject_t *object, void *pointer, cudaHostFn_t destroy, unsigned count, unsigned flags) {
    *object = (cudaUserObject_t)pointer;
    return cudaSuccess;
}
Error cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) { *event = malloc(1); here(); return cudaSuccess; }
Error cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }
Error cudaEventDestroy(cudaEvent_t event) { free(event); return cudaSuccess; }
Error cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) { *ms = 0; return cudaSuccess; }
Error cudaStreamAddCallback(cudaStream_t stream, void (*call)(cudaStream_t, Error, void *), void *data, unsigned flags) {
    call(stream, cudaSuccess, data);
    return cudaSuccess;
}
Error cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t call, void *data) { call(data); return cudaSuccess; }

/* -- Kernels: known, launched, never run. */

static __thread struct { size_t shared; void *stream; } configuration;
typedef struct { unsigned x, y, z; } Dim;
unsigned __cudaPushCallConfiguration(Dim grid, Dim block, size_t shared, void *stream) {
    configuration.shared = shared, configuration.stream = stream;
    return 0;
}
Error __cudaPopCallConfiguration(Dim *grid, Dim *block, size_t *shared, void **stream) {
    *grid = *block = (Dim){1, 1, 1};
    *shared = configuration.shared, *stream = configuration.stream;
    return cudaSuccess;
}
void **__cudaRegisterFatBinary(void *binary) { static void *handle; return &handle; }
Error __cudaGetKernel(void **kernel, const void *function) { *kernel = (void *)function; return cudaSuccess; }
Error cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *function) {
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024, attributes->numRegs = 32;
    attributes->ptxVersion = attributes->binaryVersion = capability;
    attributes->maxDynamicSharedSizeBytes = 48 << 10;
    return cudaSuccess;
}
Error cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *f, int threads, size_t shared, unsigned flags) {
    *blocks = resident() / (threads > 0 ? threads : 1);
    return cudaSuccess;
}
Error cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *f, int threads, size_t shared) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, f, threads, shared, 0);
}
Error cudaGetSymbolAddress(void **address, const void *symbol) { *address = (void *)symbol; return cudaSuccess; }

/* What has nothing to answer: every call succeeds. */
#define SUCCEEDS(name) Error name(void) { here(); return cudaSuccess; }
SUCCEEDS(__cudaInitModule) SUCCEEDS(__cudaLaunchKernel)
SUCCEEDS(cudaLaunchKernel) SUCCEEDS(cudaLaunchKernelExC) SUCCEEDS(cudaLaunchCooperativeKernel) SUCCEEDS(cudaFuncSetAttribute)
SUCCEEDS(cudaDeviceSynchronize) SUCCEEDS(cudaStreamSynchronize) SUCCEEDS(cudaStreamQuery) SUCCEEDS(cudaStreamWaitEvent)
SUCCEEDS(cudaEventQuery) SUCCEEDS(cudaEventRecord) SUCCEEDS(cudaEventRecordWithFlags) SUCCEEDS(cudaEventSynchronize)
SUCCEEDS(cudaDeviceEnablePeerAccess) SUCCEEDS(cudaDeviceSetGraphMemAttribute) SUCCEEDS(cudaGraphDestroy)
SUCCEEDS(cudaGraphExecDestroy) SUCCEEDS(cudaGraphLaunch) SUCCEEDS(cudaGraphRetainUserObject) SUCCEEDS(cudaHostRegister)
SUCCEEDS(cudaHostUnregister) SUCCEEDS(cudaKernelSetAttributeForDevice) SUCCEEDS(cudaMemPoolSetAccess)
SUCCEEDS(cudaMemcpyToSymbol) SUCCEEDS(cudaProfilerStart) SUCCEEDS(cudaProfilerStop) SUCCEEDS(cudaThreadExchangeStreamCaptureMode)
SUCCEEDS(cudaUserObjectRelease) SUCCEEDS(cudaStreamUpdateCaptureDependencies)
void __cudaRegisterFatBinaryEnd(void) {} /* what an import of torch calls makes no context */
void __cudaUnregisterFatBinary(void) {}
void __cudaRegisterFunction(void) {}
void __cudaRegisterVar(void) {}

/* -- NVML. */

typedef struct { unsigned version; u64 total, reserved, free, used; } MemoryV2;
typedef struct { unsigned pid; u64 used; unsigned gpu_instance, compute_instance; } Process;

int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlInit(void) { return 0; }
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int result) { return "the stub says no"; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = VERSION; return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) { snprintf(text, length, "stub"); return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { me(); *count = devices; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(uintptr_t)(index + 1);
    return index < (unsigned)devices ? 0 : 2;
}
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **device) {
    unsigned domain = 0, number = 0;
    sscanf(bus, "%x:%x", &domain, &number);
    return nvmlDeviceGetHandleByIndex_v2(number - 1, device);
}
int nvmlDeviceGetUUID(void *device, char *text, unsigned length) {
    unsigned byte = 0x11 * (unsigned)(uintptr_t)device;
    snprintf(text, length, "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", byte, byte, byte, byte, byte, byte,
             byte, byte, byte, byte, byte, byte, byte, byte, byte, byte);
    return 0;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    for (int i = 0; i < devices; i++) {
        char text[64];
        nvmlDeviceGetHandleByIndex_v2(i, device);
        nvmlDeviceGetUUID(*device, text, sizeof text);
        if (!strcmp(text, uuid)) return 0;
    }
    return 6;
}
int nvmlDeviceGetName(void *device, char *text, unsigned length) { snprintf(text, length, "NVIDIA Stub"); return 0; }
int nvmlDeviceGetMemoryInfo(void *device, u64 *info) {
    u64 taken = used((int)(uintptr_t)device - 1);
    info[0] = capacity, info[1] = capacity - taken, info[2] = taken;
    return 0;
}
int nvmlDeviceGetMemoryInfo_v2(void *device, MemoryV2 *info) {
    u64 taken = used((int)(uintptr_t)device - 1);
    info->total = capacity, info->reserved = driver, info->used = taken - driver, info->free = capacity - taken;
    return 0;
}
int nvmlDeviceGetUtilizationRates(void *device, unsigned *rates) { rates[0] = rates[1] = 0; return 0; }
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, Process *to) {
    unsigned found = 0, room = *count;
    for (int i = 0; i < MAX_PROCESSES; i++) {
        Owner *owner = &cards->owners[i];
        u64 bytes = owner->bytes[(int)(uintptr_t)device - 1];
        if (!owner->pid || !bytes || kill(owner->pid, 0) != 0) continue;
        if (found < room) to[found] = (Process){owner->pid, bytes, -1, -1};
        found++;
    }
    *count = found;
    return found > room ? 7 : 0;
}
int nvmlDeviceGetComputeRunningProcesses(void *device, unsigned *count, Process *to) {
    return nvmlDeviceGetComputeRunningProcesses_v3(device, count, to);
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned *count, Process *to) { *count = 0; return 0; }
int nvmlDeviceGetNvLinkRemoteDeviceType(void) { return 3; } /* not supported */
int nvmlDeviceGetNvLinkRemotePciInfo_v2(void) { return 3; }
int nvmlDeviceGetGpuFabricInfoV(void) { return 3; }
int nvmlDeviceGetMigMode(void *device, unsigned *now, unsigned *later) { return 3; }
