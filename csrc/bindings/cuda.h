// The CUDA half of the Python module. Addresses are those of the device's memory.
#pragma once

#include "../cuda/cuda.h"
#include "structs.h"

namespace ipvae {

inline void bind_cuda_structs(py::module_& m) {
    {
        using Struct = cuda::Launch;
        Fields<Struct>(m, "Launch").FIELD(device).FIELD(stream);
    }
    {
        using Struct = DeviceLimits;
        Fields<Struct>(m, "DeviceLimits").FIELD(sms).FIELD(shared).FIELD(max_cluster);
    }
    {
        using Struct = Plan;
        Fields<Struct>(m, "Plan")
            .CONSTANT(kind).CONSTANT(team).CONSTANT(rows).CONSTANT(resident).CONSTANT(tiles).CONSTANT(teams).CONSTANT(slice)
            .CONSTANT(inputs).CONSTANT(chunk).CONSTANT(shared_bytes).CONSTANT(workspace_bytes);
    }
}

inline void bind_cuda_functions(py::module_& m) {
    using Release = py::call_guard<py::gil_scoped_release>;
    using cuda::Launch;
    m.def("cuda_limits", &cuda::device_limits, py::arg("device"));
    m.def("cuda_plan", &make_plan, py::arg("args"), py::arg("backward"), py::arg("limits"), py::arg("kind"), py::arg("team"),
          py::arg("rows"));
    m.def(
        "cuda_poisson",
        [](const PoissonArgs& args, uintptr_t seed, const Launch& launch) {
            cuda::poisson(args, pointer<const uint64_t>(seed), launch);
        },
        py::arg("args"), py::arg("seed"), py::arg("launch"), Release());
    m.def(
        "cuda_update",
        [](const UpdateArgs& args, uintptr_t log_lr, const Launch& launch) {
            cuda::update(args, pointer<const float>(log_lr), launch);
        },
        py::arg("args"), py::arg("log_lr"), py::arg("launch"), Release());
    m.def("cuda_update_grad_partials", &cuda::update_grad_partials, py::arg("args"));
    m.def(
        "cuda_update_grad",
        [](const UpdateGradArgs& args, uintptr_t log_lr, const Launch& launch) {
            cuda::update_grad(args, pointer<const float>(log_lr), launch);
        },
        py::arg("args"), py::arg("log_lr"), py::arg("launch"), Release());
    m.def(
        "cuda_rollout",
        [](const RolloutArgs& args, const Parameters& parameters, uintptr_t seed, const Plan& plan, uintptr_t workspace,
           const Launch& launch) {
            cuda::rollout(args, parameters, pointer<const uint64_t>(seed), plan, pointer<void>(workspace), launch);
        },
        py::arg("args"), py::arg("parameters"), py::arg("seed"), py::arg("plan"), py::arg("workspace"), py::arg("launch"),
        Release());
    m.def(
        "cuda_rollout_grad",
        [](const RolloutGradArgs& args, const Parameters& parameters, const Plan& plan, uintptr_t workspace,
           const Launch& launch) { cuda::rollout_grad(args, parameters, plan, pointer<void>(workspace), launch); },
        py::arg("args"), py::arg("parameters"), py::arg("plan"), py::arg("workspace"), py::arg("launch"), Release());
}

inline void bind_cuda(py::module_& m) {
    bind_cuda_structs(m);
    bind_cuda_functions(m);
}

}  // namespace ipvae
