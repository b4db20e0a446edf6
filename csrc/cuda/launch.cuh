// What every launcher needs: errors as exceptions, a device for the length of a call, limits of devices.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cuda.h"

namespace ipvae::cuda {

inline void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // else the next call would meet it again
    throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(error));
}

inline int attribute(cudaDeviceAttr which, int device) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, device), "reading an attribute of the device");
    return value;
}

// Makes a device current until its end.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) {
        check(cudaGetDevice(&before_), "asking for the current device");
        if (device != before_) check(cudaSetDevice(device), "choosing the device");
    }
    ~DeviceGuard() { cudaSetDevice(before_); }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

  private:
    int before_ = 0;
};

inline cudaStream_t stream_of(const Launch& launch) { return static_cast<cudaStream_t>(launch.stream); }

// Blocks for a loop over n items with the grid as stride: enough to fill the device, at most one item to a thread.
template <class Kernel> int grid_for(Kernel kernel, int64_t n, int device) {
    int blocks = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kThreads, 0), "asking for the occupancy");
    int64_t fill = static_cast<int64_t>(std::max(blocks, 1)) * attribute(cudaDevAttrMultiProcessorCount, device);
    return static_cast<int>(std::min(fill, (n + kThreads - 1) / kThreads));
}

}  // namespace ipvae::cuda
