/* A driver for tests: two cards, the second cut into two slices. Tests set the variables; the real pynvml calls the rest. */
#include <string.h>

enum { OK = 0, INVALID = 2, NOT_FOUND = 6, TOO_SMALL = 7, CARDS = 2, NODES = 4, MAX_PROCESSES = 8 };
typedef unsigned long long u64;
typedef struct { const char *uuid; u64 total, used; int parent; } Node; /* used: without the driver's own */
typedef struct { unsigned version; u64 total, reserved, free, used; } MemoryV2;
typedef struct { unsigned pid; u64 used; unsigned gpu_instance, compute_instance; } Process;

Node nodes[NODES] = {
    {"GPU-11111111-aaaa-bbbb-cccc-000000000001", 24ull << 30, 3ull << 30, -1},
    {"GPU-22222222-aaaa-bbbb-cccc-000000000002", 80ull << 30, 5ull << 30, -1},
    {"MIG-33333333-aaaa-bbbb-cccc-000000000003", 20ull << 30, 1ull << 30, 1},
    {"MIG-44444444-aaaa-bbbb-cccc-000000000004", 40ull << 30, 2ull << 30, 1},
};
const u64 DRIVER = 512ull << 20;
int init_result, memory_result, utilization_result, process_result, graphics_result, opened;
unsigned process_count, graphics_count;
Process processes[MAX_PROCESSES], graphics[MAX_PROCESSES];

int nvmlInitWithFlags(unsigned flags) { opened += init_result == OK; return init_result; }
int nvmlShutdown(void) { opened--; return OK; }
const char *nvmlErrorString(int result) { return result == 4 ? "Insufficient Permissions" : "the stub says no"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = CARDS; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, Node **node) { *node = &nodes[i]; return i < CARDS ? OK : INVALID; }
int nvmlDeviceGetHandleByUUID(const char *uuid, Node **node) {
    for (int i = 0; i < NODES; i++)
        if (!strcmp(nodes[i].uuid, uuid)) { *node = &nodes[i]; return OK; }
    return NOT_FOUND;
}
int nvmlDeviceGetUUID(Node *node, char *uuid, unsigned length) { strncpy(uuid, node->uuid, length); return OK; }
int nvmlDeviceGetName(Node *node, char *name, unsigned length) { strncpy(name, "Stub 24GB", length); return OK; }
int nvmlDeviceGetMemoryInfo(Node *node, u64 *info) {
    info[0] = node->total, info[1] = node->total - node->used - DRIVER, info[2] = node->used + DRIVER;
    return memory_result;
}
#ifndef OLD_DRIVER
int nvmlDeviceGetMemoryInfo_v2(Node *node, MemoryV2 *info) {
    info->total = node->total, info->reserved = DRIVER;
    info->used = node->used, info->free = node->total - node->used - DRIVER;
    return memory_result;
}
#endif
int nvmlDeviceGetUtilizationRates(Node *node, unsigned *rates) {
    rates[0] = 37, rates[1] = 12;
    return node->parent < 0 ? utilization_result : 3 /* slices have none */;
}
static int list(const Process *from, unsigned n, unsigned *count, Process *to, int result) {
    if (result != OK) return result;
    if (n == 0) { *count = 0; return OK; }
    if (*count < n) { *count = n; return TOO_SMALL; }
    memcpy(to, from, n * sizeof *from);
    *count = n;
    return OK;
}
#ifndef OLD_DRIVER
int nvmlDeviceGetComputeRunningProcesses_v3(Node *node, unsigned *count, Process *to) {
    return list(processes, process_count, count, to, process_result);
}
#endif
int nvmlDeviceGetComputeRunningProcesses_v2(Node *node, unsigned *count, Process *to) {
    return list(processes, process_count, count, to, process_result);
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(Node *node, unsigned *count, Process *to) {
    return list(graphics, graphics_count, count, to, graphics_result);
}
int nvmlDeviceGetMigMode(Node *node, unsigned *current, unsigned *pending) {
    *current = *pending = node == &nodes[1];
    return node->parent < 0 ? OK : INVALID;
}
int nvmlDeviceGetMaxMigDeviceCount(Node *node, unsigned *count) { *count = 7; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(Node *node, unsigned i, Node **slice) {
    *slice = &nodes[CARDS + i];
    return i < NODES - CARDS ? OK : NOT_FOUND;
}
