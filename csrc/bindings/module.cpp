// The Python module ipvae_kernels._C. Tensors arrive as addresses: Python has checked them (ipvae_kernels/*/structs.py),
// and nothing here knows of torch.
#include "../common/cells/cell.h"
#include "../common/cells/poisson.h"
#include "../common/estimators.h"
#include "../sources.h"
#include "cpu.h"
#include "cuda.h"

namespace ipvae {
namespace {

// Runs Python's signal handlers; what they raise ends the call. On other threads than the main one it does nothing.
void handle_signals() {
    py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

template <size_t n> py::tuple names(const char* const (&of)[n]) {
    py::tuple result(n);
    for (size_t i = 0; i < n; ++i) result[i] = of[i];
    return result;
}

// Half width of each estimator's indicator; None for those that are not made of arrivals.
py::tuple half_widths() {
    py::tuple result(std::size(scalar::kEstimatorNames));
    for (size_t i = 0; i < result.size(); ++i) {
        auto estimator = static_cast<scalar::Estimator>(i);
        result[i] = scalar::uses_arrivals(estimator) ? py::cast(scalar::half_width(estimator)) : py::none();
    }
    return result;
}

// What was compiled, and the names by which Python counts what the kernels know by numbers.
void bind_facts(py::module_& m) {
    m.attr("compiler") = IPVAE_COMPILER;
    m.attr("sources") = sources;
#if defined(IPVAE_CUDA)
    m.attr("cuda") = IPVAE_CUDA;
#else
    m.attr("cuda") = py::none();
#endif
    m.attr("estimators") = names(scalar::kEstimatorNames);
    m.attr("half_widths") = half_widths();
    m.attr("kls") = names(scalar::kKlNames);
    m.attr("cells") = names(kCellNames);
}

}  // namespace
}  // namespace ipvae

PYBIND11_MODULE(_C, m) {
    m.doc() = "Compiled kernels of ipvae_kernels. Use the functions of ipvae_kernels, which check their arguments.";
    ipvae::cpu::prepare(&ipvae::handle_signals);
    ipvae::bind_facts(m);
    ipvae::bind_structs(m);
    ipvae::bind_cpu(m);
    ipvae::bind_cuda(m);
}
