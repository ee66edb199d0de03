// Boxes that are given image by image, as rows that say which image they are of.
//
// SOURCE: storage type of the boxes.
#include "prelude.cuh"

using Source = SOURCE;
using Target = SumOf<Source>::type;

struct Params {
  int ends[IMAGES];  // the boxes of the images up to each, of this launch
  int first_image, first_row;
  int rows;          // of this launch
};

// From the host: THREADS, and IMAGES of a launch.
#define BOXES(n) const Source *__restrict__ boxes##n

extern "C" __global__ void __launch_bounds__(THREADS)
    join_boxes(BOXES(0), BOXES(1), BOXES(2), BOXES(3), BOXES(4), BOXES(5), BOXES(6), BOXES(7),
               Target* __restrict__ rows, const Params p) {
  static_assert(IMAGES == 8, "an array for each image");
  const int row = blockIdx.x * THREADS + threadIdx.x;
  if (row >= p.rows) return;
  const Source* boxes = boxes0;
  int image = 0, start = 0;
#define TAKE(n) \
  if (row >= p.ends[n - 1]) { \
    image = n; \
    start = p.ends[n - 1]; \
    boxes = boxes##n; \
  }
  TAKE(1)
  TAKE(2)
  TAKE(3)
  TAKE(4)
  TAKE(5)
  TAKE(6)
  TAKE(7)
  const Source* box = boxes + 4 * (long long)(row - start);
  Target* to = rows + 5 * ((long long)p.first_row + row);
  to[0] = p.first_image + image;
  for (int side = 0; side < 4; ++side) {
    to[1 + side] = widen(box[side]);
  }
}
