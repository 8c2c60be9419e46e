// A host program outside of the tree, in C++11: owns the library's objects by unique_ptr, supplies memory and threads of its own, and uses the
// primitive calls: one gradient step on the SimDINO loss. Built by run.sh with the flags of pkg-config alone.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <simdino/simdino.h>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

void require(sd_status status, const char *what) {
    if (status != SD_OK)
        throw std::runtime_error(std::string(what) + ": " + sd_status_string(status) + ": " + sd_last_error());
}

void require(bool condition, const char *what) {
    if (!condition)
        throw std::runtime_error(what);
}

template <typename T> using owned = std::unique_ptr<T, void (*)(T *)>;

struct host {
    std::atomic<long> live{0};
    std::atomic<long> runs{0};

    static void *allocate(void *opaque, size_t bytes) {
        static_cast<host *>(opaque)->live++;
        return std::malloc(bytes);
    }
    static void release(void *opaque, void *address) {
        static_cast<host *>(opaque)->live--;
        std::free(address);
    }
    // Two threads: one takes the even pieces of work, the other the odd ones.
    static int run(void *opaque, sd_parallel_function function, void *work, size_t count) {
        static_cast<host *>(opaque)->runs++;
        std::thread other([=] {
            for (size_t i = 1; i < count; i += 2)
                function(work, i, 1);
        });
        for (size_t i = 0; i < count; i += 2)
            function(work, i, 0);
        other.join();
        return 0;
    }
};

void work(host &owner) {
    sd_context_config context_config;
    sd_context_config_init(&context_config);
    context_config.allocate = host::allocate;
    context_config.release = host::release;
    context_config.memory_opaque = &owner;
    context_config.threads = 2;
    context_config.runner = host::run;
    context_config.runner_opaque = &owner;
    context_config.blas_threads = SD_BLAS_THREADS_ONE;
    sd_context *raw_context = nullptr;
    require(sd_context_create(&context_config, &raw_context), "context");
    owned<sd_context> context(raw_context, sd_context_destroy);

    sd_model_config model_config;
    sd_model_config_init(&model_config);
    model_config.image_size = 8;
    model_config.patch_size = 4;
    model_config.dim = 16;
    model_config.depth = 2;
    model_config.heads = 2;
    model_config.drop_path = 0.0;
    model_config.head_hidden = 16;
    model_config.head_dim = 8;
    sd_model *raw_model = nullptr;
    require(sd_model_create(context.get(), &model_config, &raw_model), "model");
    owned<sd_model> model(raw_model, sd_model_destroy);
    sd_model_initialize(model.get(), 1);

    // Two global views of four samples, as random noise.
    const size_t samples = 4, views = 2, side = 8;
    sd_random random;
    sd_random_init(&random, 7, 0, 0);
    std::vector<float> pixels(views * samples * 3 * side * side);
    for (float &value : pixels)
        value = static_cast<float>(sd_random_normal(&random));
    const sd_image_group group = {pixels.data(), views * samples, side, side};

    sd_activations *raw_activations = nullptr;
    require(sd_activations_create(model.get(), &group, 1, SD_ACTIVATIONS_SPEED, 0, &raw_activations), "activations");
    owned<sd_activations> activations(raw_activations, sd_activations_destroy);

    sd_simdino_loss *raw_loss = nullptr;
    require(sd_simdino_loss_create(context.get(), nullptr, samples, views, 8, &raw_loss), "loss");
    owned<sd_simdino_loss> loss(raw_loss, sd_simdino_loss_destroy);

    std::vector<float> student(views * samples * 8), teacher, slope(student.size());
    std::vector<float> gradient(sd_model_parameter_count(model.get()));
    sd_forward_outputs outputs;
    sd_forward_outputs_init(&outputs);
    outputs.features = student.data();
    sd_backward_inputs inputs;
    sd_backward_inputs_init(&inputs);
    inputs.features = slope.data();

    const double step = 1e-5; // length of the step down the gradient, in the space of all parameters
    double before = 0.0, expected = 0.0;
    for (int pass = 0; pass < 2; pass++) {
        require(sd_model_forward(model.get(), activations.get(), &group, 1, nullptr, &outputs), "forward");
        if (pass == 0)
            teacher = student;
        sd_simdino_result result;
        require(sd_simdino_loss_evaluate(loss.get(), student.data(), teacher.data(), samples, views, slope.data(), &result),
                "loss");
        require(std::isfinite(result.loss), "the loss is finite");
        if (pass == 1) {
            require(std::fabs(before - result.loss - expected) < 0.1 * expected,
                    "a small step down the gradient lowers the loss by its length times that of the gradient");
            break;
        }
        before = result.loss;
        require(sd_model_backward(model.get(), activations.get(), &inputs, gradient.data(), 0, nullptr), "backward");
        double square = 0.0;
        for (float value : gradient)
            square += static_cast<double>(value) * value;
        const double norm = std::sqrt(square);
        require(norm > 0.0 && std::isfinite(norm), "the gradient is finite and not zero");
        expected = step * norm;
        float *parameters = sd_model_parameters(model.get());
        for (size_t i = 0; i < gradient.size(); i++)
            parameters[i] -= static_cast<float>(step / norm) * gradient[i];
    }
}

} // namespace

int main() {
    host owner;
    try {
        work(owner);
        require(owner.live == 0, "the host's memory is all given back");
        require(owner.runs > 0, "the host's threads were used");
    } catch (const std::exception &problem) {
        std::printf("%s\n", problem.what());
        return 1;
    }
    std::puts("fine");
    return 0;
}
