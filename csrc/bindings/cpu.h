// The CPU half of the Python module.
#pragma once

#include "../cpu/cpu.h"
#include "structs.h"

namespace ipvae {

// Python's exchange(address, n), to be called without the interpreter's lock.
inline cpu::Exchange exchange_by(const py::function& exchange) {
    return [&](float* sums, int64_t n) {
        py::gil_scoped_acquire gil;
        exchange(reinterpret_cast<uintptr_t>(sums), n);
    };
}

inline void bind_cpu_kernels(py::module_& m) {
    using Release = py::call_guard<py::gil_scoped_release>;
    m.def("poisson", &cpu::poisson, py::arg("args"), py::arg("n_threads"), Release());
    m.def("update", &cpu::update, py::arg("args"), py::arg("n_threads"), Release());
    m.def(
        "update_grad",
        [](const UpdateGradArgs& args, uintptr_t grad_log_bias, uintptr_t grad_log_lr, int64_t n_threads) {
            cpu::update_grad(args, pointer<float>(grad_log_bias), pointer<float>(grad_log_lr), n_threads);
        },
        py::arg("args"), py::arg("grad_log_bias"), py::arg("grad_log_lr"), py::arg("n_threads"), Release());
    m.def("rollout", &cpu::rollout, py::arg("args"), py::arg("parameters"), py::arg("n_threads"), Release());
    m.def(
        "rollout_shared",
        [](const RolloutArgs& args, const Parameters& parameters, int64_t rows, int64_t n_threads, const py::function& exchange) {
            py::gil_scoped_release release;
            cpu::rollout_shared(args, parameters, rows, n_threads, exchange_by(exchange));
        },
        py::arg("args"), py::arg("parameters"), py::arg("rows"), py::arg("n_threads"), py::arg("exchange"));
    m.def("shared_rows", &cpu::shared_rows);
    py::class_<cpu::Prepared>(m, "Prepared", py::module_local())
        .def(py::init<const Parameters&, int64_t, int64_t, int, bool, bool, int64_t>(), py::arg("parameters"),
             py::arg("n_inputs"), py::arg("n_latents"), py::arg("cell"), py::arg("counts"), py::arg("pack"),
             py::arg("n_threads"), Release())
        .def_property_readonly("bytes", &cpu::Prepared::bytes);
    m.def("rollout_prepared", &cpu::rollout_prepared, py::arg("args"), py::arg("prepared"), py::arg("n_threads"), Release());
    m.def("packs", &cpu::packs, py::arg("n_inputs"), py::arg("n_latents"));
    m.def(
        "rollout_grad",
        [](const RolloutGradArgs& args, const Parameters& parameters, const ParameterGrads& grads, int64_t n_threads) {
            cpu::rollout_grad(args, parameters, grads, n_threads, {});
        },
        py::arg("args"), py::arg("parameters"), py::arg("grads"), py::arg("n_threads"), Release());
    m.def(
        "rollout_grad_shared",
        [](const RolloutGradArgs& args, const Parameters& parameters, const ParameterGrads& grads, int64_t n_threads,
           const py::function& exchange) {
            py::gil_scoped_release release;
            cpu::rollout_grad(args, parameters, grads, n_threads, exchange_by(exchange));
        },
        py::arg("args"), py::arg("parameters"), py::arg("grads"), py::arg("n_threads"), py::arg("exchange"));
}

inline void bind_cpu_tools(py::module_& m) {
    m.def("instruction_sets", &cpu::instruction_sets);
    m.def("instruction_set", &cpu::instruction_set);
    m.def("set_instruction_set", &cpu::set_instruction_set, py::arg("name"));
    m.def(
        "all_below",
        [](uintptr_t data, int64_t n, float limit, int64_t n_threads) {
            return cpu::all_below(pointer<const float>(data), n, limit, n_threads);
        },
        py::arg("data"), py::arg("n"), py::arg("limit"), py::arg("n_threads"), py::call_guard<py::gil_scoped_release>());
    m.def(
        "evaluate",
        [](const std::string& function, uintptr_t in, uintptr_t out, int64_t n) {
            cpu::evaluate(function, pointer<const float>(in), pointer<float>(out), n);
        },
        py::arg("function"), py::arg("input"), py::arg("output"), py::arg("n"));
    m.def("philox", &cpu::philox, py::arg("counter"), py::arg("key"), py::arg("rounds"));
}

inline void bind_cpu(py::module_& m) {
    bind_cpu_kernels(m);
    bind_cpu_tools(m);
}

}  // namespace ipvae
