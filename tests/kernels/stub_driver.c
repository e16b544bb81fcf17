// A libcuda.so.1 without a GPU: what Triton's launcher calls, and a record of the last launch.

#include <cuda.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PARAMETERS 256

// Set by the test: shared memory that the architecture has for a program, its compute capability, and the bytes of
// each parameter of the kernel that is launched next.
int stub_shared_memory;
int stub_capability;
int stub_parameter_count;
int stub_parameter_sizes[MAX_PARAMETERS];

// Read by the test.
struct {
  int count;
  unsigned grid[3];
  unsigned block[3];
  unsigned shared;
  unsigned attributes;
  uint64_t stream;
  char kernel[128];
  uint64_t parameters[MAX_PARAMETERS];
} stub_launch;

// A module holds one kernel.
struct CUmod_st {
  int shared_limit;
  char kernel[sizeof stub_launch.kernel];
};

static int current_context;

CUresult cuDriverGetVersion(int* version) {
  *version = CUDA_VERSION;
  return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char** text) {
  *text = error == CUDA_ERROR_INVALID_VALUE ? "invalid argument" : "not supported by the stub";
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  *device = ordinal;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
      *value = stub_capability / 10;
      return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
      *value = stub_capability % 10;
      return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
      *value = stub_shared_memory;
      return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
      *value = stub_shared_memory + 1024;
      return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
      *value = 32;
      return CUDA_SUCCESS;
    default:  // registers, clock rates: nothing depends on them
      *value = 65536;
      return CUDA_SUCCESS;
  }
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  *context = (CUcontext)&current_context;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext* context) { return cuDevicePrimaryCtxRetain(context, 0); }

CUresult cuCtxSetCurrent(CUcontext context) { return CUDA_SUCCESS; }

CUresult cuCtxGetDevice(CUdevice* device) { return cuDeviceGet(device, 0); }

CUresult cuCtxGetLimit(size_t* value, CUlimit limit) { return CUDA_ERROR_NOT_SUPPORTED; }

CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_ERROR_NOT_SUPPORTED; }

CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus* status) {
  *status = CU_STREAM_CAPTURE_STATUS_NONE;
  return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  if (memcmp(image, "\177ELF", 4) != 0) {
    return CUDA_ERROR_INVALID_IMAGE;
  }
  *module = calloc(1, sizeof **module);
  (*module)->shared_limit = 48 * 1024;
  return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  strncpy(module->kernel, name, sizeof module->kernel - 1);
  *function = (CUfunction)module;
  return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule module) {
  free(module);
  return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction function) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || value > stub_shared_memory) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  ((CUmodule)function)->shared_limit = value;
  return CUDA_SUCCESS;
}

CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }

CUresult cuPointerGetAttribute(void* data, CUpointer_attribute attribute, CUdeviceptr pointer) {
  *(CUdeviceptr*)data = pointer;
  return CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** parameters, void** extra) {
  const CUmodule module = (CUmodule)function;
  if (extra != NULL || config->sharedMemBytes > (unsigned)module->shared_limit) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  const unsigned grid[] = {config->gridDimX, config->gridDimY, config->gridDimZ};
  const unsigned block[] = {config->blockDimX, config->blockDimY, config->blockDimZ};
  memcpy(stub_launch.grid, grid, sizeof grid);
  memcpy(stub_launch.block, block, sizeof block);
  memcpy(stub_launch.kernel, module->kernel, sizeof module->kernel);
  stub_launch.shared = config->sharedMemBytes;
  stub_launch.attributes = config->numAttrs;
  stub_launch.stream = (uint64_t)config->hStream;
  memset(stub_launch.parameters, 0, sizeof stub_launch.parameters);
  for (int i = 0; i < stub_parameter_count; i++) {
    memcpy(&stub_launch.parameters[i], parameters[i], stub_parameter_sizes[i]);
  }
  stub_launch.count++;
  return CUDA_SUCCESS;
}
