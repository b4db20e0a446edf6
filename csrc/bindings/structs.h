// The structs of arguments as Python classes whose attributes are their fields. Pointers are set from, and read as,
// integers: tensors arrive as addresses, which Python has checked (ipvae_kernels/*/structs.py).
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <type_traits>

#include "../args.h"

namespace ipvae {

namespace py = pybind11;

template <class T> T* pointer(uintptr_t address) { return reinterpret_cast<T*>(address); }

template <class Struct> class Fields {
  public:
    Fields(py::module_& m, const char* name) : class_(m, name, py::module_local()) {
        // Value-initialised: every size 0, every pointer null.
        class_.def(py::init([] { return Struct{}; })).def(py::init<const Struct&>());
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
    template <class T> Fields& constant(const char* name, T Struct::* member) {
        class_.def_readonly(name, member);
        return *this;
    }

  private:
    py::class_<Struct> class_;
};

#define FIELD(name) field(#name, &Struct::name)
#define CONSTANT(name) constant(#name, &Struct::name)

inline void bind_pointwise_structs(py::module_& m) {
    {
        using Struct = PoissonArgs;
        Fields<Struct>(m, "PoissonArgs")
            .FIELD(n_rows).FIELD(n_latents).FIELD(seed).FIELD(kind).FIELD(inner).FIELD(step).FIELD(sample_offset)
            .FIELD(neuron_offset).FIELD(estimator).FIELD(temperature).FIELD(n_arrivals).FIELD(log_rate).FIELD(counts).FIELD(slopes);
    }
    {
        using Struct = UpdateArgs;
        Fields<Struct>(m, "UpdateArgs")
            .FIELD(n_rows).FIELD(n_latents).FIELD(learning_rate).FIELD(leak).FIELD(decay).FIELD(clamp_u).FIELD(clamp_du)
            .FIELD(log_rate).FIELD(log_rate_prior).FIELD(drive).FIELD(inhibition).FIELD(out);
    }
    {
        using Struct = UpdateGradArgs;
        Fields<Struct>(m, "UpdateGradArgs")
            .FIELD(forward).FIELD(grad).FIELD(grad_log_rate).FIELD(grad_log_rate_prior).FIELD(grad_drive).FIELD(partial);
    }
}

inline void bind_rollout_structs(py::module_& m) {
    {
        using Struct = Parameters;
        Fields<Struct>(m, "Parameters").FIELD(dictionary).FIELD(dictionary_bf16).FIELD(log_sigma).FIELD(log_bias).FIELD(log_lr);
    }
    {
        using Struct = ParameterGrads;
        Fields<Struct>(m, "ParameterGrads").FIELD(dictionary).FIELD(log_sigma).FIELD(log_bias).FIELD(log_lr);
    }
    {
        using Struct = RolloutArgs;
        Fields<Struct>(m, "RolloutArgs")
            .FIELD(n_steps).FIELD(n_inner).FIELD(n_rows).FIELD(n_inputs).FIELD(n_latents)
            .FIELD(seed).FIELD(step).FIELD(sample_offset).FIELD(neuron_offset)
            .FIELD(leak).FIELD(decay).FIELD(clamp_u).FIELD(clamp_du).FIELD(temperature).FIELD(n_arrivals)
            .FIELD(clamp_xi).FIELD(clamp_dxi).FIELD(cell).FIELD(estimator).FIELD(kl).FIELD(single_draw).FIELD(expected)
            .FIELD(x).FIELD(x_step).FIELD(log_rate).FIELD(log_rate_out)
            .FIELD(record_every).FIELD(recon).FIELD(kl_out).FIELD(squared_error).FIELD(spikes).FIELD(zeros)
            .FIELD(log_rates).FIELD(counts).FIELD(reconstruction)
            .FIELD(path).FIELD(drawn).FIELD(slopes).FIELD(errors).FIELD(drives);
    }
    {
        using Struct = RolloutGradArgs;
        Fields<Struct>(m, "RolloutGradArgs")
            .FIELD(forward).FIELD(grad_recon).FIELD(grad_kl).FIELD(grad_log_rate).FIELD(grad_log_rate_in).FIELD(grad_x)
            .FIELD(grad_errors).FIELD(grad_drives).FIELD(partial);
    }
}

inline void bind_structs(py::module_& m) {
    bind_pointwise_structs(m);
    bind_rollout_structs(m);
}

}  // namespace ipvae
