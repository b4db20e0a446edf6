// The Python module ipvae_kernels._C. Tensors arrive as addresses: Python has checked them (ipvae_kernels/*/native.py),
// and nothing here knows of torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <type_traits>

#include "cpu/cpu.h"

namespace py = pybind11;

namespace ipvae {
namespace {

// A class whose attributes are the fields of a plain struct; pointers are set from, and read as, integers.
template <class Struct> class Fields {
  public:
    Fields(py::module_& m, const char* name) : class_(m, name) {
        // Value-initialised: every size 0, every pointer null.
        class_.def(py::init([] { return Struct{}; }));
    }

    template <class T> Fields& field(const char* name, T Struct::* member) {
        if constexpr (std::is_pointer_v<T>) {
            class_.def_property(
                name, [member](const Struct& s) { return reinterpret_cast<uintptr_t>(s.*member); },
                [member](Struct& s, uintptr_t address) { s.*member = reinterpret_cast<T>(address); });
        } else {
            class_.def_readwrite(name, member);
        }
        return *this;
    }

  private:
    py::class_<Struct> class_;
};

#define FIELD(name) field(#name, &Struct::name)

void bind_poisson(py::module_& m) {
    using Struct = PoissonArgs;
    Fields<Struct>(m, "PoissonArgs")
        .FIELD(n_rows).FIELD(n_latents).FIELD(seed).FIELD(kind).FIELD(inner).FIELD(step).FIELD(sample_offset)
        .FIELD(estimator).FIELD(temperature).FIELD(n_arrivals).FIELD(log_rate).FIELD(counts).FIELD(slopes);
    m.def("poisson", &cpu::poisson, py::arg("args"), py::arg("n_threads"), py::call_guard<py::gil_scoped_release>());
}

void bind_update_args(py::module_& m) {
    using Struct = UpdateArgs;
    Fields<Struct>(m, "UpdateArgs")
        .FIELD(n_rows).FIELD(n_latents).FIELD(learning_rate).FIELD(leak).FIELD(clamp_u).FIELD(clamp_du)
        .FIELD(log_rate).FIELD(log_rate_prior).FIELD(drive).FIELD(inhibition).FIELD(out);
    m.def("update", &cpu::update, py::arg("args"), py::arg("n_threads"), py::call_guard<py::gil_scoped_release>());
}

void bind_update_grad(py::module_& m) {
    using Struct = UpdateGradArgs;
    Fields<Struct>(m, "UpdateGradArgs")
        .FIELD(forward).FIELD(grad).FIELD(grad_log_rate).FIELD(grad_log_rate_prior).FIELD(grad_drive);
    m.def(
        "update_grad",
        [](const UpdateGradArgs& args, uintptr_t grad_log_bias, uintptr_t grad_log_lr, int64_t n_threads) {
            cpu::update_grad(args, reinterpret_cast<float*>(grad_log_bias), reinterpret_cast<float*>(grad_log_lr),
                             n_threads);
        },
        py::arg("args"), py::arg("grad_log_bias"), py::arg("grad_log_lr"), py::arg("n_threads"),
        py::call_guard<py::gil_scoped_release>());
}

void bind_parameters(py::module_& m) {
    {
        using Struct = cpu::Parameters;
        Fields<Struct>(m, "Parameters").FIELD(dictionary).FIELD(log_sigma).FIELD(log_bias).FIELD(log_lr);
    }
    {
        using Struct = cpu::ParameterGrads;
        Fields<Struct>(m, "ParameterGrads").FIELD(dictionary).FIELD(log_sigma).FIELD(log_bias).FIELD(log_lr);
    }
}

void bind_rollout(py::module_& m) {
    using Struct = RolloutArgs;
    Fields<Struct>(m, "RolloutArgs")
        .FIELD(n_steps).FIELD(n_inner).FIELD(n_rows).FIELD(n_inputs).FIELD(n_latents)
        .FIELD(seed).FIELD(step).FIELD(sample_offset)
        .FIELD(leak).FIELD(clamp_u).FIELD(clamp_du).FIELD(temperature).FIELD(n_arrivals)
        .FIELD(clamp_xi).FIELD(clamp_dxi).FIELD(cell).FIELD(estimator).FIELD(kl).FIELD(single_draw)
        .FIELD(x).FIELD(x_step).FIELD(log_rate).FIELD(log_rate_out)
        .FIELD(record_every).FIELD(recon).FIELD(kl_out).FIELD(squared_error).FIELD(spikes).FIELD(zeros)
        .FIELD(log_rates).FIELD(counts).FIELD(reconstruction)
        .FIELD(path).FIELD(drawn).FIELD(slopes).FIELD(errors).FIELD(drives);
    m.def("rollout", &cpu::rollout, py::arg("args"), py::arg("parameters"), py::arg("n_threads"),
          py::call_guard<py::gil_scoped_release>());
}

void bind_rollout_grad(py::module_& m) {
    using Struct = RolloutGradArgs;
    Fields<Struct>(m, "RolloutGradArgs")
        .FIELD(forward).FIELD(grad_recon).FIELD(grad_kl).FIELD(grad_log_rate).FIELD(grad_log_rate_in).FIELD(grad_x);
    m.def("rollout_grad", &cpu::rollout_grad, py::arg("args"), py::arg("parameters"), py::arg("grads"),
          py::arg("n_threads"), py::call_guard<py::gil_scoped_release>());
}

void bind_common(py::module_& m) {
    m.def("instruction_sets", &cpu::instruction_sets);
    m.def("instruction_set", &cpu::instruction_set);
    m.def("set_instruction_set", &cpu::set_instruction_set, py::arg("name"));
    m.def(
        "all_finite",
        [](uintptr_t data, int64_t n, int64_t n_threads) {
            return cpu::all_finite(reinterpret_cast<float*>(data), n, n_threads);
        },
        py::arg("data"), py::arg("n"), py::arg("n_threads"), py::call_guard<py::gil_scoped_release>());
    m.def(
        "evaluate",
        [](const std::string& function, uintptr_t in, uintptr_t out, int64_t n) {
            cpu::evaluate(function, reinterpret_cast<float*>(in), reinterpret_cast<float*>(out), n);
        },
        py::arg("function"), py::arg("input"), py::arg("output"), py::arg("n"));
    m.def("philox", &cpu::philox, py::arg("counter"), py::arg("key"), py::arg("rounds"));
    m.attr("compiler") = IPVAE_COMPILER;
    m.attr("cuda") = py::none();  // the CUDA toolkit compiled in, once there are CUDA sources
}

}  // namespace
}  // namespace ipvae

PYBIND11_MODULE(_C, m) {
    m.doc() = "Compiled kernels of ipvae_kernels. Use the functions of ipvae_kernels, which check their arguments.";
    ipvae::bind_common(m);
    ipvae::bind_poisson(m);
    ipvae::bind_update_args(m);
    ipvae::bind_update_grad(m);
    ipvae::bind_parameters(m);
    ipvae::bind_rollout(m);
    ipvae::bind_rollout_grad(m);
}
