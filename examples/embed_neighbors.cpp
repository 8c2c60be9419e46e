// Features and nearest neighbours from C++: smart pointers own the library's objects, an exception carries its errors.
// With a checkpoint of `simdino pretrain` as argument its teacher is used; without one an untrained network.
//
//     c++ -std=c++11 embed_neighbors.cpp $(pkg-config --cflags --libs simdino)
#include <simdino/simdino.h>

#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// Throws with the library's own words when a call failed.
void check(sd_status status) {
    if (status != SD_OK) {
        throw std::runtime_error(std::string(sd_status_string(status)) + ": " + sd_last_error());
    }
}

// std::unique_ptr that ends an object by its sd_..._destroy function.
template <typename T, void (*destroy)(T *)> struct Deleter {
    void operator()(T *object) const { destroy(object); }
};
using Context = std::unique_ptr<sd_context, Deleter<sd_context, sd_context_destroy>>;
using Model = std::unique_ptr<sd_model, Deleter<sd_model, sd_model_destroy>>;
using Embedder = std::unique_ptr<sd_embedder, Deleter<sd_embedder, sd_embedder_destroy>>;

// Images that the host owns, and views of them for the library. Of four kinds: a neighbour is right or wrong.
class Gallery {
  public:
    static const size_t side = 28, kinds = 4;

    Gallery(size_t count, size_t channels) : pixels_(count), views_(count) {
        sd_random random;
        sd_random_init(&random, 3, 0, 0);
        for (size_t i = 0; i < count; i++) {
            pixels_[i].resize(side * side * channels);
            draw(pixels_[i], channels, i % kinds, random);
            views_[i] = sd_image{pixels_[i].data(), side, side, 0 /* packed rows */, static_cast<int32_t>(channels),
                                 SD_PIXEL_U8};
        }
    }
    const std::vector<sd_image> &views() const { return views_; }

  private:
    static void draw(std::vector<unsigned char> &image, size_t channels, size_t kind, sd_random &random) {
        const int shift = static_cast<int>(sd_random_below(&random, 3));
        for (size_t i = 0; i < image.size(); i++) {
            const int x = static_cast<int>(i / channels % side), y = static_cast<int>(i / channels / side);
            bool bright = false;
            switch (kind) {
            case 0: bright = x + shift < 14; break;                                                  // left half
            case 1: bright = y + shift < 14; break;                                                  // upper half
            case 2: bright = (x + shift) / 4 % 2 == 0; break;                                        // stripes
            default: bright = (x - 14) * (x - 14) + (y - 14) * (y - 14) < (6 + shift) * (6 + shift); // disc
            }
            image[i] = static_cast<unsigned char>((bright ? 170 : 40) + sd_random_below(&random, 40));
        }
    }
    std::vector<std::vector<unsigned char>> pixels_;
    std::vector<sd_image> views_;
};

Context make_context() {
    sd_context_config config;
    sd_context_config_init(&config);
    config.blas_threads = SD_BLAS_THREADS_ONE;
    sd_context *context = nullptr;
    check(sd_context_create(&config, &context));
    return Context(context);
}

Model load_or_make(sd_context *context, const char *path, sd_pretrainer_config &trained) {
    sd_model *model = nullptr;
    if (path != nullptr) {
        trained.size = sizeof trained;
        check(sd_checkpoint_info(context, path, &trained, nullptr));
        check(sd_model_load(context, path, 1, &model)); // 1: the teacher
        return Model(model);
    }
    trained.model.image_size = 28;
    trained.model.patch_size = 4;
    trained.model.channels = 1;
    trained.model.dim = trained.model.head_dim = 64;
    trained.model.depth = 2;
    trained.model.heads = 4;
    check(sd_model_create(context, &trained.model, &model));
    sd_model_initialize(model, 1);
    return Model(model);
}

int run(const char *path) {
    const size_t count = 200, kinds = Gallery::kinds;
    const Context context = make_context(); // declared first: destroyed after all that was made with it
    sd_pretrainer_config trained;
    sd_pretrainer_config_init(&trained);
    const Model model = load_or_make(context.get(), path, trained);
    const Gallery gallery(count, static_cast<size_t>(trained.model.channels));

    sd_embed_config config;
    sd_embed_config_init(&config);
    config.normalize = 1; // rows of length 1: the inner product is the cosine
    for (int c = 0; c < SD_MAX_CHANNELS; c++) {
        config.mean[c] = trained.augment.mean[c]; // as in training
        config.std[c] = trained.augment.std[c];
    }
    // Prepares the weights once instead of for every batch: worth it where batches are small.
    check(sd_model_pack(model.get(), config.precision));
    sd_embedder *raw = nullptr;
    check(sd_embedder_create(context.get(), model.get(), &config, &raw));
    const Embedder embedder(raw);

    const size_t dim = sd_embedder_dim(embedder.get());
    std::vector<float> features(count * dim);
    check(sd_embed_images(embedder.get(), gallery.views().data(), count, features.data(), dim));

    // The first eight images ask; the nearest of all is always the image itself.
    const size_t queries = 8, k = 4;
    std::vector<int64_t> nearest(queries * k);
    std::vector<float> similarity(queries * k);
    check(sd_nearest_neighbors(context.get(), features.data(), count, features.data(), queries, dim, k, nearest.data(),
                               similarity.data()));
    size_t right = 0;
    for (size_t q = 0; q < queries; q++) {
        std::printf("image %zu (kind %zu):", q, q % kinds);
        for (size_t j = 1; j < k; j++) {
            const size_t i = static_cast<size_t>(nearest[q * k + j]);
            std::printf("  %zu (kind %zu, %.5f)", i, i % kinds, static_cast<double>(similarity[q * k + j]));
            right += i % kinds == q % kinds;
        }
        std::printf("\n");
    }
    std::printf("%zu of %zu neighbours are of the same kind\n", right, queries * (k - 1));
    return path != nullptr || right > 12 ? 0 : 1;
}

} // namespace

int main(int argc, char **argv) {
    try {
        return run(argc > 1 ? argv[1] : nullptr);
    } catch (const std::exception &problem) {
        std::fprintf(stderr, "%s\n", problem.what());
        return 1;
    }
}
